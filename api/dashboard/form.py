"""The form that builds a job: from its fields to the body of POST /v1/jobs, and back from a job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from api.dashboard.words import SIZES
from api.problem import Problem, field_error, invalid

Form = Mapping[str, Sequence[str]]
KINDS = ("prune", "importance", "bias", "evaluate", "analyze")
GATES = 3
MAX_GATES = 32
_WHOLE = ("target_parameters", "target_bytes", "num_layers_to_remove")
_TEXTS = {"prune": ("calibration", "evaluation"), "importance": ("calibration",), "evaluate": ("text",)}
_PLAIN = ("preset", "pruning_type", "neuron_selection_method", "compensation", "layer_selection_method")


def one(form: Form, name: str) -> str:
    """A field's text, without the blanks around it."""
    return form.get(name, [""])[0].strip()


def request_of(form: Form) -> dict[str, Any]:
    """The body that the form stands for; what is left empty is left out.

    Raises:
        Problem: 422 for text that is no number, label, pair or JSON where one is expected.
    """
    kind = one(form, "kind") or "prune"
    spec: dict[str, Any] = {"model": reference(form, "model")}
    if kind == "prune":
        spec |= _prune(form)
    if kind == "bias":
        spec |= _bias(form)
    if kind in ("bias", "evaluate") and one(form, "baseline"):
        spec["baseline"] = reference(form, "baseline")
    if kind == "evaluate" and one(form, "timing"):
        spec["timing"] = True
    for name in _TEXTS.get(kind, ()):
        if (text := _text(form, name)) is not None:
            spec[name] = text
    body: dict[str, Any] = {"kind": kind, "spec": spec | _more(form)}
    labels, gates = pairs_of(one(form, "labels"), "labels"), _gates(form)
    body |= {name: value for name, value in (("labels", labels), ("gates", gates)) if value}
    return body | ({"reuse": True} if one(form, "reuse") else {})


def reference(form: Form, name: str) -> dict[str, str]:
    """A model as `local:NAME`, `upload:ID`, `job:ID` or, with two fields more, `hub`."""
    source, _, value = one(form, name).partition(":")
    if source == "hub":
        return {"source": "hub", "id": one(form, f"{name}_hub"), "revision": one(form, f"{name}_revision")}
    field = {"local": "name", "upload": "id", "job": "job_id"}.get(source)
    if field is None:
        raise _wrong(f"spec.{name}", "Choose a model.")
    return {"source": source, field: value}


def _prune(form: Form) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: one(form, name) for name in _PLAIN if one(form, name)}
    if one(form, "size"):
        name = one(form, "size_name")
        if name not in SIZES:
            raise _wrong("spec", "Choose what the size counts.")
        chosen[name] = _number(f"spec.{name}", one(form, "size"), whole=name in _WHOLE)
    return chosen


def _bias(form: Form) -> dict[str, Any]:
    if suite := one(form, "suite"):
        source, _, value = suite.partition(":")
        if source == "catalogue":
            return {"suites": [value]}
        return {"suite": value if source == "local" else {"source": "upload", "id": value}}
    lines = [line for line in one(form, "prompt_pairs").splitlines() if line.strip()]
    pairs = [[part.strip() for part in line.split("|")] for line in lines]
    for place, pair in enumerate(pairs):
        if len(pair) != 2:
            raise _wrong(f"spec.prompt_pairs.{place}", "A line holds two prompts, with | between them.")
    return {"prompt_pairs": pairs} if pairs else {}


def _text(form: Form, name: str) -> dict[str, Any] | None:
    source, _, value = one(form, name).partition(":")
    if source == "typed":
        paragraphs = [part.strip() for part in one(form, f"{name}_typed").split("\n\n")]
        return {"texts": [part for part in paragraphs if part]}
    if source == "local":
        return {"source": "local", "name": value}
    return {"source": "upload", "id": value} if source == "upload" else None


def _more(form: Form) -> dict[str, Any]:
    text = one(form, "more")
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong("more", f"This is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _wrong("more", 'Give further fields as a JSON object, as {"verify": "structure"}.')
    return found


def pairs_of(text: str, place: str) -> dict[str, str]:
    """Names with values, written as `team=nlp, run=nightly` or one a line."""
    found = {}
    for part in text.replace("\n", ",").split(","):
        key, sign, value = part.partition("=")
        if not part.strip():
            continue
        if not sign:
            raise _wrong(place, f"{part.strip()!r} has no value: write it as name=value.")
        found[key.strip()] = value.strip()
    return found


def _gates(form: Form) -> list[dict[str, Any]]:
    gates = []
    for place in range(gate_rows(form)):
        metric = one(form, f"gate_metric_{place}")
        ends = {end: one(form, f"gate_{end}_{place}") for end in ("min", "max")}
        if not metric and not any(ends.values()):
            continue
        bounds = {end: _number(f"gates.{place}.{end}", text) for end, text in ends.items() if text}
        gates.append({"metric": metric, **bounds})
    return gates


def gate_rows(form: Form) -> int:
    """How many rows of gates the form has: a few, or as many as the job had that it is made from."""
    filled = [place for place in range(MAX_GATES) if one(form, f"gate_metric_{place}")]
    return max([GATES, *(place + 1 for place in filled)])


def _number(place: str, text: str, *, whole: bool = False) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise _wrong(place, f"{text!r} is not a number.") from None
    return int(value) if value.is_integer() and (whole or abs(value) < 1e15) else value


def _wrong(place: str, detail: str) -> Problem:
    return invalid([field_error(["body", *place.split(".")], detail, "form")])


def form_of_job(kind: str, spec: Mapping[str, Any], labels: Mapping[str, str], gates: Sequence[Any]) -> Form:
    """The fields for a job like one that there is; what has no field of its own stands in `more`."""
    rest = {name: value for name, value in spec.items() if value is not None}
    found: dict[str, str] = {"kind": kind, "labels": ", ".join(f"{k}={v}" for k, v in labels.items())}
    found["size"] = ""  # the form's own proposal is for new jobs
    for name in ("model", "baseline"):
        found |= _fields_of_model(name, rest.pop(name, None))
    for name in (*_PLAIN, "suite"):
        if isinstance(rest.get(name), str):
            found[name] = ("local:" if name == "suite" else "") + rest.pop(name)
    if len(rest.get("suites") or ()) == 1:
        found["suite"] = f"catalogue:{rest.pop('suites')[0]}"
    for name in SIZES:
        if name in rest:
            found |= {"size_name": name, "size": _exactly(rest.pop(name))}
    for place, gate in enumerate(gates):
        found[f"gate_metric_{place}"] = gate["metric"]
        found |= {
            f"gate_{end}_{place}": _exactly(gate[end]) for end in ("min", "max") if gate.get(end) is not None
        }
    found["more"] = json.dumps(rest, ensure_ascii=False, indent=2) if rest else ""
    return {name: [value] for name, value in found.items()}


def _exactly(value: float) -> str:
    """A number with all its digits, and without a fraction that says nothing."""
    return repr(int(value) if float(value).is_integer() else value)


def _fields_of_model(name: str, model: Mapping[str, Any] | None) -> dict[str, str]:
    if not model:
        return {}
    source = str(model["source"])
    if source == "hub":
        return {name: "hub:", f"{name}_hub": model["id"], f"{name}_revision": model["revision"]}
    field = {"local": "name", "upload": "id", "job": "job_id"}.get(source, "")
    return {name: f"{source}:{model.get(field, '')}"}
