"""A checkpoint that is larger than most machines' memory, pruned by a job of the embedded service.

    python -m benchmarks.large.job --folder FOLDER [--shape 7b] [--layers 4] [--memory BYTES] [--keep]

Makes a random bf16 checkpoint of the shape (7b: Llama-7B's, 14 GB) in the service's models folder, starts
`optipfair-service serve` over it, and posts a prune job that takes 30 % of the neurons of four layers, evenly
spread. Takes the room of three such checkpoints under FOLDER, which is removed unless it shall be kept.

Reported: how the service said that it would be carried out, the job's seconds by stage (`cp -r` of the
checkpoint in the same run for comparison), and the peaks of private memory (RssAnon, sampled every 20 ms:
pages of mapped files don't count), of the engine with all that it starts, and of the whole service. Exit
code 1 if the job does not succeed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from sides import processor
from streaming_vs_optipfair import GB, SHAPES, make_checkpoint, warm

from tests.service import harness
from tests.service.harness import Service, running, wait_for

#: Hashing a new model of this size, or pruning it, takes a while on a machine that does other things, too.
PATIENCE_SECONDS = 3600.0
USUAL = {
    "OPTIPFAIR_LEASE_SECONDS": "60",
    "OPTIPFAIR_HEARTBEAT_SECONDS": "10",
    "OPTIPFAIR_THREADS": str(os.cpu_count()),
    "OMP_NUM_THREADS": str(os.cpu_count()),
}


@dataclass
class Peaks:
    """The most private memory in bytes, of the engine's group and of all of the service's processes."""

    engine: int = 0
    service: int = 0


@contextmanager
def private_memory(service: Service) -> Iterator[Peaks]:
    """Look at the processes again and again while the block lasts."""
    peaks, over = Peaks(), threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            sizes = {pid: private_of(pid) for pid in service.pids()}
            engine = service.engine_pid()
            group = [pid for pid in sizes if engine is not None and group_of(pid) == engine]
            peaks.engine = max(peaks.engine, sum(sizes[pid] for pid in group))
            peaks.service = max(peaks.service, sum(sizes.values()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def private_of(pid: int) -> int:
    """RssAnon of a process, 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def group_of(pid: int) -> int | None:
    """The process group, None if the process is gone."""
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def copied(source: Path, target: Path) -> float:
    """Seconds that a copy of the checkpoint takes, to the disk."""
    warm(source)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def stages(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds between the first and the last word of each stage."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event["type"] == "progress":
            moment = _seconds(event["time"])
            found.setdefault(event["data"]["stage"], []).append(moment)
    return {stage: round(moments[-1] - moments[0], 1) for stage, moments in found.items()}


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--layers", type=int, default=4, help="how many layers are pruned")
    parser.add_argument("--memory", type=int, help="OPTIPFAIR_MEMORY_BYTES; unless given, the machine's")
    parser.add_argument("--skip-copy", action="store_true", help="don't time cp -r, which takes room")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint for another run")
    options = parser.parse_args()
    print(f"{processor()}; {psutil.virtual_memory().total / GB:.1f} GB; load {os.getloadavg()[0]:.1f}")
    data = options.folder / "data"
    source = data / "models" / "large"
    try:
        if not (source / "model.safetensors.index.json").exists():
            make_checkpoint(source, options.shape)
        return measure(data, source, options)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)


def measure(data: Path, source: Path, options: argparse.Namespace) -> int:
    """Run the job and print what it took."""
    size = sum(file.stat().st_size for file in source.iterdir())
    copy = None if options.skip_copy else copied(source, options.folder / "copy")
    count = SHAPES[options.shape]["layers"]
    chosen = [number * count // options.layers for number in range(options.layers)]
    spec = {"model": {"source": "local", "name": "large"}, "pruning_percentage": 30, "layer_indices": chosen}
    harness.START_SECONDS = PATIENCE_SECONDS  # a worker knows its models' hashes before it takes a job
    limit = {} if options.memory is None else {"OPTIPFAIR_MEMORY_BYTES": str(options.memory)}
    with running(data, **USUAL, **limit) as service:
        wait_for(
            lambda: "large" in str(service.get("/v1/models")), "the model to be listed", PATIENCE_SECONDS
        )
        said = service.client.post("/v1/jobs:validate", json={"kind": "prune", "spec": spec}).json()
        with private_memory(service) as peaks:
            job_id = service.post_job(spec=spec)
            job = service.wait_end(job_id, PATIENCE_SECONDS)
        metrics = service.get(f"/v1/jobs/{job_id}/metrics") if job["state"] == "succeeded" else {}
        events = service.client.get(f"/v1/jobs/{job_id}/events").json()["items"]
    seconds = _seconds(job["finished_at"]) - _seconds(job["started_at"])
    print(f"{options.shape}: {size / GB:.2f} GB, layers {chosen} of {count}: {job['state']} {job['error']}")
    print(f"validate: {said['execution']}, {said['peak_memory_bytes'] / GB:.2f} GB: {said['reason']}")
    print(f"carried out: {job['execution']}: {job['execution_reason']}; {metrics.get('reload_check')}")
    beside = "" if copy is None else f", {seconds / copy:.2f} × cp -r and sync ({copy:.1f} s)"
    print(f"job {seconds:.1f} s{beside}; {stages(events)}")
    print(f"private memory: engine {peaks.engine / GB:.2f} GB, the whole service {peaks.service / GB:.2f} GB")
    return 0 if job["state"] == "succeeded" else 1


if __name__ == "__main__":
    raise SystemExit(main())
