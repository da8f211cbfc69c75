"""As much of GitHub as the composite action needs: its runner, and the comments of a pull request."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from ..harness import environment

ACTION = Path(__file__).resolve().parents[3] / "deploy" / "github-action" / "action.yml"
_EXPRESSION = re.compile(r"\$\{\{ *([^}]+?) *\}\}")
_COMPARISON = re.compile(r"(\S+) (==|!=) '([^']*)'")


def shell(script: str, folder: Path, env: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, by `sh` or by what the flags say."""
    return subprocess.run(
        [*(flags or ("sh",)), "-c", script],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Runner:
    """Runs the action's steps as GitHub's runner does: conditions, expressions, outputs, files."""

    def __init__(self, folder: Path, inputs: dict[str, str], **environ: str) -> None:
        self.action = yaml.safe_load(ACTION.read_text())
        self.folder, self.environ = folder, {"GITHUB_ACTION_PATH": str(ACTION.parent), **environ}
        defaults = {name: str(item.get("default", "")) for name, item in self.action["inputs"].items()}
        assert set(inputs) <= set(defaults)
        self.values = {f"inputs.{name}": value for name, value in {**defaults, **inputs}.items()}
        event = environ.get("GITHUB_EVENT_NAME", "push")
        self.values |= {
            "github.token": "ght",
            "github.event_name": event,
            "github.event.pull_request.number": "7",
        }
        self.log, self.code, self.ran = "", 0, list[str]()
        self.temp, self.summary = folder / "temp", folder / "summary.md"
        self.temp.mkdir()
        self.summary.touch()

    def run(self) -> Runner:
        """Run the action from its first step to its last."""
        for number in range(len(self.action["runs"]["steps"])):
            self.step(number)
        return self

    def step(self, number: int) -> None:
        """Run one step, if its condition holds."""
        step = self.action["runs"]["steps"][number]
        if not self._holds(step.get("if", "success()")):
            return
        self.ran.append(step["name"])
        # an expression in a script would be code of whoever wrote its value
        assert "${{" not in step["run"]
        output = self.folder / f"output{number}"
        output.write_text("")
        env = {name: self._filled(text) for name, text in step["env"].items()} | self.environ
        env |= {
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.temp),
        }
        done = shell(step["run"], self.folder, env, "bash", "--noprofile", "--norc", "-eo", "pipefail")
        self.log += done.stdout + done.stderr
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{name}"] = value
        self.code = self.code or done.returncode

    def outputs(self) -> dict[str, str]:
        """What the action gives to the steps after it."""
        return {name: self._filled(item["value"]) for name, item in self.action["outputs"].items()}

    def _holds(self, condition: str) -> bool:
        parts = condition.split(" && ")
        if self.code and "always()" not in parts:
            return False
        return all(self._true(part) for part in parts if part not in ("always()", "success()"))

    def _true(self, comparison: str) -> bool:
        found = _COMPARISON.fullmatch(comparison)
        assert found, comparison
        return (self._value(found[1]) == found[3]) is (found[2] == "==")

    def _value(self, expression: str) -> str:
        """`a.b`, or the first of `a.b || c.d` that is not empty; what a step did not say is empty."""
        found = [self.values.get(name, "") for name in expression.split(" || ")]
        return next((value for value in found if value), "")

    def _filled(self, text: str) -> str:
        filled = _EXPRESSION.sub(lambda found: self._value(found[1]), text)
        return self._filled(filled) if _EXPRESSION.search(filled) else filled


@contextmanager
def comments_api() -> Iterator[tuple[str, dict[int, str]]]:
    """GitHub's comments of one pull request: the URL, and the comments by id."""
    kept: dict[int, str] = {1: "looks good to me"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def sent(self) -> str:
            assert self.headers["Authorization"] == "Bearer ght"
            return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

        def do_GET(self) -> None:
            self.answer([{"id": number, "body": text} for number, text in kept.items()])

        def do_POST(self) -> None:
            assert self.path == "/repos/acme/models/issues/7/comments"
            kept[max(kept) + 1] = self.sent()
            self.answer({})

        def do_PATCH(self) -> None:
            kept[int(self.path.removeprefix("/repos/acme/models/issues/comments/"))] = self.sent()
            self.answer({})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kept
    finally:
        server.shutdown()
        server.server_close()
