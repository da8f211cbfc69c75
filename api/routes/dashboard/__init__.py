"""The dashboard: pages for people, rendered here, made live by event streams and one script of ours."""

from fastapi import APIRouter

from api.routes.dashboard import access, compare, job, jobs, login, new, overview

router = APIRouter(include_in_schema=False)
for module in (jobs, job, new, compare, overview, access, login):
    router.include_router(module.router)
