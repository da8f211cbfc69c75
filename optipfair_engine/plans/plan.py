"""The plan of a pruning: plain data that says what stays, between choosing and applying.

A plan is frozen, validates itself against a model, and saves to ``plan.json`` (indices, sizes, curves) plus
``plan.safetensors`` (refitted weights). It holds no time, id or path: the same options give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from optipfair_engine.errors import EngineError, PlanError
from optipfair_engine.notebooks import table
from optipfair_engine.plans.provenance import Provenance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optipfair_engine.architectures.view import AttentionWeights, WeightsView

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "plan.safetensors"
_FORMAT = "optipfair-plan/1"


@dataclass(frozen=True)
class HeadPlan:
    """The attention heads of one layer that stay, as sorted indices into the original heads."""

    query: tuple[int, ...]
    kv: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a model.

    Attributes:
        model_type: ``config.model_type`` of the family that the plan was made for.
        num_layers: layers of the original model; all indices below are original ones.
        hidden_size: of the original model.
        provenance: how the plan was made; ``plan.json`` holds it as ``method``.
        kept_neurons: layer → sorted kept intermediate neurons; only layers that change.
        removed_layers: sorted layers that go.
        kept_heads: layer → kept attention heads; only layers that change.
        kept_experts: layer → sorted kept experts; the same number in every layer that has experts.
        weights: refitted weights by original state-dict name, in the module's storage orientation, pruned
            shape.
        curves: layer → predicted relative error by number of removed neurons, where calibration gave one.
        removal_order: layer → neurons (or experts) in the order in which they go, so that another ratio needs
            no model.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    provenance: Provenance = field(default_factory=Provenance)
    kept_neurons: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    removed_layers: tuple[int, ...] = ()
    kept_heads: Mapping[int, HeadPlan] = field(default_factory=dict)
    kept_experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[int, tuple[float, ...]] | None = None
    removal_order: Mapping[int, tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        """Refuse what no model could satisfy."""
        _check_indices("removed_layers", self.removed_layers, self.num_layers, may_be_empty=True)
        if self.num_layers > 0 and len(self.removed_layers) >= self.num_layers:
            raise PlanError(f"a plan can't remove all {self.num_layers} layers")
        for layer in (*self.kept_neurons, *self.kept_heads, *self.kept_experts):
            if not 0 <= layer < self.num_layers:
                raise PlanError(f"layer {layer} is not one of the {self.num_layers} layers of the plan")
        for layer, kept in self.kept_neurons.items():
            _check_indices(f"kept_neurons of layer {layer}", kept)
        for layer, kept in self.kept_experts.items():
            _check_indices(f"kept_experts of layer {layer}", kept)
        if len({len(kept) for kept in self.kept_experts.values()}) > 1:
            raise PlanError("a plan must keep the same number of experts in every layer")

    def _repr_html_(self) -> str:
        head = ("layer", "neurons that stay", "query heads", "experts")
        kept = (
            self.kept_neurons,
            {i: heads.query for i, heads in self.kept_heads.items()},
            self.kept_experts,
        )
        rows = [
            (layer, "removed")
            if layer in self.removed_layers
            else (layer, *(len(some[layer]) if layer in some else "all" for some in kept))
            for layer in range(self.num_layers)
        ]
        return table(head, rows)

    def validate(self, view: WeightsView) -> None:
        """Check that the plan fits a model, before anything is touched.

        Raises:
            PlanError: another family, other sizes, or an index that the model doesn't have.
        """
        if self.model_type != view.architecture.model_type:
            found = view.architecture.model_type
            raise PlanError(f"the plan was made for the family {self.model_type!r}, the model is {found!r}")
        for name in ("num_layers", "hidden_size"):
            if getattr(self, name) != getattr(view, name):
                raise PlanError(
                    f"the plan expects {name}={getattr(self, name)}, the model has {getattr(view, name)}"
                )
        for layer, kept in self.kept_neurons.items():
            _check_indices(f"kept_neurons of layer {layer}", kept, view.mlp(layer).intermediate_size)
        for layer, heads in self.kept_heads.items():
            attention = view.attention(layer)
            _check_indices(f"query heads of layer {layer}", heads.query, attention.num_heads)
            _check_indices(f"KV heads of layer {layer}", heads.kv, attention.num_key_value_heads)
            _check_heads(layer, heads, attention)
        if self.kept_experts:
            self._validate_experts(view)

    def _validate_experts(self, view: WeightsView) -> None:
        if sorted(self.kept_experts) != (layers := view.expert_layers()):
            raise PlanError(
                f"the plan says which experts stay in the layers {sorted(self.kept_experts)}, and those with "
                f"experts are {layers}: one number holds for all of them"
            )
        for layer, kept in self.kept_experts.items():
            _check_indices(f"kept_experts of layer {layer}", kept, view.experts(layer).num_experts)

    def save(self, folder: Path | str) -> None:
        """Write ``plan.json`` and, where weights were refitted, ``plan.safetensors``; byte-deterministic."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / PLAN_FILE).write_text(self.to_json(), encoding="utf-8")
        weights = target / WEIGHTS_FILE
        weights.unlink(missing_ok=True)
        if self.weights:
            from safetensors.torch import save_file

            tensors = {name: self.weights[name].detach().cpu().contiguous() for name in sorted(self.weights)}
            save_file(tensors, weights, metadata={"format": "pt"})
            # safetensors makes files that their owner alone may read, unlike everything beside them
            weights.chmod(stat.S_IMODE((target / PLAN_FILE).stat().st_mode))

    def to_json(self) -> str:
        """The plan without its weights as JSON text, one top-level key a line, keys sorted."""
        data: dict[str, Any] = {
            "curves": None
            if self.curves is None
            else {str(k): list(v) for k, v in sorted(self.curves.items())},
            "format": _FORMAT,
            "hidden_size": self.hidden_size,
            "intermediate_sizes": {str(k): len(v) for k, v in sorted(self.kept_neurons.items())},
            "kept_experts": {str(k): list(v) for k, v in sorted(self.kept_experts.items())},
            "kept_heads": {
                str(k): {"kv": list(v.kv), "query": list(v.query)} for k, v in sorted(self.kept_heads.items())
            },
            "kept_neurons": {str(k): list(v) for k, v in sorted(self.kept_neurons.items())},
            "method": self.provenance.to_json(),
            "model_type": self.model_type,
            "num_layers": self.num_layers,
            "removal_order": None
            if self.removal_order is None
            else {str(k): list(v) for k, v in sorted(self.removal_order.items())},
            "removed_layers": list(self.removed_layers),
            "weights": sorted(self.weights),
        }
        lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in data.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, folder: Path | str) -> PruningPlan:
        """Read a plan that ``save`` wrote (a folder, or the ``plan.json`` in it).

        Raises:
            PlanError: no plan, unreadable, of another format, or weights that don't belong to it.
        """
        path = Path(folder)
        path = path / PLAN_FILE if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"{path.name} can't be read as a pruning plan: {type(error).__name__}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise PlanError(f"{path.name} is not a pruning plan of format {_FORMAT!r}")
        try:
            return cls(
                **_fields_from_json(data),
                weights=_load_weights(path.with_name(WEIGHTS_FILE), data["weights"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"{path.name} is malformed: {error}") from error


class _Parts(TypedDict, total=False):
    """The fields of a plan that say what stays and why."""

    kept_neurons: Mapping[int, tuple[int, ...]]
    removed_layers: tuple[int, ...]
    kept_heads: Mapping[int, HeadPlan]
    kept_experts: Mapping[int, tuple[int, ...]]
    weights: Mapping[str, Tensor]
    curves: Mapping[int, tuple[float, ...]] | None
    removal_order: Mapping[int, tuple[int, ...]] | None


def new_plan(view: WeightsView, provenance: Provenance, **parts: Unpack[_Parts]) -> PruningPlan:
    """A plan for the model that is looked at, which gives its family and sizes; ``parts`` say what stays."""
    return PruningPlan(view.architecture.model_type, view.num_layers, view.hidden_size, provenance, **parts)


def as_stored(weight: Tensor, dtype: torch.dtype, *, transposed: bool) -> Tensor:
    """A refitted weight [outputs, inputs] as a plan holds it: in main memory, in storage order."""
    solved = weight.to(dtype).cpu()
    return solved.T.contiguous() if transposed else solved


def _check_heads(layer: int, heads: HeadPlan, attention: AttentionWeights) -> None:
    import torch

    try:
        attention.check_heads(torch.tensor(heads.query), torch.tensor(heads.kv))
    except ValueError as error:
        if isinstance(error, EngineError):
            raise
        raise PlanError(f"layer {layer}: {error}") from error


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _fields_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    curves, order = data["curves"], data.get("removal_order")
    return {
        "model_type": data["model_type"],
        "num_layers": data["num_layers"],
        "hidden_size": data["hidden_size"],
        "provenance": Provenance.from_json(data["method"]),
        "kept_neurons": {int(k): tuple(v) for k, v in data["kept_neurons"].items()},
        "removed_layers": tuple(data["removed_layers"]),
        "kept_heads": {
            int(k): HeadPlan(tuple(v["query"]), tuple(v["kv"])) for k, v in data["kept_heads"].items()
        },
        "kept_experts": {int(k): tuple(v) for k, v in data.get("kept_experts", {}).items()},
        "curves": None if curves is None else {int(k): tuple(v) for k, v in curves.items()},
        "removal_order": None if order is None else {int(k): tuple(v) for k, v in order.items()},
    }


def _load_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    if not names:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PlanError(f"{path.name} with the plan's refitted weights can't be read: {error}") from error
    if sorted(weights) != sorted(names):
        raise PlanError(f"{path.name} doesn't hold the weights that the plan names")
    return weights


def _check_indices(
    what: str, indices: tuple[int, ...], size: int | None = None, *, may_be_empty: bool = False
) -> None:
    if not indices and not may_be_empty:
        raise PlanError(f"{what} is empty")
    if any(b <= a for a, b in itertools.pairwise(indices)):
        raise PlanError(f"{what} must be sorted and without duplicates")
    if indices and (indices[0] < 0 or (size is not None and indices[-1] >= size)):
        raise PlanError(f"{what} reaches from {indices[0]} to {indices[-1]}, but there are {size}")
