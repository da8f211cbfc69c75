"""The state of the service as JSON."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import Reader
from api.context import WithServices
from api.monitoring.system import System, system_state

router = APIRouter(prefix="/v1/system", tags=["operation"])


@router.get("", response_model=System)
def get_system(principal: Reader, services: WithServices) -> System:
    """Workers, queues, room on disk, background loops and versions; queues in which nothing waits, too."""
    return system_state(services, principal)
