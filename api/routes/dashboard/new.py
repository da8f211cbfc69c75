"""The form that builds a job, and what it tells while one types: estimate, faults, and the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from api import submission
from api.auth import Principal
from api.body import job_request
from api.context import Services, WithServices
from api.dashboard import curl, form as fields
from api.dashboard.listing import job_head
from api.dashboard.rendering import HEADERS, log_in_first, page
from api.dashboard.session import SameOrigin, Session, Writer, form_of, here
from api.dashboard.words import SIZES
from api.failures import problem_for
from api.problem import Problem
from api.routes.models import list_calibrations, list_models, list_suites
from jobs.errors import JobsError, NotFoundError
from jobs.specs.metrics import known_metrics
from jobs.states import State
from optipfair_engine.options.presets import PRESETS

router = APIRouter()
_JOBS = 20


@router.get("/ui/new")
async def new_page(
    request: Request,
    principal: Session,
    services: WithServices,
    of: Annotated[str | None, Query(alias="from", max_length=64)] = None,
) -> HTMLResponse:
    """The form; with `from`, filled in as an earlier job was."""
    if principal is None:
        return log_in_first(here(request))
    if not principal.may("jobs:write"):
        raise Problem(403, "scope_missing", "This API key lacks the scope jobs:write.")
    given = request.query_params.multi_items()
    form: dict[str, Sequence[str]] = {name: [value] for name, value in given if name != "from"}
    if of is not None:
        try:
            job = await run_in_threadpool(services.repository.get_job, of, principal.sees)
        except NotFoundError:
            return page("missing.html", principal, status=404)
        if job.kind not in fields.KINDS:
            raise Problem(422, "validation_failed", f"The form can't hold a {job.kind}: send it as JSON.")
        form = dict(fields.form_of_job(job.kind, job.spec, job.labels, job.gates)) | form
    elif texts := await run_in_threadpool(list_calibrations, principal, services):
        form = {"calibration": [f"local:{file.name}" for file in texts.items[:1]] or ["typed:"]} | form
    return await _answer(services, principal, form)


@router.post("/ui/new/preview", dependencies=[SameOrigin])
async def preview(request: Request, principal: Writer, services: WithServices) -> HTMLResponse:
    """What the form stands for as it is filled in now."""
    form = await form_of(request)
    told = await run_in_threadpool(_told, services, principal, form)
    return page("new_preview.html", principal, **told)


@router.post("/ui/new", dependencies=[SameOrigin])
async def create(request: Request, principal: Writer, services: WithServices) -> Response:
    """Create the job and go to its page; or the form again, with what is wrong."""
    form = await form_of(request)
    if fields.one(form, "action") == "preview":
        return await _answer(services, principal, form)
    origin = submission.Origin(principal.tenant, request.scope["request_id"], principal.actor)
    try:
        wanted, raw = await run_in_threadpool(_request, services, form)
        answer = await run_in_threadpool(submission.submit, services, origin, wanted, raw, None)
    except (Problem, JobsError) as refusal:
        problem = refusal if isinstance(refusal, Problem) else problem_for(refusal)
        return await _answer(services, principal, form, status=problem.status, refusal=problem)
    return RedirectResponse(f"/jobs/{answer.job_id}", 303, HEADERS)


def _request(services: Services, form: fields.Form) -> tuple[Any, Any]:
    return job_request(fields.request_of(form), services)


def _told(services: Services, principal: Principal, form: fields.Form) -> dict[str, Any]:
    """The command, and either the estimate or what is wrong."""
    told: dict[str, Any] = {"problem": None, "estimate": None, "command": None}
    try:
        body = fields.request_of(form)
        told["command"] = curl.post(services.settings.public_url, "/v1/jobs", body)
        told["estimate"] = submission.estimate(services, principal.tenant, job_request(body, services)[0])
    except Problem as problem:
        told["problem"] = problem
    except JobsError as error:
        told["problem"] = problem_for(error)
    return told


async def _answer(
    services: Services, principal: Principal, form: fields.Form, *, status: int = 200, refusal: Any = None
) -> HTMLResponse:
    def make() -> dict[str, Any]:
        return _choices(services, principal, form) | _told(services, principal, form)

    context = await run_in_threadpool(make)
    values = {name: given[0] for name, given in form.items()}
    return page("new.html", principal, status=status, place="new", values=values, refusal=refusal, **context)


def _choices(services: Services, principal: Principal, form: fields.Form) -> dict[str, Any]:
    """What the form offers."""
    repository = services.repository
    done = repository.list_jobs(principal.sees, state=State.SUCCEEDED, kind="prune", limit=_JOBS).items
    uploads = [upload for upload in repository.list_uploads(principal.sees) if upload.complete]
    now = repository.now()
    return {
        "kinds": fields.KINDS,
        "models": list_models(principal, services),
        "uploads": uploads,
        "pruned": [job_head(job, now) for job in done],
        "calibrations": list_calibrations(principal, services).items,
        "suites": list_suites(principal, services).items,
        "presets": PRESETS,
        "sizes": SIZES,
        "gate_rows": range(fields.gate_rows(form)),
        "metrics": sorted({name for kind in fields.KINDS for name in known_metrics(kind)}),
    }
