"""What a child process is told: its settings as JSON on its standard input; its environment holds none.

An environment can be read for as long as the process lives, and is inherited by what it starts; a pipe is
read once. Each child gets only what it may know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from jobs.settings import PREFIX, Settings, SettingsError, read_settings

#: The argument by which a child knows that its settings come on its standard input.
FROM_STDIN = "--settings-from-stdin"
#: A worker runs code over other people's files: it gets nothing that signs links or opens the API.
API_ONLY = frozenset({"secret_file", "host", "port", "public_url", "allow_loopback_webhooks"})
#: No setting: labels of jobs may ask a worker for trouble, in tests.
_KEPT = "OPTIPFAIR_TEST_HOOKS"


def api_document(settings: Settings) -> bytes:
    """The settings of the HTTP process: all of them."""
    return settings.model_dump_json().encode()


def worker_document(settings: Settings) -> bytes:
    """The settings of a worker: no secret of the API."""
    return settings.model_dump_json(exclude=set(API_ONLY)).encode()


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a child: no setting, and no key or address that this shell holds for a client."""
    return {name: text for name, text in environ.items() if not name.startswith(PREFIX) or name == _KEPT}


def settings_of_process(from_stdin: bool) -> Settings:
    """The settings of a process that may be a child of ours, or started by hand.

    Raises:
        SystemExit: the environment's settings are wrong; the message says why.
    """
    if not from_stdin:
        try:
            return read_settings()
        except SettingsError as error:
            raise SystemExit(str(error)) from error
    return Settings.model_validate_json(sys.stdin.buffer.read())
