"""`make fuzz`: requests made from the OpenAPI document against a real service, one by one and in sequences.

Every check of schemathesis but positive_data_acceptance: a well-formed job may name a model, a job or a suite
that is not there. `DELETE /v1/keys/{id}` is left out, because it would revoke the key of the run, and
`/readyz`, which may say 503 by right. `tests/api/test_schema_fuzzing.py` is the bounded form.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny import write_tiny_llama

START_SECONDS = 300
EXCLUDED_CHECKS = "positive_data_acceptance"
LEFT_OUT = r"^/readyz$"
REVOKE = "revoke_key_v1_keys__key_id__delete"
#: Longer than a request may ask to be held.
ANSWER_SECONDS = 75


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """A service with one tiny model; its URL and its admin key."""
    data = folder / "data"
    write_tiny_llama(data / "models" / "tiny")
    clean = {name: text for name, text in os.environ.items() if not name.startswith("OPTIPFAIR_")}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(data)]
    output = folder / "service.out"
    with output.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**clean, "OPTIPFAIR_SHORT_WORKERS": "0"}
        )
    try:
        yield _url(output, process), (data / "admin.key").read_text().strip()
    finally:
        process.terminate()
        process.wait(60)


def _url(output: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        ready = [line for line in output.read_text().splitlines() if line.startswith("ready: ")]
        if ready:
            return ready[0].split()[1]
        time.sleep(0.2)
    raise SystemExit(f"the service did not start:\n{output.read_text()}")


def fuzz(url: str, key: str, phases: str, seconds: int, seed: int | None) -> int:
    """Run schemathesis for so long; its exit code, which is 0 if every check held."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--max-time", str(seconds)]
    command += ["--exclude-checks", EXCLUDED_CHECKS, "--phases", phases]
    command += ["--exclude-path-regex", LEFT_OUT, "--request-timeout", str(ANSWER_SECONDS)]
    command += ["--wait-for-schema", str(ANSWER_SECONDS)]  # making the document takes its time
    command += ["--continue-on-failure", "--exclude-operation-id", REVOKE]
    command += ["--seed", str(seed)] if seed is not None else []
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Start a service and fuzz it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="optipfair-fuzz-") as folder, service(Path(folder)) as (url, key):
        # two runs, because the first would leave no time for sequences of requests
        codes = [
            fuzz(url, key, phases, max(given.seconds // 2, 1), given.seed)
            for phases in ("examples,coverage,fuzzing", "stateful")
        ]
        return max(codes)


if __name__ == "__main__":
    sys.exit(main())
