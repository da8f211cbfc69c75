"""An OpenID Connect issuer on the loopback, as CI systems have one: discovery, a JWKS, tokens."""

from __future__ import annotations

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

AUDIENCE = "https://optipfair.example.org"


@cache
def _some_keys() -> dict[str, RSAKey | ECKey]:
    """Made once a process: an RSA key takes its time."""
    return {"rsa": RSAKey.generate_key(2048), "ec": ECKey.generate_key("P-256")}


class Issuer:
    """Publishes the public halves of its keys; `routes` answers otherwise: (status, headers, body)."""

    def __init__(self) -> None:
        self.keys = dict(_some_keys())
        self.routes: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                status, headers, body = issuer.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path in self.routes:
            return self.routes[path]
        if path == "/.well-known/openid-configuration":
            document: Any = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        elif path == "/jwks":
            document = self.jwks()
        else:
            return 404, {}, b""
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def jwks(self) -> dict[str, Any]:
        keys = [{**key.as_dict(private=False), "kid": name, "use": "sig"} for name, key in self.keys.items()]
        return {"keys": keys}

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "repo:octo/app:ref:refs/heads/main",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "repository_id": "4242",
            "ref": "refs/heads/main",
            "event_name": "push",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str = "rsa", **changes: Any) -> str:
        algorithm = "ES256" if isinstance(self.keys[kid], ECKey) else "RS256"
        return jwt.encode({"alg": algorithm, "kid": kid}, self.claims(**changes), self.keys[kid])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
