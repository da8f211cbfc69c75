"""The dashboard: pages for people, rendered here, made live by htmx.

People log in with an API key. It is kept in an HttpOnly cookie that only these paths read: the API proper
takes no cookie, so no other site can make a browser use it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import Principal, identify
from api.context import Services, WithServices, acting
from api.dashboard import view
from api.dashboard.stream import fragments
from api.downloads.serving import archive_response, artifact_response
from api.failures import problem_for
from api.problem import Problem
from jobs.errors import ConflictError, InvalidError, NotFoundError, QueueFullError, QuotaExceededError
from jobs.rows import Job
from jobs.specs import KINDS
from jobs.states import State

if TYPE_CHECKING:
    from jinja2 import Environment

COOKIE = "optipfair_key"
PAGE = 25
SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
_HEADERS = {"Content-Security-Policy": SECURITY_POLICY, "Cache-Control": "no-store", "Vary": "Cookie"}
_FOLDER = Path(__file__).resolve().parent.parent / "templates"

router = APIRouter(include_in_schema=False)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader  # only who looks at pages needs it

    made = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(view.FILTERS)
    return made


async def session(request: Request) -> Principal | None:
    """Who is logged in, if anybody is; a key that no longer works counts as nobody."""
    key = request.cookies.get(COOKIE)
    if not key:
        return None
    try:
        found = await identify(request, key)
    except Problem as problem:
        if problem.status == 401:
            return None
        raise
    limiter = request.app.state.services.authenticator.requests
    verdict = limiter.take(found.key_id)
    if not verdict.allowed:
        raise limiter.refusal(verdict)
    return found if found.may("jobs:read") else None


async def logged_in(found: Annotated[Principal | None, Depends(session)]) -> Principal:
    """Who is logged in; 401 for fragments that make no sense without."""
    if found is None:
        challenge = {"WWW-Authenticate": 'Bearer realm="optipfair"'}
        raise Problem(401, "unauthorized", "Log in first.", headers=challenge)
    return found


def same_origin(request: Request) -> None:
    """Refuse a form that another site sent (the cookie is SameSite=Strict besides)."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if site not in ("same-origin", "none") or (
        origin not in (None, "null") and urlsplit(origin).netloc != host
    ):
        raise Problem(403, "cross_site", "This form was sent from another site.")


Session = Annotated[Principal | None, Depends(session)]
LoggedIn = Annotated[Principal, Depends(logged_in)]
SameOrigin = Depends(same_origin)


@router.get("/")
async def jobs_page(
    request: Request,
    principal: Session,
    services: WithServices,
    state: str = "",
    kind: str = "",
    cursor: str | None = None,
) -> HTMLResponse:
    """The list of jobs, or the log-in form."""
    if principal is None:
        return _login("/")
    context = await run_in_threadpool(_jobs_context, services, principal, state, kind, cursor)
    return _page("jobs.html", principal, **context)


@router.get("/ui/jobs")
async def jobs_fragment(
    principal: LoggedIn, services: WithServices, state: str = "", kind: str = "", cursor: str | None = None
) -> HTMLResponse:
    """The table of the list, for its refresh."""
    context = await run_in_threadpool(_jobs_context, services, principal, state, kind, cursor)
    return _page("jobs_table.html", principal, **context)


@router.get("/jobs/{job_id}")
async def job_page(job_id: str, principal: Session, services: WithServices) -> HTMLResponse:
    """One job, or the log-in form."""
    if principal is None:
        return _login(f"/jobs/{job_id}")
    try:
        context = await run_in_threadpool(_job_context, services, principal, job_id)
    except NotFoundError:
        return _page("missing.html", principal, status=404)
    return _page("job.html", principal, **context)


@router.get("/ui/jobs/{job_id}/stream")
async def job_stream(job_id: str, principal: LoggedIn, services: WithServices) -> StreamingResponse:
    """The body of the job's page again after each change, until it has ended."""
    await run_in_threadpool(services.repository.get_job, job_id, principal.sees)

    def render(job: Job) -> str:
        return _templates().get_template("job_body.html").render(_body(services, principal, job))

    stream = fragments(services, job_id, render)
    return StreamingResponse(
        stream, headers={**_HEADERS, "X-Accel-Buffering": "no"}, media_type="text/event-stream"
    )


@router.post("/ui/jobs/{job_id}/{action}", dependencies=[SameOrigin])
async def act(
    request: Request, job_id: str, action: str, principal: LoggedIn, services: WithServices
) -> Response:
    """Cancel or retry; a click that came too late is no error, and a refusal is said on the job's page."""
    repository = acting(services, request, principal)
    verbs = {"cancel": repository.cancel_job, "retry": repository.retry_job}
    if action not in verbs:
        raise Problem(404, "not_found", "There is no such resource.")
    if not principal.may("jobs:write"):
        raise Problem(403, "scope_missing", "This API key lacks the scope jobs:write.")
    await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    try:
        with suppress(ConflictError):
            await run_in_threadpool(verbs[action], job_id)
    except (QuotaExceededError, QueueFullError) as refusal:
        return await _refused(services, principal, job_id, problem_for(refusal))
    services.wake_dispatcher()
    return RedirectResponse(f"/jobs/{job_id}", 303, _HEADERS)


@router.get("/ui/jobs/{job_id}/artifacts/{name}")
async def job_file(
    request: Request, job_id: str, name: str, principal: LoggedIn, services: WithServices
) -> Response:
    """A file of a job, for the pictures and links of its page."""
    job = await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    return await artifact_response(services, request, job, name)


@router.get("/ui/jobs/{job_id}/archive")
async def job_archive(request: Request, job_id: str, principal: LoggedIn, services: WithServices) -> Response:
    """All files of a job in one tar."""
    job = await run_in_threadpool(services.repository.get_job, job_id, principal.sees)
    return await archive_response(services, request, job)


@router.post("/ui/login", dependencies=[SameOrigin])
async def login(request: Request, services: WithServices) -> Response:
    """Check a key and remember it in the cookie."""
    try:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    except ValueError:
        return _login("/", "This is not the log-in form: it has too many fields.", 422)
    key = form.get("key", [""])[0].strip()
    target = _local(form.get("next", ["/"])[0])
    try:
        principal = await identify(request, key)
    except Problem as problem:
        answer = _login(target, problem.detail, problem.status)
        answer.headers.update(problem.headers)
        return answer
    if not principal.may("jobs:read"):
        return _login(target, "This API key may not read jobs.", 403)
    response = RedirectResponse(target, 303, _HEADERS)
    secure = services.settings.public_url.startswith("https://")
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure, path="/")
    return response


@router.post("/ui/logout", dependencies=[SameOrigin])
async def logout() -> Response:
    """Forget the key."""
    response = RedirectResponse("/", 303, _HEADERS)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _local(target: str) -> str:
    """A path of this dashboard, so that logging in can't be made to lead elsewhere."""
    return target if target == "/" or target.startswith("/jobs/") else "/"


def _page(template: str, principal: Principal | None, *, status: int = 200, **context: Any) -> HTMLResponse:
    text = _templates().get_template(template).render(principal=principal, **context)
    return HTMLResponse(text, status, _HEADERS)


async def _refused(services: Services, principal: Principal, job_id: str, problem: Problem) -> HTMLResponse:
    """The job's page, with what was refused and why."""
    context = await run_in_threadpool(_job_context, services, principal, job_id)
    page = _page("job.html", principal, status=problem.status, refusal=problem.detail, **context)
    page.headers.update(problem.headers)
    return page


def _login(target: str, problem: str | None = None, status: int = 200) -> HTMLResponse:
    return _page("login.html", None, status=status, next=target, problem=problem)


def _jobs_context(
    services: Services, principal: Principal, state: str, kind: str, cursor: str | None
) -> dict[str, Any]:
    wanted = State(state) if state in set(State) else None
    known_kind = kind if kind in KINDS else None
    repository = services.repository
    try:
        page = repository.list_jobs(principal.sees, state=wanted, kind=known_kind, cursor=cursor, limit=PAGE)
    except InvalidError:
        page = repository.list_jobs(principal.sees, state=wanted, kind=known_kind, limit=PAGE)
    now = repository.now()
    filters = {"state": wanted.value if wanted else "", "kind": known_kind or ""}
    query = {name: value for name, value in filters.items() if value}
    return {
        **filters,
        "jobs": [view.job_head(job, now) for job in page.items],
        "states": [each.value for each in State],
        "kinds": KINDS,
        "live": cursor is None,
        "refresh": "/ui/jobs?" + urlencode(query),
        "next_page": "/?" + urlencode({**query, "cursor": page.next_cursor}) if page.next_cursor else None,
    }


def _job_context(services: Services, principal: Principal, job_id: str) -> dict[str, Any]:
    return _body(services, principal, services.repository.get_job(job_id, principal.sees))


def _body(services: Services, principal: Principal, job: Job) -> dict[str, Any]:
    page = view.job_page(services, job, services.repository.now())
    return {**page, "may_write": principal.may("jobs:write")}
