"""Which stages a job will pass, and what each tends to cost.

A stage may come more than once (perplexity before and after): each time is a stage of its own here. Guesses
are seconds for a small model on two ordinary cores; a worker learns by what factor it differs, and a job's
own pace scales what is still ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.admission.workload import bias_work
from jobs.rows import JsonObject
from jobs.specs import BiasSpec
from optipfair_engine.options.suites import entry_of, pair_suites
from worker.attempt.amounts import Amounts, Reference
from worker.attempt.costs import Stage

#: The stage in which an attempt hashes and stores the files that the engine has left.
STORE = "store"
#: Parameters of the model that the guesses are for.
_GUESSED_FOR = 134_515_008
_FIGURE_SECONDS = 0.8
#: What storing takes: of a report with its tables, of a model.
_REPORT_STORED, _MODEL_STORED = 0.1, 0.4
_DEFAULT_LENGTH, _CHARACTERS_PER_TOKEN = 512, 4.0
#: The first pass has a price of its own, however little it reads.
_LEAST_TEXT = 0.1
_DEFAULT_COUNTS = {"num_samples": 128, "num_windows": 40}
#: Of the default amount of text; of bias, of a pair or of an item; of timing, of a prompt.
_GUESSES = {
    "load": 3.0,
    "generate": 150.0,
    "calibrate": 60.0,
    "importance": 30.0,
    "select": 40.0,
    "evaluate": 11.0,
    "timing": 12.0,
    "judged": 20.0,
    "prune": 2.0,
    "search": 300.0,
    "reconstruct": 120.0,
    "heal": 60.0,
    "pairs": 1.1,
    "items": 0.35,
    "estimate": 10.0,
    "cause": 90.0,
    "plot": 3.5,
    "export": 6.0,
    "save": 15.0,
    "report": 1.8,
}
#: Loops over layers, but no passes over text, cost little where nothing is calibrated; nor is a model built.
_STATIC_GUESSES = {"select": 1.0, "save": 8.0}
#: What takes as long as it may take, and what takes no longer for a larger model.
_LIMITED = {"heal": "healing", "reconstruct": "reconstruction", "search": "search"}
_OF_ANY_MODEL = ("plot", "report", *_LIMITED)
_TOKENS_OF_ITEM, _DEFAULT_PAIRS, _TIMED_PROMPTS, _TIMED_TOKENS = 25, 7, 2, 50
#: Of the items of this project's own suites, the share that are rewordings.
_REWORDINGS = 1 / 8


@dataclass(frozen=True)
class _Part:
    """A stage by its name in reports, what kind of work it is, how much, and with which model."""

    name: str
    amount: float = 1.0
    work: str | None = None
    model: str = "model"

    @property
    def kind(self) -> str:
        return self.work or self.name


def stages_of(kind: str, spec: Mapping[str, Any], amounts: Amounts | None = None) -> list[Stage]:
    """The stages that a job passes, in order; a pipeline's are named `step:stage`."""
    known = amounts or Amounts()
    if kind == "pipeline":
        steps = [(f"{step['name']}:", step["kind"], step["spec"]) for step in spec["steps"]]
    else:
        steps = [("", kind, spec)]
    models = {before.rstrip(":"): part.get("model") for before, _, part in steps}
    stages = [stage for before, of, part in steps for stage in _stages(before, of, part, known, models)]
    writes = sum(of == "prune" for _, of, _ in steps)
    return [*stages, Stage(STORE, f"{kind}/{STORE}/1", _REPORT_STORED + writes * _MODEL_STORED)]


def _stages(
    before: str, kind: str, spec: Mapping[str, Any], known: Amounts, models: Mapping[str, Reference | None]
) -> Iterator[Stage]:
    variant = f"{kind}+calibration" if kind == "prune" and spec.get("calibration") else kind
    guesses = _GUESSES if variant != "prune" else {**_GUESSES, **_STATIC_GUESSES}
    seen: dict[str, int] = {}
    for part in _parts(kind, spec, known):
        work = part.kind
        seen[work] = seen.get(work, 0) + 1
        fixed = _fixed_cost(part.name, kind, spec)
        size = known.size_of(_origin(spec.get(part.model), models))
        scale = 1.0 if size is None or work in _OF_ANY_MODEL else size / _GUESSED_FOR
        guess = guesses[work] * part.amount * scale if fixed is None else fixed
        key = f"{variant}/{work}/{seen[work]}"
        yield Stage(before + part.name, key, guess, learns=fixed is None, scales=work not in _LIMITED)


def _origin(reference: Reference | None, models: Mapping[str, Reference | None]) -> Reference | None:
    """A model that has a size already; that of a pipeline's step is about its own model's."""
    while reference is not None and reference.get("source") == "step":
        reference = models.get(str(reference["name"]))
    return reference


def _fixed_cost(name: str, kind: str, spec: Mapping[str, Any]) -> float | None:
    """What the spec itself tells of a stage's cost, if it does."""
    if name in _LIMITED and spec.get(_LIMITED[name]):
        return float(spec[_LIMITED[name]]["max_seconds"])
    if kind == "bias" and name == "plot" and spec.get("visualization_types"):
        # how many layers the model has isn't known here: "all" counts as two dozen
        figures = bias_work(BiasSpec.model_validate(spec), {}, 24).figures
        return _GUESSES["plot"] + figures * _FIGURE_SECONDS
    return None


def _parts(kind: str, spec: Mapping[str, Any], known: Amounts) -> Iterator[_Part]:
    if kind == "prune":
        return _of_prune(spec)
    if kind == "bias":
        return _of_bias(spec, known.suites)
    return _of_evaluate(spec) if kind == "evaluate" else _of_analysis(kind, spec)


def _of_analysis(kind: str, spec: Mapping[str, Any]) -> Iterator[_Part]:
    yield _Part("load")
    if kind == "importance":
        yield _Part("importance", _text_amount(spec, "calibration"))
    yield _Part("plot")


def _text_amount(spec: Mapping[str, Any], name: str) -> float:
    """How much text a stage reads, as a multiple of the default."""
    text = spec.get(name) or {}
    count = "num_samples" if name == "calibration" else "num_windows"
    whole = _DEFAULT_COUNTS[count]
    # a text gives some windows of its own: of a few short ones there are fewer than may be read
    windows = text.get(count) or whole
    if text.get("texts") is not None:
        tokens = sum(map(len, text["texts"])) / _CHARACTERS_PER_TOKEN
        windows = min(windows, max(1.0, tokens / _DEFAULT_LENGTH))
    length = text.get("max_length") or spec.get("max_length") or _DEFAULT_LENGTH
    return max(float(windows) / whole * length / _DEFAULT_LENGTH, _LEAST_TEXT)


def _of_prune(spec: Mapping[str, Any]) -> Iterator[_Part]:
    text = spec.get("calibration") or {}
    yield _Part("load")
    if text.get("source") == "model" or text.get("mix_self"):
        yield _Part("generate", _text_amount(spec, "calibration"))
    yield from _choosing(spec)
    if spec.get("allocation") == "searched":
        yield _Part("search")
    if spec.get("reconstruction"):
        yield _Part("reconstruct")
    measured = [_Part("evaluate", _text_amount(spec, "evaluation"))] if spec.get("evaluation") else []
    yield from measured
    if text and spec.get("pruning_type") != "EXPERTS":
        yield from measured  # the static choice of the same size
    yield _Part("prune")
    if spec.get("healing"):
        yield from (*measured, _Part("heal"))
    yield from (*measured, _Part("plot"), _Part("save"))
    if spec.get("export"):
        yield _Part("export")


def _choosing(spec: Mapping[str, Any]) -> Iterator[_Part]:
    """What is done until there is a plan."""
    amount, fair = _text_amount(spec, "calibration"), spec.get("fairness") or {}
    if fair:
        pairs = len(fair.get("prompt_pairs") or ()) or _DEFAULT_PAIRS
        yield _Part("bias", pairs, "pairs")
    if spec.get("calibration"):
        by_layers = spec.get("layer_selection_method") == "importance" or _by_importance(spec)
        yield _Part("importance" if by_layers else "calibrate", amount)
    if not spec.get("plan"):
        yield from [_Part("select")] * (2 if fair else 1)
    if fair:
        yield _Part("evaluate", pairs / _DEFAULT_PAIRS, "judged")


def _by_importance(spec: Mapping[str, Any]) -> bool:
    """Whether the preset chooses layers by their importance."""
    preset = spec.get("preset", "guide") != "guide" and spec.get("pruning_type") == "DEPTH"
    return preset and spec.get("layer_indices") is None and spec.get("layer_selection_method") == "last"


def _of_bias(spec: Mapping[str, Any], suites: Mapping[str, JsonObject]) -> Iterator[_Part]:
    asked = list(_asked(spec, suites))
    for model in ("baseline", "model") if spec.get("baseline") else ("model",):
        yield _Part("load", model=model)
        yield from (_Part("bias", amount, work, model) for work, amount in asked)
    # of the model alone, not of the baseline
    if spec.get("patching"):
        yield from (_Part("estimate"), _Part("cause"))
    if spec.get("generation"):
        pairs = next((amount for work, amount in asked if work == "pairs"), 1.0)
        yield from (_Part("generate", 0.1 * pairs / _DEFAULT_PAIRS), _Part("bias", pairs, "pairs"))
    # figures of tokens are looked through for letters that no font has, and shown in the report
    yield from (_Part("plot"), _Part("save", 6.0 if spec.get("visualization_types") else 1.0, "report"))


def _asked(spec: Mapping[str, Any], suites: Mapping[str, JsonObject]) -> Iterator[tuple[str, float]]:
    """What a model is asked, in order: pairs of prompts, rewordings of them, items of suites."""
    named = BiasSpec.model_validate(spec).suites_asked(baseline=bool(spec.get("baseline")))
    if named:
        own = pair_suites(named)
        items = float(sum(entry_of(name).items for name in own))
        yield from [("pairs", items * (1 - _REWORDINGS)), ("pairs", items * _REWORDINGS)] if own else []
        others = (entry_of(name) for name in named if name not in own)
        yield from (("items", entry.items * entry.tokens / _TOKENS_OF_ITEM) for entry in others)
        return
    facts = suites.get(str(spec.get("suite")), {})
    kind, items = facts.get("kind"), float(facts.get("items", _DEFAULT_PAIRS))
    if kind in ("crows_pairs", "stereoset"):
        yield "items", items * entry_of(kind).tokens / _TOKENS_OF_ITEM
        return
    given = any(spec.get(name) is not None for name in ("prompt_pairs", "template", "suite"))
    attributes = len(spec.get("attributes") or ())
    yield "pairs", float(len(spec.get("prompt_pairs") or ()) or attributes * (attributes - 1) // 2 or items)
    if spec.get("control_pairs") or not given:
        yield "pairs", float(len(spec.get("control_pairs") or ()) or _DEFAULT_PAIRS)


def _of_evaluate(spec: Mapping[str, Any]) -> Iterator[_Part]:
    models = ("model", "baseline") if spec.get("baseline") else ("model",)
    dynamic = bool(spec.get("dynamic"))
    yield from (_Part("load", model=model) for model in models)
    texts = [_Part("evaluate", _text_amount(spec, "text"), model=model) for model in models]
    prompts = len(spec.get("prompts") or ()) or _TIMED_PROMPTS
    tokens = spec.get("max_new_tokens") or _TIMED_TOKENS
    timed = prompts * tokens / _TIMED_TOKENS
    if spec.get("text"):
        yield from texts
    if spec.get("timing"):
        yield _Part("evaluate", timed * len(models), "timing")
    if spec.get("text") and dynamic:
        yield from (texts[0], *texts)
    if spec.get("timing") and dynamic:
        yield _Part("evaluate", timed * (1 + len(models)), "timing")
    yield _Part("plot")
