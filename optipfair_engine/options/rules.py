"""What goes together in a pruning: every rule, once.

A rule looks at values alone, not at which were written: a stored spec has every default spelled out. Rules
that depend on calibration text or an earlier plan are told whether there is one. Each raises a
``ContradictionError``, worded for jobs and, where the guide's calls say it in another way, for those too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from optipfair_engine.options.base import about
from optipfair_engine.options.errors import ContradictionError
from optipfair_engine.options.fields import PruneFields

if TYPE_CHECKING:
    from optipfair_engine.options.calibration import OwnText

#: How much goes: of neurons and heads, and of layers.
SIZES: Final = ("pruning_percentage", "expansion_rate", "target_parameters", "target_bytes")
DEPTH_SIZES: Final = ("num_layers_to_remove", "depth_pruning_percentage", "layer_indices")

#: The fields that say how wide what is pruned becomes.
WIDTH_FIELDS: Final = (*SIZES, "expansion_divisor")

#: Scores of neurons that look at weights alone, even where there is text.
BY_WEIGHTS_ALONE: Final = ("VOW", "PON", "L2")

#: What an earlier plan has settled; size, divisor, allocation and healing can be asked for beside it.
SETTLED_BY_PLAN: Final = (
    *("preset", "neuron_selection_method", "tie_break", "compensation", "attention_unit"),
    "expert_selection_method",
    *("layer_indices", "num_layers_to_remove", "depth_pruning_percentage", "layer_selection_method"),
    *("fairness", "search", "reconstruction", "keep_statistics"),
)
#: Of these, the words by which a plan says how it chose.
WORDS_OF_PLAN: Final = (
    "neuron_selection_method",
    "tie_break",
    "layer_selection_method",
    "attention_unit",
    "expert_selection_method",
    "compensation",
)


def asked_size(options: PruneFields) -> dict[str, Any]:
    """The one size of neurons or heads that is asked for (or the guide's percentage), and its divisor."""
    given = _given(options, WIDTH_FIELDS)
    if not given.keys() & set(SIZES):
        given[SIZES[0]] = options.percentage
    return given


def asked_layers(options: PruneFields) -> dict[str, Any]:
    """The number of layers that are to go, in the words in which it is asked for."""
    return _given(options, DEPTH_SIZES)


def _given(options: PruneFields, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def reads(options: PruneFields, name: str) -> bool:
    """Whether the pruning type reads a field that not all of them read."""
    return options.pruning_type in (about(type(options).model_fields[name]).types or ())


def check_one_size(options: PruneFields) -> None:
    """Refuse two sizes; none means the guide's percentage."""
    sizes = _given(options, SIZES)
    if len(sizes) > 1:
        raise ContradictionError(f"{' and '.join(sizes)} are mutually exclusive. Provide only one.")


def check_exactly_one_size(options: PruneFields, *, planned: bool) -> None:
    """Refuse two sizes, and none too, except beside a plan, which has its own."""
    wanted = DEPTH_SIZES if options.pruning_type == "DEPTH" else SIZES
    given = _given(options, wanted)
    if len(given) != 1 and not (planned and not given):
        said = f" ({', '.join(given)} given)" if given else ""
        raise ContradictionError(f"give exactly one of {', '.join(wanted)}{said}")


def check_type(options: PruneFields) -> None:
    """Refuse fields that the pruning type doesn't read, unless they are at their default."""
    names = []
    for name, field in type(options).model_fields.items():
        told = about(field)
        if told.types is None or options.pruning_type in told.types or not is_chosen(options, name):
            continue
        value = getattr(options, name)
        if value not in told.neutral:
            names.append(f'{name} "{value}"' if told.neutral else name)
    if names:
        kind, listed = options.pruning_type, ", ".join(names)
        raise ContradictionError(
            f'{listed}: not with pruning_type "{kind}"',
            guide=f"{listed} can't be used with pruning_type {kind}",
        )


def check_layer_choice(options: PruneFields) -> None:
    """Refuse a way to choose layers beside the layers themselves.

    "last" is the default, and as good as "custom" where the layers are named.
    """
    method = options.layer_selection_method
    if options.layer_indices is not None and method not in ("last", "custom"):
        raise ContradictionError(
            f'layer_selection_method "{method}" chooses layers itself: not with layer_indices',
            guide=f'layer_selection_method "{method}" beside layer_indices can\'t be used with pruning_type '
            f"{options.pruning_type}",
        )


def check_named_layers(options: PruneFields) -> None:
    """Refuse a choice of layers by hand that names none."""
    if options.layer_selection_method == "custom" and options.layer_indices is None:
        raise ContradictionError(
            'layer_selection_method "custom" takes layer_indices',
            guide='layer_selection_method "custom" needs layer_indices',
        )


def check_ties(options: PruneFields) -> None:
    """Refuse a way to break ties where something else than a score of one layer's neurons chooses."""
    if options.tie_break != "lower_index" and (options.compensation != "none" or options.unequal_widths):
        raise ContradictionError(
            _TIES,
            guide=f'tie_break "{options.tie_break}" is for selection by score alone: not with compensation '
            "or allocated widths",
        )


def check_ties_of_job(options: PruneFields) -> None:
    """The same, and refuse it with what may come to that: a preset or fairness."""
    check_ties(options)
    if options.tie_break != "lower_index" and (options.preset != "guide" or options.fairness):
        raise ContradictionError(_TIES)


_TIES = 'tie_break "topk": not with compensation, allocated widths, fairness or a preset'


def check_needs(
    options: PruneFields, *, calibrated: bool, planned: bool = False, healed: bool = True
) -> None:
    """Refuse what can't be done without calibration text, whatever the preset.

    ``planned``: an earlier plan is applied, so nothing is chosen. ``healed``: healing counts, too.
    """
    alone = options.neuron_selection_method == "OBS" and not refits(options, calibrated=calibrated)
    needs = _needs(options, planned=planned, healed=healed)
    if needs and not calibrated:
        raise ContradictionError(
            f"{', '.join(needs)}: needs calibration", guide=_OBS_ALONE if alone else _first(needs)
        )
    if alone:
        raise ContradictionError(
            'neuron_selection_method "OBS" works only with compensation "least_squares"', guide=_OBS_ALONE
        )


def _first(needs: Mapping[str, str]) -> str:
    """What the engine says of several needs: of that which explains the others, if there is one."""
    leading = ("fairness", 'compensation "least_squares"')
    return next((needs[name] for name in leading if name in needs), next(iter(needs.values())))


_OBS_ALONE = 'neuron_selection_method="OBS" needs compensation="least_squares"'
_CFSP = 'neuron_selection_method="CFSP" needs calibration data (a dataloader, or texts)'
_DATA = "needs calibration data (a dataloader, or calibration texts)"
DEPTH_NEEDS: Final = (
    "layer selection by importance or greedy_perplexity, and compensation, need calibration data "
    "(a dataloader, or calibration texts)"
)
EXPERT_NEEDS: Final = f"pruning_type EXPERTS {_DATA}: what experts do is measured on it"
WIDTH_NEEDS: Final = "a refit, OBS and allocated widths need calibration data, or kept statistics"


def _needs(options: PruneFields, *, planned: bool, healed: bool) -> dict[str, str]:
    """What needs calibration text: its name → how the engine says so."""
    method, layers = options.neuron_selection_method, options.layer_selection_method
    refitted = DEPTH_NEEDS if options.pruning_type == "DEPTH" else f"compensation {_DATA}"
    needy = (
        (method == "CFSP", 'neuron_selection_method "CFSP"', _CFSP),
        (method == "OBS", 'neuron_selection_method "OBS"', refitted),
        (options.compensation != "none", 'compensation "least_squares"', refitted),
        (
            options.unequal_widths and not planned,
            f'allocation "{options.allocation}"',
            WIDTH_NEEDS,
        ),
        (options.pruning_type == "EXPERTS" and not planned, 'pruning_type "EXPERTS"', EXPERT_NEEDS),
        (selects_layers_by_text(options), f'layer_selection_method "{layers}"', DEPTH_NEEDS),
        (
            options.reconstruction is not None and not planned,
            "reconstruction",
            "reconstruction needs calibration text: layers are fitted to what the dense ones make of it",
        ),
        (
            options.healing is not None and healed,
            "healing",
            "healing needs calibration text to distil on",
        ),
        (
            options.fairness is not None,
            "fairness",
            "fairness needs calibration data: a neuron's utility is measured on it",
        ),
    )
    return {name: said for needed, name, said in needy if needed}


def check_fairness(options: PruneFields) -> None:
    """Fairness is itself the score of neurons, and orders equal ones by their index."""
    names = [name for name in ("neuron_selection_method", "tie_break") if is_chosen(options, name)]
    if names:
        raise ContradictionError(
            f"{', '.join(names)}: not with fairness, which ranks neurons by utility and bias",
            guide=f"{names[0]} {getattr(options, names[0])} has no effect with fairness, which scores "
            "neurons by rank(OBS's cost) - weight * rank(bias): leave it out",
        )


def check_search(options: PruneFields) -> None:
    """Refuse a limit of a search that isn't asked for, and a search for neurons that fairness chooses."""
    if options.fairness is not None:
        if options.allocation == "searched":
            raise ContradictionError('allocation "searched": not with fairness; give "allocated"')
        if options.search is not None:
            raise ContradictionError("search: not with fairness, for which no widths are searched")
    chosen = options.allocation == "searched" or (options.preset == "best" and options.allocation is None)
    if options.search is not None and not chosen:
        raise ContradictionError('search is how allocation "searched" goes about it: give that, too')


def check_reconstruction(options: PruneFields) -> None:
    """Refuse reconstruction of neurons that fairness chose: they are there for more than the output."""
    if options.reconstruction is not None and options.fairness is not None:
        raise ContradictionError(
            "reconstruction: not with fairness, which doesn't choose by the output alone"
        )


def check_processes(options: PruneFields, *, calibrated: bool, planned: bool = False) -> None:
    """Refuse several processes where there is no calibration that they could share out."""
    if options.processes == 1:
        return
    if options.fairness is not None:
        raise ContradictionError("processes: not with fairness, whose prompts go through one model")
    gathers = refits(options, calibrated=True) or options.unequal_widths or scores_neurons_by_text(options)
    if planned or not calibrated or not (gathers or options.pruning_type == "EXPERTS"):
        raise ContradictionError(
            "processes share out the calibration text that neurons, heads or experts are chosen by, and "
            "there is none: give calibration, with a method or compensation that looks at it"
        )


def check_reconstruction_of_refit(options: PruneFields, *, calibrated: bool) -> None:
    """Refuse reconstruction without the refit that it starts from."""
    if options.reconstruction is not None and not refits(options, calibrated=calibrated):
        raise ContradictionError(
            'reconstruction starts from a refit: give compensation "least_squares", or a preset',
            guide='reconstruction needs compensation="least_squares", or a preset',
        )


def check_calibration_is_used(options: PruneFields) -> None:
    """Refuse text that nothing looks at: only some ways of choosing do; healing distils on it anyway."""
    if refits(options, calibrated=True) or options.fairness is not None or options.healing is not None:
        return
    if options.pruning_type == "EXPERTS":
        return
    if not options.prunes_neurons and not selects_layers_by_text(options):
        raise ContradictionError(
            f'calibration: pruning_type "{options.pruning_type}" chooses by weights; '
            'give compensation "least_squares" too, or leave calibration out',
            guide=f"pruning_type {options.pruning_type} chooses by weights: calibration is not used without "
            'compensation="least_squares"',
        )
    if options.neuron_selection_method in BY_WEIGHTS_ALONE:
        raise ContradictionError(
            f'calibration: neuron_selection_method "{options.neuron_selection_method}" chooses by weights; '
            'take "MAW", "PPM" or "CFSP", give compensation "least_squares" too, or leave calibration out',
            guide="Data-driven pruning with dataloader is only supported for the MAW method. "
            f"Got neuron_selection_method='{options.neuron_selection_method}'. "
            "Please use neuron_selection_method='MAW' or remove the dataloader parameter.",
        )


def check_statistics(options: PruneFields, *, calibrated: bool) -> None:
    """Refuse to keep statistics that nothing gathers."""
    gathered = refits(options, calibrated=calibrated) or options.unequal_widths
    if options.keep_statistics and not (gathered or options.fairness is not None):
        raise ContradictionError(
            "keep_statistics keeps what a refit of neurons or heads measured: it needs compensation "
            '"least_squares" or allocation "allocated", and no pruning_type "DEPTH"',
            guide='keep_statistics needs compensation="least_squares" or allocated widths',
        )


def check_beside_plan(options: PruneFields, *, calibrated: bool) -> None:
    """Refuse what an earlier plan has settled, and text that nothing but healing could look at."""
    _refuse(
        (name for name in SETTLED_BY_PLAN if is_chosen(options, name)), "not beside plan, which settles it"
    )
    if options.allocation == "searched":
        raise ContradictionError('allocation "searched": not beside plan; it judges on calibration text')
    if calibrated and options.healing is None:
        raise ContradictionError(
            "calibration: beside plan it is used for healing only",
            guide="calibration text beside a plan is only for healing: leave it out to apply the plan, or "
            "leave out the plan to prune anew",
        )


def check_own_text(options: OwnText, *, texts: bool) -> None:
    """Refuse text beside a model that writes all of it, and a share of its own beside nothing."""
    if options.calibration is not None and texts:
        raise ContradictionError(
            'calibration {"source": "model"}: the model writes all of the text; give mix_self to add its own '
            "to yours"
        )
    if options.mix_self is not None and not texts:
        raise ContradictionError(
            "mix_self adds the model's own text to calibration text, and there is none: give some, or "
            'calibration {"source": "model"}'
        )


def chooses_by_text(options: PruneFields) -> list[str]:
    """What makes the choice, or the refit, look at calibration text, as it was written: fairness apart."""
    return [name for name in _needs(options, planned=False, healed=False) if name != "fairness"]


def refits(options: PruneFields, *, calibrated: bool) -> bool:
    """Whether what stays is refitted, because it is asked for or by the preset."""
    by_preset = options.preset != "guide" and options.pruning_type != "EXPERTS"
    return options.compensation != "none" or (by_preset and calibrated)


def scores_neurons_by_text(options: PruneFields) -> bool:
    """Whether neurons are chosen by a score that calibration text, if there is any, has a part in."""
    return options.prunes_neurons and options.neuron_selection_method not in (*BY_WEIGHTS_ALONE, "OBS")


def selects_layers_by_text(options: PruneFields) -> bool:
    """Whether layers are chosen by what calibration text measures."""
    return options.layer_selection_method in ("importance", "greedy_perplexity")


def is_chosen(options: PruneFields, name: str) -> bool:
    """Whether a field differs from its default."""
    return bool(getattr(options, name) != default_of(options, name))


def default_of(options: PruneFields, name: str) -> Any:
    """What a field says if nothing is said."""
    return type(options).model_fields[name].default


def _refuse(names: Iterable[str], reason: str) -> None:
    listed = ", ".join(names)
    if listed:
        raise ContradictionError(f"{listed}: {reason}")
