"""From a file to a verdict: what the verbs do, with the exit code of each outcome."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client.api import JUNIT, MARKDOWN, OptipfairClient
from service.client.errors import ClientError
from service.client.types import Job
from service.client.uploads import resolve

if TYPE_CHECKING:
    from service.client.display import ProgressDisplay

PASS, FAIL, INCONCLUSIVE, NOT_SUCCEEDED, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
_BY_VERDICT = {"pass": PASS, "none": PASS, "fail": FAIL}


@dataclass(frozen=True)
class Outputs:
    """Where the results go; None for what is not wanted."""

    download: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None

    def check(self) -> None:
        """Find out now, not after hours, that something can't be written.

        Raises:
            ClientError: naming the file.
        """
        for path in (self.markdown, self.junit):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise ClientError(f"{path} can't be written: its folder does not exist, or it is one")
        if self.download is not None and self.download.exists() and not self.download.is_dir():
            raise ClientError(f"{self.download} is no folder")


def read_request(path: str) -> dict[str, Any]:
    """The body of a job from a file, or from stdin for `-`.

    Raises:
        ClientError: it can't be read, or holds no JSON object.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ClientError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ClientError(f'{path} holds no JSON object; a job is one: {{"kind": …, "spec": {{…}}}}')
    return found


def with_uploads(client: OptipfairClient, path: str) -> dict[str, Any]:
    """The body of a job from a file, each `{"upload": "./path"}` in it uploaded; relative to the file."""
    folder = Path() if path == "-" else Path(path).parent
    request = read_request(path)
    if '"upload"' not in json.dumps(request):
        return request
    from service.client.display import ProgressDisplay

    with ProgressDisplay() as display:

        def upload(kind: str, where: Path) -> str:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", where.resolve().name).lstrip("._-")[:128] or kind
            return str(client.upload(kind, name, where, on_bytes=display.sent)["id"])

        return resolve(request, folder, upload)


def follow(client: OptipfairClient, job_id: str, outputs: Outputs) -> int:
    """Wait for a job's end with its progress shown, fetch and write what is wanted; the exit code.

    Ctrl-C leaves the job running.
    """
    try:
        from service.client.display import ProgressDisplay  # takes its time, in which Ctrl-C may come

        with ProgressDisplay() as display:
            job = client.wait(job_id, on_change=display.job)
            return conclude(client, job, outputs, display)
    except KeyboardInterrupt:
        line = f"the job is left as it is; to cancel it: optipfair-service cancel {job_id} --url {client.url}"
        print(line, file=sys.stderr, flush=True)
        return INTERRUPTED


def conclude(client: OptipfairClient, job: Job, outputs: Outputs, display: ProgressDisplay) -> int:
    """Print the verdict of an ended job, write its files; the exit code."""
    from service.client.display import print_verdict

    for path, media_type in ((outputs.markdown, MARKDOWN), (outputs.junit, JUNIT)):
        if path is not None:
            _write(path, client.verdict_as(job["id"], media_type))
    if outputs.download is not None and _has_files(job):
        client.download(job["id"], outputs.download, on_bytes=display.file)
    print_verdict(job, client.verdict(job["id"]), f"{client.url}/jobs/{job['id']}")
    return exit_code(job)


def _has_files(job: Job) -> bool:
    """Whether a job succeeded, or is a pipeline of which some steps did; services of before don't say."""
    return job["state"] == "succeeded" or bool(job.get("kept_steps"))


def exit_code(job: Job) -> int:
    """What an ended job means to a script."""
    if job["state"] != "succeeded":
        return NOT_SUCCEEDED
    return _BY_VERDICT.get(job["verdict"] or "none", INCONCLUSIVE)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror or error}") from None
