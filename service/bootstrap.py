"""What a first start makes: folders, the secret, the schema, the admin key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jobs.access.audit import COMMAND_LINE
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.signing.keys import SCOPES, generate_key
from jobs.signing.secret import ensure_secret, load_secrets

#: The tenant of the key that the first start makes; further tenants come with `POST /v1/keys`.
FIRST_TENANT = "default"
ADMIN_KEY_FILE = "admin.key"


def make_folders(settings: Settings) -> None:
    """The data folder, private to this user, and what belongs in it."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("broker", "logs"):
        (settings.data_dir / name).mkdir(mode=0o700, exist_ok=True)
    for path in (settings.models_dir, settings.suites_dir, settings.calibration_dir, settings.work_dir):
        path.mkdir(parents=True, exist_ok=True)


def check_secret(path: Path) -> None:
    """Make the secret if there is none.

    Raises:
        PermissionError: others may read it.
        ValueError: it is unusable.
    """
    ensure_secret(path)
    found = path.stat()
    # A file that is not ours was put there for us, as Kubernetes does: root's, and read by way of our group.
    forbidden = 0o077 if found.st_uid == os.getuid() else 0o027
    if found.st_mode & forbidden:
        raise PermissionError(f"{path} can be read by others: chmod 600 {path}")
    load_secrets(path)


def ensure_admin_key(settings: Settings, repository: Repository, *, say: Callable[[str], None]) -> None:
    """Make the first admin key if there is no key: shown once, written to a 0600 file, stored hashed."""
    if repository.list_keys(None):
        return
    key = generate_key(load_secrets(settings.secret_file))
    repository.ensure_tenant(FIRST_TENANT)
    # The file first: a key that is stored but was never written down would lock everyone out.
    path = settings.data_dir / ADMIN_KEY_FILE
    write_private(path, key.plain + "\n")
    repository.on_behalf(COMMAND_LINE).create_key(
        FIRST_TENANT, key_hash=key.hash, hint=key.hint, scopes=SCOPES, name="first start", expires_at=None
    )
    say(f"admin key (shown once, also in {path}): {key.plain}")


def write_private(path: Path, text: str) -> None:
    """Write a file that is never readable by others, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
