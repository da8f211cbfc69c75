"""What can go wrong between a client and the service; each message is a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Anything that keeps the client from doing what it was asked."""


class UnreachableError(ClientError):
    """The service did not answer, though it was tried again for a while."""


class DownloadError(ClientError):
    """A file did not arrive as the service has it, or can't be written."""


class RefusedError(ClientError):
    """The service answered with an error.

    Args:
        status: the HTTP status.
        document: its problem document (RFC 9457), or what stands for it.
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(document.get("code", "error"))
        self.detail = str(document.get("detail") or document.get("title") or "no reason was given")
        self.errors = [error for error in document.get("errors") or [] if isinstance(error, dict)]
        self.request_id = document.get("request_id")
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        lines = [f"the service refused this ({self.status} {self.code}): {self.detail}"]
        if len(self.errors) > 1:
            for error in self.errors:
                place = ".".join(str(part) for part in error.get("loc", []))
                lines.append(f"  {place}: {error.get('detail')}")
        return "\n".join(lines)
