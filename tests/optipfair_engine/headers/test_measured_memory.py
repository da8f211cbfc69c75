"""What prunes are estimated to take of memory is what they take, within the factor that the docs state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optipfair_engine.headers import estimate_prune, estimate_streamed, inspect_model_folder
from optipfair_engine.options.prune import PruneOptions
from optipfair_engine.workflow.prune.route import spec_of
from tests.tiny import byte_tokenizer, tiny_model, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: docs/operations.md: the estimates are good to a factor of about two.
FACTOR = 2.0
TEXTS = [
    f"Sample {i}: " + "what calibration measures takes memory, and so does the model. " * 4 for i in range(32)
]
REFIT = {"neuron_selection_method": "OBS", "compensation": "least_squares", "max_length": 64}
CASES: dict[str, dict[str, Any]] = {
    "static, streamed": {"execution": "streamed"},
    "calibrated, layer by layer": {"execution": "streamed", **REFIT},
    "calibrated, in memory": {"execution": "memory", **REFIT},
}
#: Prunes in forks of a process that has all loaded, as a worker does; prints their peaks. A streamed one
#: is counted without pages of mapped files, which the system may take away; one in memory is counted whole.
CODE = """
import json, multiprocessing, sys, threading
from pathlib import Path
import torch, transformers.models.llama.modeling_llama
from optipfair_engine.options.prune import PruneOptions
import optipfair_engine.workflow.prune.in_memory, optipfair_engine.workflow.prune.out_of_core
import optipfair_engine.checkpoints.verify
from optipfair_engine.workflow import prune_checkpoint

def taken(execution):
    lines = Path("/proc/self/status").read_text().splitlines()
    name = "VmRSS:" if execution == "memory" else "RssAnon:"
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def prune(source, output, asked, texts, answer):
    torch.set_num_threads(1)
    seen, over = [0], threading.Event()
    def look():
        while not over.wait(0.005):
            seen.append(taken(asked["execution"]))
    thread = threading.Thread(target=look)
    thread.start()
    prune_checkpoint(source, output, PruneOptions(**asked), calibration_texts=texts)
    over.set()
    thread.join()
    answer.put(max(seen))

source, scratch = Path(sys.argv[1]), Path(sys.argv[2])
cases, texts = json.loads(sys.argv[3]), json.loads(sys.argv[4])
context, peaks = multiprocessing.get_context("fork"), {}
for number, (name, asked) in enumerate(cases.items()):
    answer = context.SimpleQueue()
    own = texts if "compensation" in asked else None
    process = context.Process(target=prune, args=(source, scratch / str(number), asked, own, answer))
    process.start()
    process.join()
    assert process.exitcode == 0, name
    peaks[name] = answer.get()
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 170 MB, whose weights count beside what any process takes; narrow, to be ordered quickly."""
    sizes = {"hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 4000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    model = tiny_model("llama", **sizes, **heads)
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "source", model, byte_tokenizer(TEXTS))


@pytest.fixture(scope="module")
def peaks(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Case → its peak of memory in bytes."""
    cases = {
        name: {"pruning_percentage": 30, "verify": "structure", **asked} for name, asked in CASES.items()
    }
    scratch = str(tmp_path_factory.mktemp("outputs"))
    command = [sys.executable, "-c", CODE, str(source), scratch, json.dumps(cases), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("case", CASES)
def test_a_prune_takes_what_it_is_estimated_to_take(source: Path, peaks: dict[str, int], case: str) -> None:
    options = PruneOptions(pruning_percentage=30, **CASES[case])
    spec = spec_of(options, calibration="compensation" in CASES[case], evaluation=False)
    if spec["calibration"]:
        spec["calibration"]["num_samples"] = len(TEXTS)
    estimate = estimate_prune if options.execution == "memory" else estimate_streamed
    expected = estimate(inspect_model_folder(source), spec).peak_memory_bytes
    assert expected / FACTOR <= peaks[case] <= expected * FACTOR
