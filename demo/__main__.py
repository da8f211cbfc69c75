"""``make demo``: prune a real model through the service, from a POST to a model that transformers loads."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.jobs import prune_job
from demo.topics import calibration_text, evaluation_text, excerpts
from service.client import OptipfairClient
from service.client.display import ProgressDisplay
from service.client.types import Job

HOME = Path(".demo")
MODEL = "SmolLM2-135M-Instruct"
PROMPT = "The three largest cities of France are"
START_SECONDS = 60
MAX_RATIO = 1.5
#: Excerpts that are calibrated on, and that perplexity is measured on: enough to see the damage, and quick.
CALIBRATION_TEXTS, EVALUATION_TEXTS = 32, 6
#: More than the 512 tokens that one excerpt may have.
EXCERPT_CHARACTERS = 3_000
console = Console(highlight=False)


def main() -> int:
    """Run the demo; 0 when every step held."""
    started = time.monotonic()
    dense = ensure_model()
    with ThreadPoolExecutor(1) as aside:  # a core is free while the service starts, and while it stops
        said = [aside.submit(sentence, dense)]
        with service() as client:
            job = prune(client)
            pruned = fetch(client, job)
            metrics = client.metrics(job["id"])
            said.append(aside.submit(sentence, pruned))
        step("Loading both with AutoModelForCausalLM.from_pretrained")
        sentences = [future.result() for future in said]
    compare([dense, pruned], sentences, job, metrics)
    console.print(f"The demo took {time.monotonic() - started:.0f} s.")
    return 0


def ensure_model(home: Path = HOME) -> Path:
    """The demo model as a safetensors folder, made once from the GGUF file that a package carries."""
    target = home / "models" / MODEL
    if not target.exists():
        step(f"Writing {MODEL} as bf16 safetensors (once)")
        run([bin_path("optipfair"), "demo-model", str(target)])
    return target


@contextmanager
def service(home: Path = HOME) -> Iterator[OptipfairClient]:
    """A service of our own on a free port, stopped at the end whatever happens."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    step(f"Starting the service: optipfair-service serve --port {port} --data-dir {home / 'data'}")
    env = {**os.environ, "OPTIPFAIR_MODELS_DIR": str((home / "models").resolve())}
    log = (home / "service.log").open("w")
    command = [bin_path("optipfair-service"), "serve", "--port", str(port), "--data-dir", str(home / "data")]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        wait_until_ready(base_url, process, home / "service.log")
        with OptipfairClient(base_url, (home / "data" / "admin.key").read_text()) as client:
            yield client
    finally:
        step("Stopping the service")
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll /readyz until a job would run."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"The service stopped at its start; see {log}")
        try:
            with urllib.request.urlopen(f"{base_url}/readyz", timeout=5):  # noqa: S310 - our own loopback service
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit(f"The service was not ready after {START_SECONDS} s; see {log}")


def job_request() -> dict[str, Any]:
    """What is POSTed: 20 % of the MLP neurons go, chosen by windows of Python's own manual and refitted."""
    spec = {
        "pruning_type": "MLP_GLU",
        "preset": "recommended",
        "allocation": "uniform",  # equal widths, so that plain transformers loads the result
        "calibration": {"texts": excerpts(calibration_text(), CALIBRATION_TEXTS, EXCERPT_CHARACTERS)},
        "evaluation": {"texts": excerpts(evaluation_text(), EVALUATION_TEXTS, EXCERPT_CHARACTERS)},
    }
    job = prune_job(MODEL, 20, spec, max_ratio=MAX_RATIO, labels={"demo": "yes"})
    # the same work is not done twice: a second demo gets the first one's result
    return {**job, "reuse": True}


def prune(client: OptipfairClient) -> Job:
    """POST the job and show its progress until it has ended."""
    job = client.submit(job_request())
    step(f"POST /v1/jobs: job {job['id']} is {job['state']}")
    if job["reused_from"]:
        console.print(f"   with the result of job {job['reused_from']}: same model, same spec, same code")
        return job
    with ProgressDisplay() as display:
        job = client.wait(job["id"], on_change=display.job)
    if job["state"] != "succeeded":
        raise SystemExit(f"The job ended as {job['state']}: {job['error']}")
    return job


def fetch(client: OptipfairClient, job: Job) -> Path:
    """Download every artifact and check it against the manifest."""
    folder = HOME / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    files = client.download(job["id"], folder)
    step(f"Downloaded {len(files)} files into {folder}, each with the SHA-256 that the service names")
    (folder / "SHA256SUMS").write_text(client.manifest(job["id"]))
    if tool := shutil.which("sha256sum"):
        run([tool, "--check", "--quiet", "SHA256SUMS"], cwd=folder)
        step("sha256sum -c SHA256SUMS: every file is as the manifest says")
    return folder


def compare(folders: list[Path], sentences: list[str], job: Job, metrics: dict[str, Any]) -> None:
    """Print a small table of both models, and what the job found."""
    table = Table("", "dense", "pruned")
    table.add_row("parameters", f"{metrics['original_parameters']:,}", f"{metrics['pruned_parameters']:,}")
    table.add_row("bytes of weights", *(f"{size(folder):,}" for folder in folders))
    table.add_row("perplexity", f"{metrics['perplexity_dense']:.2f}", f"{metrics['perplexity_pruned']:.2f}")
    table.add_row("job, seconds", "", f"{metrics['seconds']:.1f}")
    table.add_row("sentence", *sentences)
    console.print(table)
    static = metrics["perplexity_static_same_size"]
    console.print(
        f"Verdict of the gate perplexity_ratio <= {MAX_RATIO}: {job['verdict']}.\n"
        f"Static MAW, by weights alone, gives a perplexity of {static:.0f} at the same size: it\n"
        f"damages this model, so calibrate.\n"
        f"The files are in {folders[1]}; its *.png are the plots."
    )


def sentence(folder: Path) -> str:
    """What the model in the folder says after the prompt, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def size(folder: Path) -> int:
    """Bytes of the folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.name.startswith("model"))


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bin_path(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).parent / name)


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a command; its failure ends the demo with its output shown."""
    if subprocess.run(command, cwd=cwd, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def step(text: str) -> None:
    """Say what happens now."""
    console.print(f"[bold]==>[/bold] {text}")


if __name__ == "__main__":
    sys.exit(main())
