"""Which way a prune takes, as a table of options and facts; and that asking loads no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optipfair_engine.errors import InvalidOptionError, ModelTooLargeError
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow.prune.route import Case, choose_route

PLAIN = Case()
TEXT = Case(calibration=True)
SMALL = Case(memory_bytes=2 * 10**9, memory_limit=10**9)
LARGE = replace(SMALL, memory_limit=4 * 10**9)
GGUF = Case(obstacle="weights are read tensor by tensor, and model.gguf holds none")
FAIR = {"prompt_pairs": [["the man", "the woman"]]}
DEPTH = {"pruning_type": "DEPTH", "num_layers_to_remove": 1}
OWN_TEXT = {"calibration": {"source": "model"}}


def options_of(asked: dict[str, Any]) -> PruneOptions:
    return PruneOptions(**{"verify": "structure", **asked})


@pytest.mark.parametrize(
    ("asked", "case", "way", "layerwise", "reason"),
    [
        ({}, PLAIN, "streamed", False, "by weights alone"),
        ({"verify": "none"}, PLAIN, "streamed", False, "by weights alone"),
        ({**DEPTH, "layer_selection_method": "first"}, PLAIN, "streamed", False, "by weights alone"),
        ({}, SMALL, "streamed", False, "by weights alone"),
        ({"verify": "logits"}, PLAIN, "memory", False, 'verify="logits" compares'),
        ({"dtype": "float16"}, PLAIN, "memory", False, "dtype float16"),
        ({"device": "cuda:1"}, PLAIN, "memory", False, "device cuda:1"),
        ({"compensation": "least_squares"}, PLAIN, "memory", False, 'compensation "least_squares"'),
        ({"neuron_selection_method": "CFSP"}, PLAIN, "memory", False, 'neuron_selection_method "CFSP"'),
        ({"allocation": "allocated"}, PLAIN, "memory", False, 'allocation "allocated"'),
        ({**DEPTH, "layer_selection_method": "importance"}, PLAIN, "memory", False, "importance"),
        ({}, TEXT, "memory", False, "calibration"),
        ({"healing": {"max_seconds": 5}}, TEXT, "memory", False, "calibration"),
        ({}, Case(evaluation=True), "memory", False, "perplexity"),
        ({}, GGUF, "memory", False, "model.gguf holds none"),
        ({}, replace(LARGE, calibration=True), "memory", False, "calibration"),
        ({}, replace(SMALL, calibration=True), "streamed", True, "2.00 GB of memory"),
        ({"verify": "logits"}, SMALL, "streamed", False, "there are 1.00 GB"),
        ({}, replace(SMALL, evaluation=True), "streamed", False, "there are 1.00 GB"),
        ({}, replace(SMALL, evaluation=True, calibration=True), "streamed", True, "there are 1.00 GB"),
        ({}, Case(calibration=True, work=True), "streamed", True, "work folder"),
        ({**OWN_TEXT, "execution": "streamed"}, TEXT, "streamed", True, "asked for"),
    ],
)
def test_the_way_is_chosen_from_options_and_facts(
    asked: dict[str, Any], case: Case, way: str, layerwise: bool, reason: str
) -> None:
    route = choose_route(options_of(asked), case)
    assert (route.execution, route.layerwise) == (way, layerwise)
    assert reason in route.reason


@pytest.mark.parametrize(
    ("execution", "case", "way", "layerwise"),
    [
        ("memory", PLAIN, "memory", False),
        ("memory", LARGE, "memory", False),
        ("streamed", PLAIN, "streamed", False),
        ("streamed", TEXT, "streamed", True),
        ("streamed", SMALL, "streamed", False),
    ],
)
def test_the_way_that_is_asked_for_is_taken(execution: Any, case: Case, way: str, layerwise: bool) -> None:
    route = choose_route(options_of({"execution": execution}), case)
    assert (route.execution, route.layerwise, route.reason) == (way, layerwise, "it was asked for")


def test_logits_are_given_up_only_for_want_of_memory() -> None:
    logits = options_of({"verify": "logits"})
    assert choose_route(logits, LARGE).verify == "logits"
    assert choose_route(logits, SMALL).verify == "structure"
    assert choose_route(logits, replace(SMALL, check_bytes=10**9)).verify == "logits"
    assert choose_route(logits, replace(SMALL, check_bytes=10**9 + 1)).verify == "structure"
    assert choose_route(options_of({"verify": "logits", "execution": "streamed"}), PLAIN).verify == "logits"
    assert choose_route(options_of({"verify": "none"}), replace(SMALL, calibration=True)).verify == "none"


@pytest.mark.parametrize(
    ("asked", "case", "message"),
    [
        ({"dtype": "float16"}, TEXT, "dtype float16"),
        ({"device": "cuda"}, TEXT, "device cuda"),
        ({"healing": {"max_seconds": 5}}, TEXT, "healing"),
        ({"fairness": FAIR}, TEXT, "fairness"),
        ({"compensation": "least_squares", "keep_statistics": True}, TEXT, "the work folder keeps them"),
        ({}, replace(TEXT, obstacle="the family is not known"), "the family is not known"),
        ({**DEPTH}, replace(TEXT, work=True), "depth pruning keeps no state"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_name(asked: dict[str, Any], case: Case, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"out of core.*{message}"):
        choose_route(options_of({**asked, "execution": "streamed"}), case)


def test_a_work_folder_is_never_ignored() -> None:
    with pytest.raises(InvalidOptionError, match="give calibration texts"):
        choose_route(options_of({}), Case(work=True))
    with pytest.raises(InvalidOptionError, match="in memory there is none"):
        choose_route(options_of({"execution": "memory"}), Case(work=True, calibration=True))


@pytest.mark.parametrize(
    ("asked", "case", "execution", "message"),
    [
        ({"dtype": "float32"}, SMALL, "auto", "dtype float32"),
        ({"fairness": FAIR}, replace(SMALL, calibration=True), "auto", "fairness"),
        ({}, replace(SMALL, streamed_bytes=10**9 + 1), "auto", "streamed it takes about 1.00 GB"),
        ({}, replace(SMALL, streamed_bytes=10**9 + 1), "streamed", "streamed it takes about 1.00 GB"),
        ({}, replace(SMALL, obstacle="the family is not known"), "auto", "the family is not known"),
        ({}, SMALL, "memory", "ask for execution streamed"),
        (OWN_TEXT, replace(SMALL, calibration=True), "auto", "writes itself .give calibration text"),
        (OWN_TEXT, replace(SMALL, calibration=True), "streamed", "needs all of it, token by token"),
    ],
)
def test_what_neither_way_can_do_is_too_large(
    asked: dict[str, Any], case: Case, execution: Any, message: str
) -> None:
    with pytest.raises(ModelTooLargeError, match=message):
        choose_route(options_of({**asked, "execution": execution}), case)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="execution"):
        options_of({"execution": "fast"})


def test_the_facts_are_read_off_headers_without_torch(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    code = (
        "import sys; from pathlib import Path;"
        "from optipfair_engine.options.prune import PruneOptions;"
        "from optipfair_engine.workflow.prune.route import Case, choose_route;"
        f"options, source = PruneOptions(), Path({str(tmp_path / 'model.gguf')!r});"
        "print(choose_route(options, Case.of(source, options, memory_limit=1)).execution,"
        " [name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "memory []"
