"""The error of ``optipfair_engine.headers``, apart so that the parsers of both formats can raise it."""

from __future__ import annotations


class HeaderError(Exception):
    """A folder that can't be accepted; ``code`` is stable, the text holds no absolute path."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
