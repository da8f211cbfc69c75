"""Signed links: made for one artifact of one job, honoured as long as both are what they were."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from api import models
from api.context import Services
from api.downloads.serving import ARCHIVE, Content, find_content
from api.problem import Problem, field_error, invalid, not_found
from jobs.errors import LinkInvalidError, NotFoundError
from jobs.rows import Job
from jobs.signing.links import Grant
from jobs.times import rfc3339


@dataclass(frozen=True)
class Target:
    """What a verified link leads to."""

    job: Job
    content: Content


def make_link(services: Services, job: Job, name: str, ttl_seconds: int) -> models.Link:
    """Sign a URL for an artifact, or for the archive (`*`).

    Raises:
        Problem: 404 without such an artifact, 422 for a longer life than the service allows.
    """
    longest = services.settings.max_link_seconds
    if ttl_seconds > longest:
        detail = f"At most {longest} seconds."
        raise invalid([field_error(["body", "ttl_seconds"], detail, "less_than_equal")])
    artifact = services.repository.get_artifact(job.id, name)
    if artifact is None:
        raise not_found("artifact")
    expires_at = round(services.repository.now() / 1000) + ttl_seconds
    token = services.signer.sign(
        job_id=job.id, name=name, sha256=artifact.sha256, tenant=job.tenant, expires_at=expires_at
    )
    url = f"{services.settings.public_url}/v1/download/{token}/{quote(filename(job.id, name))}"
    return models.Link(url=url, expires_at=rfc3339(expires_at * 1000), sha256=artifact.sha256)


def filename(job_id: str, name: str) -> str:
    """The last part of a link's path: what `curl -O` calls the file."""
    return f"{job_id}.tar" if name == ARCHIVE else name


def open_link(services: Services, token: str, name: str) -> Target:
    """What a link leads to.

    Raises:
        LinkInvalidError, LinkExpiredError: not this service's, altered, or too old.
        Problem: 410 when the job or its files are gone.
    """
    grant = services.signer.verify(token, now=services.repository.now() // 1000)
    if name != filename(grant.job_id, grant.name):
        raise LinkInvalidError("the link is for another file", code="link_invalid")
    return Target(_job(services, grant), _content(services, grant))


def _job(services: Services, grant: Grant) -> Job:
    try:
        return services.repository.get_job(grant.job_id, grant.tenant)
    except NotFoundError:
        raise Problem(410, "job_deleted", "The job was deleted, and its files with it.") from None


def _content(services: Services, grant: Grant) -> Content:
    gone = Problem(410, "artifact_expired", "The file is no longer kept.")
    try:
        content = find_content(services, grant.job_id, grant.name)
    except Problem as problem:
        raise (gone if problem.status == 404 else problem) from None
    if content.sha256 != grant.sha256:  # other bytes than those the link was made for
        raise gone
    return content
