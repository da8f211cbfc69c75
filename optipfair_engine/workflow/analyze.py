"""``analyze``: what a model is made of, and what pruning its MLPs would save."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures import locate
from optipfair_engine.errors import UnsupportedModelError
from optipfair_engine.notebooks import Result
from optipfair_engine.plans.reduction import count_parameters, mean_expansion_rate
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.pruning.sizes import kept_by_percentage
from optipfair_engine.workflow.common import load
from optipfair_engine.workflow.metrics import write_metrics

if TYPE_CHECKING:
    from torch import nn

    from optipfair_engine.architectures import MlpView, ModelView

PERCENTAGES = (10, 20, 30, 40, 50)


def analyze_checkpoint(
    source: Path, output: Path | None = None, *, device: str = "cpu", report: Reporter = null_reporter
) -> dict[str, Any]:
    """Sizes and parameter distribution of a model, and what width pruning at 10 … 50 % would leave.

    Args:
        source: a model folder or a GGUF file.
        output: where ``metrics.json`` and a plot go; ``None`` writes nothing.
        device: where to load the model.
        report: progress, stages "load" and "plot".

    Returns:
        The metrics: ``parameters``, ``num_layers``, ``distribution`` and ``estimates`` among them.
    """
    start = time.perf_counter()
    model = load(source, dtype="auto", device=device, needs_tokenizer=False, report=report).model
    metrics = {**describe(locate(model)), "seconds": round(time.perf_counter() - start, 3)}
    if output is None:
        return Result(metrics)
    from optipfair_engine.figures import draw_comparison, save

    write_metrics(output, metrics)
    shares = {kind: count / 1e6 for kind, count in metrics["distribution"].items() if count}
    most = max(shares, key=shares.__getitem__)
    title = f"{100 * shares[most] / sum(shares.values()):.0f} % of the parameters are in: {most}"
    save(draw_comparison(shares, title=title, label="parameters (millions)"), output / "distribution.png")
    report("plot", 1, 1, "distribution.png")
    return Result(metrics)


def describe(view: ModelView) -> dict[str, Any]:
    """The metrics of :func:`analyze_checkpoint`."""
    mlps, refusal = _mlps(view)
    kind = mlps[0].kind if mlps else None
    parameters = count_parameters(view.model)
    return {
        "model_type": view.architecture.model_type,
        "parameters": parameters,
        "bytes": sum(p.numel() * p.element_size() for p in view.model.parameters()),
        "dtype": str(view.model.dtype).removeprefix("torch."),
        "num_layers": view.num_layers,
        "hidden_size": view.hidden_size,
        "intermediate_sizes": [mlp.intermediate_size for mlp in mlps],
        "expansion_rate": mean_expansion_rate(view),
        "vocab_size": view.config.vocab_size,
        "mlp_kind": kind,
        "compatible_with_glu_pruning": kind in ("glu", "fused_glu"),
        "width_refusal": refusal,
        "distribution": parameter_distribution(view),
        "estimates": [_estimate(mlps, view, parameters, share) for share in PERCENTAGES] if mlps else [],
    }


def _mlps(view: ModelView) -> tuple[list[MlpView], str | None]:
    try:
        return [view.mlp(layer) for layer in range(view.num_layers)], None
    except UnsupportedModelError as error:
        return [], str(error)


def parameter_distribution(view: ModelView) -> dict[str, int]:
    """How many parameters attention, MLPs, norms, and what is outside the layers have.

    ``other layers`` (an encoder beside a decoder, an image tower) is there only if the model has any.
    """
    counts: dict[str, int] = defaultdict(int)
    counted: set[nn.Parameter] = set()
    spec = view.architecture
    inside = view.layers_path + "."
    for name, parameter in view.model.named_parameters():
        if parameter in counted:
            continue
        counted.add(parameter)
        counts[_place(name, inside, spec.attention.module if spec.attention else None)] += parameter.numel()
    kinds = ("attention", "mlp", "norm", "embeddings and head")
    other = {"other layers": counts["other layers"]} if counts["other layers"] else {}
    return {kind: counts[kind] for kind in kinds} | other


def _place(name: str, inside: str, attention: str | None) -> str:
    if not name.startswith(inside):
        numbered = any(part.isdigit() for part in name.split("."))
        return "other layers" if numbered else "embeddings and head"
    if attention is not None and f".{attention}." in name:
        return "attention"
    return "norm" if "norm" in name.lower() or ".ln_" in name else "mlp"


def _estimate(mlps: list[MlpView], view: ModelView, parameters: int, percentage: int) -> dict[str, Any]:
    """What is left after width pruning of all layers: exact, from the shapes."""
    removed = 0
    sizes = []
    for mlp in mlps:
        kept = kept_by_percentage(mlp.intermediate_size, percentage)
        sizes.append(kept)
        removed += (mlp.intermediate_size - kept) * _parameters_per_neuron(mlp)
    return {
        "pruning_percentage": percentage,
        "intermediate_size": sizes[0],
        "expansion_rate": 100 * sum(sizes) / (len(sizes) * view.hidden_size),
        "parameters": parameters - removed,
        "percentage_reduction": 100 * removed / parameters,
    }


def _parameters_per_neuron(mlp: MlpView) -> int:
    projections = 2 if mlp.kind == "plain" else 3
    biases = sum(f"{role}_bias" in mlp.names for role in ("gate", "up"))
    return projections * mlp.up_weight.shape[1] + biases
