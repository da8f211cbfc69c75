"""Pages from templates, with the headers that every page has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse

from api.auth import Principal
from api.dashboard.words import FILTERS

if TYPE_CHECKING:
    from jinja2 import Environment

SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
HEADERS = {"Content-Security-Policy": SECURITY_POLICY, "Cache-Control": "no-store", "Vary": "Cookie"}
STREAM_HEADERS = {**HEADERS, "X-Accel-Buffering": "no"}
_FOLDER = Path(__file__).resolve().parent.parent / "templates"


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader  # only who looks at pages needs it

    made = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(FILTERS)
    return made


def fragment(template: str, principal: Principal | None, **context: Any) -> str:
    """A template as text."""
    return _templates().get_template(template).render(principal=principal, **context)


def page(template: str, principal: Principal | None, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A template as an answer; `place` among the context says which entry of the menu it belongs to."""
    return HTMLResponse(fragment(template, principal, **context), status, HEADERS)


def log_in(target: str, problem: str | None = None, status: int = 200) -> HTMLResponse:
    """The log-in form, which leads to `target`."""
    return page("login.html", None, status=status, next=target, problem=problem)


def log_in_first(target: str) -> HTMLResponse:
    """The log-in form instead of a page that only exists for who is logged in."""
    answer = log_in(target, status=401)
    answer.headers["WWW-Authenticate"] = 'Bearer realm="optipfair"'
    return answer
