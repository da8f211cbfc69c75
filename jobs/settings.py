"""Everything that can be configured: read once, in the entry point of a process, and passed down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jobs.addresses import http_url, socket_path, socket_url

PREFIX = "OPTIPFAIR_"
#: Variables with our prefix that are no settings: the client's address and key, and what tests look at.
OTHER_VARIABLES = ("OPTIPFAIR_URL", "OPTIPFAIR_KEY", "OPTIPFAIR_TEST_DATA", "OPTIPFAIR_TEST_HOOKS")
_TEST_PREFIX = "OPTIPFAIR_TEST_"
#: What is secret about a setting may lie in a file instead, named by the variable with `_FILE` behind it, as
#: Docker and Kubernetes hand secrets over. `database_password` is no setting but a part of `database_url`.
_PASSWORD = "database_password"  # noqa: S105 - a name
IN_FILES = ("database_url", _PASSWORD, "broker_url", "artifacts_s3_access_key", "artifacts_s3_secret_key")


class SettingsError(ValueError):
    """A setting is not what it may be, or a variable has our prefix and would change nothing."""


def _under_data_dir(*parts: str) -> Any:
    return Field(default_factory=lambda data: Path(data["data_dir"], *parts))


class Settings(BaseModel):
    """Settings of every process. Every default suits one machine with nothing but a data folder.

    Making one looks at nothing but its arguments; `read_settings` is what looks at the environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path = Path("data")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str = Field(default_factory=lambda data: http_url(data["host"], data["port"]))
    """Prefix of every absolute URL handed out, without a slash at the end."""

    database_url: str = Field(default_factory=lambda data: f"sqlite:///{data['data_dir']}/service.db")
    broker_url: str = Field(default_factory=lambda data: socket_url(socket_path(data["data_dir"])))
    artifacts_url: str = Field(default_factory=lambda data: f"{data['data_dir']}/artifacts")
    """A folder (path or file:// URL), or s3://bucket/prefix."""
    artifacts_s3_endpoint: str | None = None
    artifacts_s3_region: str = "us-east-1"
    artifacts_s3_access_key: str | None = Field(default=None, repr=False)
    artifacts_s3_secret_key: str | None = Field(default=None, repr=False)

    artifacts_s3_timeout_seconds: float = Field(default=20.0, gt=0)
    """The limit of one request to S3, which carries at most 8 MiB."""

    models_dir: Path = _under_data_dir("models")
    suites_dir: Path = _under_data_dir("suites")
    calibration_dir: Path = _under_data_dir("calibration")
    work_dir: Path = _under_data_dir("work")
    """Where an attempt writes before its artifacts go to S3, and where the hub cache lies."""
    secret_file: Path = _under_data_dir("secret")
    allow_hub: bool = False
    allow_loopback_webhooks: bool = False
    """For development only: lets webhooks go to http:// and to loopback addresses."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    lease_seconds: float = Field(default=45.0, gt=0)
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    sweep_seconds: float = Field(default=10.0, gt=0)
    worker_timeout_seconds: float = Field(default=45.0, gt=0)
    """A worker without a beat for this long is not live."""
    stall_seconds: float = Field(default=30.0, gt=0)
    """A worker without an attempt that leaves a job waiting for this long is not well."""
    republish_seconds: float = Field(default=30.0, gt=0)
    """A job queued for this long since it was last published is published again."""
    grace_seconds: float = Field(default=20.0, ge=0)
    """How long a running attempt may go on after SIGTERM before it is released as preempted."""
    default_timeout_seconds: int = Field(default=24 * 3600, ge=1)
    retention_seconds: int = Field(default=30 * 24 * 3600, ge=1)
    """How long artifacts of an ended job are kept."""
    job_retention_seconds: int | None = Field(default=None, ge=1)
    """How long ended jobs are kept, with all that belongs to them; by default for ever."""
    progress_retention_seconds: int = Field(default=7 * 24 * 3600, ge=1)
    """How long every progress event of an ended job is kept; then the first and last of each stage are."""
    orphan_grace_seconds: float = Field(default=3600.0, ge=0)
    """Files without a row are removed only when they are older than this."""

    max_queue_depth: int = Field(default=10_000, ge=1)
    max_jobs_per_tenant: int = Field(default=1_000, ge=1)
    """Jobs of one tenant that may be queued or running at once."""
    max_artifact_bytes_per_tenant: int | None = Field(default=None, ge=1)
    """What one tenant's kept files may take; by default there is no limit but the disk's."""
    requests_per_minute: int = Field(default=60_000, ge=1)
    """Requests that one key may make, in each API process."""
    wrong_keys_per_minute: int = Field(default=600, ge=1)
    """Wrong keys that one address may present, in each API process."""
    upload_quota_bytes: int = Field(default=100 * 1024**3, ge=0)
    """Bytes that the uploads of one tenant may take, those that are declared and not yet sent included."""
    upload_ttl_seconds: int = Field(default=7 * 24 * 3600, ge=1)
    """How long an upload is kept after it was declared, completed, or last named in a new job."""
    idempotency_seconds: int = Field(default=24 * 3600, ge=1)
    max_link_seconds: int = Field(default=24 * 3600, ge=1)
    memory_bytes: int | None = Field(default=None, ge=1)
    """What one job may use of a worker's memory; by default all of it, divided among `serve`'s workers."""
    model_cache_bytes: int = Field(default=50 * 1024**3, ge=0)
    min_free_bytes: int = Field(default=256 * 1024**2, ge=0)
    """A job starts only while this much stays free beside its estimated output."""

    workers: int = Field(default=1, ge=1, le=64)
    """How many workers `serve` runs for jobs of every length."""
    short_workers: int = Field(default=1, ge=0, le=64)
    """How many workers `serve` runs beside them for short jobs, which then don't wait behind long ones."""
    worker_queues: str = "cpu,short"
    sleeping_queues: str = ""
    """Queues whose workers are started on demand: jobs for what those had are admitted without one."""
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one engine process; by default cores ÷ concurrent engine processes."""
    log_format: str = Field(default="json", pattern="^(json|console)$")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    otlp_endpoint: str | None = None
    code_version: str = ""
    """Marks results as made by the same code; by default the version of the distribution."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("public_url")
    @classmethod
    def _no_slash(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("public_url starts with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _beats_within_the_lease(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError("heartbeat_seconds must be less than lease_seconds, or no attempt keeps its job")
        return self

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that this worker serves."""
        return _names(self.worker_queues)

    @property
    def asleep(self) -> frozenset[str]:
        """The queues whose workers are started on demand."""
        return frozenset(_names(self.sleeping_queues))


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def read_settings(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings of this process: flags win over `OPTIPFAIR_*` variables, these over the defaults.

    Raises:
        SettingsError: a variable has our prefix and is no setting, or a value is not what its setting takes.
    """
    ours = {name.upper(): text for name, text in (os.environ if environ is None else environ).items()}
    _check_names(ours)
    variables = {name: ours[variable] for name, variable in _variables().items() if variable in ours}
    given: dict[str, Any] = {**variables, **_from_files(ours), **(flags or {})}
    if (password := given.pop(_PASSWORD, None)) is not None:
        given["database_url"] = _with_password(str(given.get("database_url", "")), password)
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("wrong settings: " + "; ".join(reasons)) from error


def _variables() -> dict[str, str]:
    """The variable of each setting, and of the database's password, by the setting's name."""
    return {name: PREFIX + name.upper() for name in (*Settings.model_fields, _PASSWORD)}


def _file_variables() -> dict[str, str]:
    """The variable that names the file of a secret, by the setting's name."""
    return {name: f"{PREFIX}{name.upper()}_FILE" for name in IN_FILES}


def _from_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets that lie in files, without the line's end that an editor puts there."""
    found = {}
    for name, variable in _file_variables().items():
        if variable not in environ:
            continue
        direct = variable.removesuffix("_FILE")
        if direct in environ:
            raise SettingsError(f"{direct} and {variable} are both set: unset one of them")
        try:
            found[name] = Path(environ[variable]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise SettingsError(f"{variable} names a file that can't be read: {reason}") from error
        if not found[name]:
            raise SettingsError(f"{variable} names an empty file")
    return found


def _with_password(url: str, password: str) -> str:
    """The database's URL with its password.

    Raises:
        SettingsError: the URL names no user, or has a password already.
    """
    parts = urlsplit(url)
    if not parts.username or parts.password is not None:
        wrong = "has a password already" if parts.username else "names no user"
        raise SettingsError(
            f"a database password is set, and the database's URL {wrong}: "
            "with one it is postgresql://USER@HOST/DATABASE"
        )
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()


def _check_names(environ: Mapping[str, str]) -> None:
    known = [*_variables().values(), *_file_variables().values(), *OTHER_VARIABLES]
    unknown = sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and name not in known and not name.startswith(_TEST_PREFIX)
    )
    if unknown:
        nearest = [f"{name} (the nearest is {get_close_matches(name, known, 1, 0.0)[0]})" for name in unknown]
        verb = "is no setting" if len(unknown) == 1 else "are no settings"
        raise SettingsError(
            f"the environment has {', '.join(nearest)}, which {verb} of this service: "
            "correct the name or unset it (docs/operations.md lists all settings)"
        )
