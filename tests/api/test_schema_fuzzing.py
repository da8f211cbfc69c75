"""Requests made from the OpenAPI document, valid and not: no crash, and no answer that it denies."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from api.routes import jobs, results
from tests.api.conftest import Caller, FakeWorker

pytestmark = pytest.mark.slow
EXAMPLES = 3  # of each operation and kind: `make fuzz` sends many, for ten minutes
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # the same requests in every run
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


def exercise(operation: Any, mode: GenerationMode, headers: dict[str, str], job_ids: list[str]) -> int:
    """Send valid or invalid requests for one operation; returns how many."""
    sent = 0

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal sent
        if sent % 2 and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = job_ids[sent % len(job_ids)]  # else all would be 404
        response = case.call(headers=headers)
        if response.status_code not in (401, 403, 404):  # the rest depends on what there is, not on the form
            case.validate_response(response, checks=CHECKS)
        assert response.status_code < 500
        sent += 1

    send()
    return sent


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_requests_made_from_the_document_are_answered_as_it_says(
    app: FastAPI,
    caller: Caller,
    admin: Caller,
    worker: FakeWorker,
    mode: GenerationMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for routes in (
        jobs,
        results,
    ):  # a request may ask to be held for longer than the test waits for an answer
        monkeypatch.setattr(routes, "MAX_END_SECONDS", 1)
    done, failed = caller.create(), caller.create()
    worker.run(done["id"])
    worker.fail(failed["id"])
    headers = {"Authorization": f"Bearer {admin.key}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    sent = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        if name.startswith("DELETE") or operation.path == "/readyz":
            continue  # deleting keys would lock the test out; without a broker readyz is 503 as it should be
        try:
            sent[name] = exercise(operation, mode, headers, [done["id"], failed["id"]])
        except Unsatisfiable:
            continue  # an operation without parameters can't be called wrongly
    assert len(sent) > 10
