"""A small stand-in for the hub: one model with its files at one commit, over plain HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "a" * 40


@contextmanager
def hub_with(model_id: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve one model; yields the endpoint and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def _answer(self, *, send_body: bool) -> None:
            path = urlsplit(self.path).path
            asked.append(f"{self.command} {path}")
            body, headers = self._find(path)
            self.send_response(200 if body is not None else 404)
            if body is None:
                headers, body = {"X-Error-Code": "RepoNotFound"}, b"{}"
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def _find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
            if path.startswith(f"/api/models/{model_id}/tree/{COMMIT}"):
                tree = [
                    {"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()
                ]
                return json.dumps(tree).encode(), {"Content-Type": "application/json"}
            if path == f"/api/models/{model_id}/revision/{COMMIT}":
                siblings = [{"rfilename": name, "size": len(body)} for name, body in files.items()]
                info = {"id": model_id, "sha": COMMIT, "siblings": siblings}
                return json.dumps(info).encode(), {"Content-Type": "application/json"}
            name = path.removeprefix(f"/{model_id}/resolve/{COMMIT}/")
            if name in files:
                etag = hashlib.sha256(files[name]).hexdigest()
                return files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            return None, {}

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
