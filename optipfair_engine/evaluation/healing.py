"""Healing: a short distillation of a pruned model from its original, on logits.

Loss: KL(teacher ‖ student) of the next-token distributions, in nats, averaged over a sample's unmasked tokens
(Hinton et al. 2015, temperature 1). One sample a step, AdamW without weight decay, learning rate falling by a
cosine over the time (or the steps) allowed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from optipfair_engine.calibration.runner import eval_mode
from optipfair_engine.calibration.text import iter_batches
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.progress import Reporter, null_reporter

#: Highest learning rate of a model of ``RATED_HIDDEN_SIZE``; wider ones take smaller steps, as the width.
LEARNING_RATE = 4e-4
RATED_HIDDEN_SIZE = 576

#: Steps over which the learning rate rises from zero: Adam's first steps are otherwise of full size blind.
_WARM_UP = 5


@dataclass(frozen=True)
class HealingResult:
    """What a healing did; losses are the mean over the first and the last tenth of the steps."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    stopped_by: str


def heal(
    student: Any,
    teacher: Any,
    batches: Iterable[Any],
    *,
    max_seconds: float | None = None,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    report: Reporter = null_reporter,
    clock: Callable[[], float] = time.monotonic,
) -> HealingResult:
    """Train ``student`` in place towards ``teacher``'s logits, until time, steps, or two passes are through.

    Parameters that don't require gradients stay as they are. Training is in float32 (a bf16 weight can't take
    steps this small) and the student gets its own dtype back. No model's mode and no global RNG changes.
    The teacher computes in the number type that is fastest (``computing.number_type``).

    Args:
        student: the pruned model.
        teacher: the original, with the same vocabulary.
        batches: calibration batches; each sample is one step.
        max_seconds: time limit; the step under way when it ends is the last.
        max_steps: limit of steps.
        learning_rate: the highest rate; :func:`default_learning_rate` unless given.
        seed: order of the samples.
        report: progress, stage "heal", in per cent of what is allowed.
        clock: what ``max_seconds`` is measured by.

    Raises:
        InvalidOptionError: a limit that isn't positive, or a student without trainable parameters.
    """
    _check_limits(max_seconds, max_steps)
    samples = _samples(batches)
    if not any(p.requires_grad for p in student.parameters()):
        raise InvalidOptionError("healing needs a model with trainable parameters; all are frozen")
    dtypes = {name: p.dtype for name, p in student.named_parameters()}
    student.float()
    trained = [p for p in student.parameters() if p.requires_grad]
    highest = default_learning_rate(student) if learning_rate is None else learning_rate
    optimizer = torch.optim.AdamW(trained, lr=highest, weight_decay=0.0, fused=True)
    budget = _Budget(max_seconds, min(max_steps or 2 * len(samples), 2 * len(samples)), clock)
    losses: list[float] = []
    try:
        with eval_mode(student), eval_mode(teacher):
            for ids in _order(samples, seed):
                if budget.used(len(losses)) >= 1:
                    break
                rate = highest * _schedule(budget.used(len(losses)), len(losses))
                losses.append(_step(student, teacher, ids, optimizer, rate))
                percent = min(100, round(100 * budget.used(len(losses))))
                report("heal", percent, 100, f"step {len(losses)}, loss {losses[-1]:.4f}")
    finally:
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in student.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
    return budget.result(losses)


def default_learning_rate(model: Any) -> float:
    """``LEARNING_RATE``, or for wider models less: Adam's best rate of a matrix falls as one over its inputs.

    The rule is that of μTransfer (Yang et al. 2022, arXiv:2203.03466, table 3), from SmolLM2-135M, on which
    5e-5, 1e-4, 2e-4 and 4e-4 were tried: the last gave the lowest perplexity.
    """
    hidden: int = model.get_input_embeddings().weight.shape[1]
    return LEARNING_RATE * min(1.0, RATED_HIDDEN_SIZE / hidden)


@dataclass
class _Budget:
    """How much of the time and the steps is used."""

    max_seconds: float | None
    max_steps: int
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.start = self.clock()

    def used(self, steps: int) -> float:
        """0 … 1 (and above): the larger share of time and steps."""
        by_steps = steps / self.max_steps
        return by_steps if self.max_seconds is None else max(by_steps, self.seconds() / self.max_seconds)

    def seconds(self) -> float:
        return self.clock() - self.start

    def result(self, losses: Sequence[float]) -> HealingResult:
        tenth = max(1, len(losses) // 10)
        first, last = (
            sum(part) / len(part) if part else math.nan for part in (losses[:tenth], losses[-tenth:])
        )
        stopped_by = "steps" if len(losses) >= self.max_steps else "time"
        return HealingResult(len(losses), round(self.seconds(), 3), first, last, stopped_by)


def _check_limits(max_seconds: float | None, max_steps: int | None) -> None:
    if max_seconds is not None and not max_seconds > 0:
        raise InvalidOptionError(f"healing's max_seconds must be positive, not {max_seconds}")
    if max_steps is not None and max_steps < 1:
        raise InvalidOptionError(f"healing's max_steps must be positive, not {max_steps}")


def _samples(batches: Iterable[Any]) -> list[Tensor]:
    """Each sample's unmasked token ids ``[tokens]``; those of one token predict nothing and are left out."""
    found = [
        ids[mask.bool()]
        for batch in iter_batches(batches)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    usable = [ids for ids in found if len(ids) > 1]
    if not usable:
        raise InvalidOptionError("healing needs samples of at least two tokens")
    return usable


def _order(samples: Sequence[Tensor], seed: int) -> Iterable[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for index in torch.randperm(len(samples), generator=generator).tolist():
            yield samples[index][None]


def _schedule(used: float, step: int) -> float:
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))


def _step(student: Any, teacher: Any, ids: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> float:
    ids = ids.to(next(student.parameters()).device)
    with torch.no_grad(), fast_products(teacher):
        wanted = teacher(input_ids=ids, use_cache=False).logits[0].float()
    loss = _divergence(student(input_ids=ids, use_cache=False).logits[0].float(), wanted)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted ‖ found) of logits ``[tokens, vocabulary]``, mean over tokens: cross-entropy less entropy.

    Over a large vocabulary that takes half the passes of ``F.kl_div`` on two ``log_softmax``.
    """
    wanted = wanted.to(found.device)
    probabilities = wanted.softmax(-1)
    entropy = wanted.logsumexp(-1) - torch.linalg.vecdot(probabilities, wanted)
    divergence: Tensor = F.cross_entropy(found, probabilities) - entropy.mean()
    return divergence
