"""Which experts a small mixture can spare: REAP, how often they are chosen, and chance, at the same number.

    python benchmarks/experts.py [--steps 500] [--experts 16] [--balance 0.001] [--draws 5]

A mixture (Qwen3-MoE's code, 3 layers, two experts a token) is trained from nothing on four fifths of the
topics of Python's own manual. It is then pruned by `optipfair_engine`, calibrated on topics that it was
trained on, and its perplexity is measured on the other fifth, dense and with each choice; of chance, the mean
of some draws. Exit code 1 if REAP isn't below both others at every number of experts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from sides import processor

from demo.topics import calibration_text, evaluation_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY, LENGTH, BATCH, LAYERS, HIDDEN = 1024, 128, 16, 3, 64
PERCENTAGES = (25.0, 50.0)
CALIBRATION_WINDOWS, EVALUATION_WINDOWS = 128, 60


def main() -> int:
    """Train, prune, measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of training, 16 windows of 128 tokens each")
    parser.add_argument("--experts", type=int, default=16, help="in each layer")
    parser.add_argument(
        "--balance", type=float, default=0.001, help="weight of the loss that balances experts"
    )
    parser.add_argument("--draws", type=int, default=5, help="of experts by chance")
    options = parser.parse_args()
    print(processor())
    training, held_out = token_windows()
    model = trained(training, options.experts, options.steps, options.balance)
    return compare(model, training, held_out, options.draws)


def token_windows() -> tuple[list[list[int]], list[list[int]]]:
    """Windows of token ids to train and calibrate on, and others to measure on."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([calibration_text()], vocab_size=VOCABULARY, show_progress=False)
    return _cut(bpe.encode(calibration_text()).ids), _cut(bpe.encode(evaluation_text()).ids)


def _cut(ids: list[int]) -> list[list[int]]:
    return [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH, LENGTH)]


def trained(windows: list[list[int]], experts: int, steps: int, balance: float) -> PreTrainedModel:
    """A mixture after so many steps of AdamW, with the loss that balances its experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=experts,
        num_experts_per_tok=2,
        moe_intermediate_size=HIDDEN // 2,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=balance,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    data, start = torch.tensor(windows), time.perf_counter()
    for step in range(steps):
        ids = data[torch.randint(0, len(data), (BATCH,))]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.2f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.config.output_router_logits = False
    trained_model: PreTrainedModel = model.eval()
    return trained_model


def compare(model: PreTrainedModel, training: list[list[int]], held_out: list[list[int]], draws: int) -> int:
    """Perplexities of each choice at each size; the exit code."""
    from optipfair_engine.calibration import calibration_from_windows

    calibration = calibration_from_windows(_spread(training, CALIBRATION_WINDOWS), batch_size=BATCH)
    windows = _spread(held_out, EVALUATION_WINDOWS)
    print(f"{len(training)} windows to train on; dense: {_perplexity(model, windows):.2f}")
    print("| experts removed | REAP | FREQUENCY | chance: mean, lowest, highest |\n|---|---|---|---|")
    held = True
    for percentage in PERCENTAGES:
        reap, frequency = (
            _perplexity(_pruned(model, calibration, percentage, method), windows)
            for method in ("REAP", "FREQUENCY")
        )
        chance = [_perplexity(_by_chance(model, percentage, seed), windows) for seed in range(draws)]
        mean = statistics.mean(chance)
        print(
            f"| {percentage:g} % | {reap:.2f} | {frequency:.2f} | "
            f"{mean:.2f}, {min(chance):.2f}, {max(chance):.2f} |",
            flush=True,
        )
        held = held and reap < min(frequency, mean)
    return 0 if held else 1


def _spread(windows: list[list[int]], count: int) -> list[list[int]]:
    return windows[:: max(1, len(windows) // count)][:count]


def _perplexity(model: PreTrainedModel, windows: list[list[int]]) -> float:
    from optipfair_engine.evaluation.perplexity import score_windows

    return score_windows(model, windows).perplexity


def _pruned(model: PreTrainedModel, calibration: Any, percentage: float, method: str) -> PreTrainedModel:
    from optipfair_engine.pruning import prune_model

    pruned: PreTrainedModel = prune_model(
        model,
        "EXPERTS",
        pruning_percentage=percentage,
        expert_selection_method=method,
        dataloader=calibration,
        show_progress=False,
    )
    return pruned


def _by_chance(model: PreTrainedModel, percentage: float, seed: int) -> PreTrainedModel:
    """Experts drawn anew in each layer."""
    import random

    from optipfair_engine.architectures import locate
    from optipfair_engine.plans.apply import apply_plan
    from optipfair_engine.plans.plan import new_plan
    from optipfair_engine.plans.provenance import Provenance
    from optipfair_engine.pruning.sizes import kept_by_percentage

    drawing, view = random.Random(seed), locate(model)
    experts = view.routing.num_experts
    kept = {
        layer: tuple(sorted(drawing.sample(range(experts), kept_by_percentage(experts, percentage))))
        for layer in view.expert_layers()
    }
    return apply_plan(model, new_plan(view, Provenance(pruning_type="EXPERTS"), kept_experts=kept))


if __name__ == "__main__":
    raise SystemExit(main())
