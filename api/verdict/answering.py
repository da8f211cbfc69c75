"""From an ended job to an answer: the form that was asked for, and the status that `strict` gives."""

from __future__ import annotations

from fastapi.responses import Response

from api import models
from api.context import Services
from api.problem import Problem
from api.verdict import markdown
from api.verdict.accepting import choose
from api.views import check_view, job_view
from jobs.rows import Job

JSON, MARKDOWN, JUNIT = "application/json", "text/markdown", "application/xml"
OFFERED = (JSON, MARKDOWN, JUNIT)
VARY = {"Vary": "Accept"}


def wanted_form(accept: str | None) -> str:
    """The media type to answer in.

    Raises:
        Problem: 406 for one that there is not.
    """
    form = choose(accept, OFFERED)
    if form is None:
        raise Problem(406, "not_acceptable", f"There is {', '.join(OFFERED)}.", headers=VARY)
    return form


def not_ended(job: Job, form: str) -> Response:
    """408 for a wait that was too short; `curl --retry` repeats it by itself.

    Curl prints every body that it retries over, so that one of text is empty.

    Raises:
        Problem: the same as a problem document, where JSON is wanted.
    """
    headers = {**VARY, "Retry-After": "1"}
    if form == JSON:
        detail = f"The job is {job.state.value}; it has not ended within this wait."
        raise Problem(408, "job_not_ended", detail, headers=headers)
    return Response(None, 408, headers)


def verdict_of(services: Services, job: Job) -> models.Verdict:
    """The verdict of an ended job, each check with its interval."""
    checks = services.repository.get_checks(job.id)
    metrics = (services.repository.get_metrics(job.id) or {}) if checks else {}
    return models.Verdict.model_validate(
        {"verdict": job.verdict or "none", "checks": [check_view(check, metrics) for check in checks]}
    )


def answer(services: Services, job: Job, form: str, *, strict: bool) -> Response:
    """The verdict in one of its forms; with `strict`, everything but a pass is 412.

    Raises:
        Problem: that 412, where JSON is wanted.
    """
    verdict = verdict_of(services, job)
    refused = strict and verdict.verdict != "pass"
    if form == JSON:
        if refused:
            detail = f"The verdict is {verdict.verdict}; the job {job.state.value}."
            raise Problem(412, "verdict_not_pass", detail, headers=VARY, members=verdict.model_dump())
        return Response(verdict.model_dump_json(), 200, VARY, JSON)
    view, link = job_view(job), f"{services.settings.public_url}/jobs/{job.id}"
    status = 412 if refused else 200
    if form == MARKDOWN:
        return Response(markdown.render(view, verdict, link), status, VARY, MARKDOWN)
    from api.verdict import junit  # XML is for those who ask for it

    return Response(junit.render(view, verdict, link), status, VARY, JUNIT)
