"""The options of a pruning, checked when they are made: of ``prune_model`` and of a prune job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, SupportsFloat, get_args

from optipfair_engine.errors import InvalidOptionError

Preset = Literal["guide", "recommended"]
PruningType = Literal["MLP_GLU", "MLP", "DEPTH", "ATTENTION"]
NeuronSelectionMethod = Literal["MAW", "PPM", "VOW", "PON", "L2", "CFSP", "OBS"]
TieBreak = Literal["lower_index", "topk"]
Allocation = Literal["uniform", "allocated"]
LayerSelectionMethod = Literal["last", "first", "custom", "importance", "greedy_perplexity"]
AttentionUnit = Literal["kv_group", "query_head"]
Compensation = Literal["none", "least_squares"]
VerifyLevel = Literal["none", "structure", "logits"]
DType = Literal["auto", "float32", "float16", "bfloat16"]

#: Multiples that matrix hardware likes, and the only ones that the guide allows.
EXPANSION_DIVISORS = (32, 64, 128, 256)

#: The guide's percentage where no size is given at all.
DEFAULT_PERCENTAGE = 10


@dataclass(frozen=True)
class PruneOptions:
    """How to prune a checkpoint: the fields of a prune job's spec, with the guide's defaults.

    At most one of ``pruning_percentage``, ``expansion_rate``, ``target_parameters`` and ``target_bytes``;
    none of them means the guide's 10 %. ``max_length``, ``batch_size`` and ``num_samples`` say how
    calibration texts are cut. Without ``allocation`` widths are uniform, or what the preset measured best.
    """

    preset: Preset = "guide"
    pruning_type: PruningType = "MLP_GLU"
    neuron_selection_method: NeuronSelectionMethod = "MAW"
    tie_break: TieBreak = "lower_index"
    pruning_percentage: float | None = None
    expansion_rate: float | None = None
    target_parameters: int | None = None
    target_bytes: int | None = None
    allocation: Allocation | None = None
    expansion_divisor: int | None = None
    layer_indices: Iterable[object] | None = None
    num_layers_to_remove: int | None = None
    depth_pruning_percentage: float | None = None
    layer_selection_method: LayerSelectionMethod = "last"
    attention_unit: AttentionUnit = "kv_group"
    compensation: Compensation = "none"
    healing_seconds: float | None = None
    fairness: Mapping[str, object] | None = None
    keep_statistics: bool = False
    dtype: DType = "auto"
    device: str = "cpu"
    seed: int = 0
    verify: VerifyLevel = "logits"
    max_length: int = 512
    batch_size: int = 8
    num_samples: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range and combinations that contradict each other."""
        for name, choices in _CHOICES.items():
            if not (name == "allocation" and self.allocation is None):
                _check_choice(name, getattr(self, name), choices)
        if isinstance(self.layer_indices, Iterable) and not isinstance(self.layer_indices, str | bytes):
            # a generator could be read only once
            object.__setattr__(self, "layer_indices", tuple(self.layer_indices))
        sizes = [name for name in _SIZES if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise InvalidOptionError(f"{' and '.join(sizes)} are mutually exclusive. Provide only one.")
        for name in (*_POSITIVE, "pruning_percentage", "depth_pruning_percentage"):
            _check_number(name, getattr(self, name))
        share = self.pruning_percentage
        if share is not None and not 0 <= share < 100:
            raise InvalidOptionError(f"pruning_percentage must be at least 0 and below 100, got {share}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidOptionError(f"{name} must be above 0, got {value}")
        divisor = self.expansion_divisor
        if divisor is not None and not _is_divisor(divisor):
            raise InvalidOptionError(
                f"expansion_divisor must be one of {list(EXPANSION_DIVISORS)} or None. Got: {divisor}"
            )
        _check_type(self)

    @property
    def prunes_neurons(self) -> bool:
        """Whether intermediate neurons go (rather than layers or heads)."""
        return self.pruning_type in ("MLP_GLU", "MLP")

    @property
    def percentage(self) -> float:
        """The percentage that goes where one is asked for, or the guide's default."""
        return DEFAULT_PERCENTAGE if self.pruning_percentage is None else self.pruning_percentage


_SIZES = ("pruning_percentage", "expansion_rate", "target_parameters", "target_bytes")
_DEPTH_ONLY = ("num_layers_to_remove", "depth_pruning_percentage")
_POSITIVE = (
    "expansion_rate",
    "target_parameters",
    "target_bytes",
    "num_layers_to_remove",
    "healing_seconds",
    "max_length",
    "batch_size",
    "num_samples",
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "preset": get_args(Preset),
    "pruning_type": get_args(PruningType),
    "neuron_selection_method": get_args(NeuronSelectionMethod),
    "tie_break": get_args(TieBreak),
    "allocation": get_args(Allocation),
    "layer_selection_method": get_args(LayerSelectionMethod),
    "attention_unit": get_args(AttentionUnit),
    "compensation": get_args(Compensation),
    "verify": get_args(VerifyLevel),
    "dtype": get_args(DType),
}


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidOptionError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _check_number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, SupportsFloat)):
        raise InvalidOptionError(f"{name} must be a number, got {value!r}")


def _is_divisor(value: object) -> bool:
    return isinstance(value, Integral) and value in EXPANSION_DIVISORS


def _check_type(options: PruneOptions) -> None:
    """Refuse options that belong to another pruning type."""
    foreign: dict[str, bool] = {}
    if options.pruning_type != "DEPTH":
        foreign |= {name: getattr(options, name) is not None for name in _DEPTH_ONLY}
        foreign["layer_selection_method"] = options.layer_selection_method != "last"
    if not options.prunes_neurons:
        foreign |= {
            name: getattr(options, name) is not None for name in ("expansion_rate", "expansion_divisor")
        }
        foreign["neuron_selection_method"] = options.neuron_selection_method != "MAW"
        foreign["tie_break"] = options.tie_break != "lower_index"
        foreign['allocation "allocated"'] = options.allocation == "allocated"
    if options.pruning_type == "DEPTH":
        foreign |= {name: getattr(options, name) is not None for name in _SIZES}
        foreign["keep_statistics"] = options.keep_statistics
    if options.pruning_type != "ATTENTION":
        foreign["attention_unit"] = options.attention_unit != "kv_group"
    if options.layer_indices is not None and options.layer_selection_method not in ("last", "custom"):
        foreign[f'layer_selection_method "{options.layer_selection_method}" beside layer_indices'] = True
    wrong = [name for name, given in foreign.items() if given]
    if wrong:
        raise InvalidOptionError(f"{', '.join(wrong)} can't be used with pruning_type {options.pruning_type}")
    if options.tie_break != "lower_index" and (
        options.compensation != "none" or options.allocation == "allocated"
    ):
        raise InvalidOptionError(
            f'tie_break "{options.tie_break}" is for selection by score alone: not with compensation '
            "or allocated widths"
        )
