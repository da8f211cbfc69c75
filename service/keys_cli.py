"""`optipfair-service keys`: API keys without going through HTTP, for whoever may read the secret."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from service.terminal import DatabaseUrl, DataDir, explained, fail, make_settings, say

keys_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs the key opens; made if it is new.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help="jobs:read, jobs:write, admin; repeatable.")] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires_days: Annotated[
        int | None, typer.Option(help="Days until it expires.", min=1, max=36_500)
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it; it is stored hashed and can't be shown again."""
    from jobs.signing.keys import SCOPES, generate_key
    from jobs.signing.secret import load_secrets
    from service.bootstrap import check_secret

    scopes = scope or ["jobs:read", "jobs:write"]
    if unknown := sorted(set(scopes) - set(SCOPES)):
        fail(f"unknown scope {', '.join(unknown)}; there are {', '.join(SCOPES)}")
    with explained():
        settings, repository = _open(data_dir=data_dir, database_url=database_url)
        check_secret(settings.secret_file)
        key = generate_key(load_secrets(settings.secret_file))
        expires = None if expires_days is None else int(time.time() * 1000) + expires_days * 86_400_000
        repository.ensure_tenant(tenant)
        stored = repository.on_behalf(_command_line()).create_key(
            tenant, key_hash=key.hash, hint=key.hint, scopes=scopes, name=name, expires_at=expires
        )
    say(f"{stored.id}  {key.plain}")


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List keys by id, with their last characters; the keys themselves are not stored."""
    with explained():
        _settings, repository = _open(data_dir=data_dir, database_url=database_url)
        keys = repository.list_keys(tenant)
    for key in keys:
        state = "revoked" if key.revoked_at else _expiry(key.expires_at)
        say(f"{key.id}  …{key.hint}  {key.tenant}  {','.join(sorted(key.scopes))}  {state}  {key.name}")


@keys_app.command("revoke")
def revoke(key_id: str, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Revoke a key by its id: it opens nothing any more. Links that it made work until they expire."""
    with explained():
        _settings, repository = _open(data_dir=data_dir, database_url=database_url)
        repository.on_behalf(_command_line()).revoke_key(key_id, None)
    say(f"revoked {key_id}")


def _open(**flags: Any) -> tuple[Any, Any]:
    from jobs.database import connect
    from jobs.repository import Repository

    settings = make_settings(flags)
    return settings, Repository(connect(settings.database_url), settings)


def _command_line() -> Any:
    from jobs.access.audit import COMMAND_LINE

    return COMMAND_LINE


def _expiry(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "live"
    from jobs.times import rfc3339

    return f"until {rfc3339(milliseconds).partition('T')[0]}"
