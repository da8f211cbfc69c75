"""What the OpenAPI document says of the operations beside what FastAPI sees in their signatures.

Bodies are parsed by `api.body`, not by FastAPI, so their schemas are added here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from api.problem import MEDIA_TYPE, ProblemDocument
from api.routes.later import load_all
from jobs.specs import JobRequest

_REFERENCE = "#/components/schemas/{model}"


SECURITY = {
    "api_key": {"type": "http", "scheme": "bearer", "bearerFormat": "ofk_…", "description": "an API key"}
}
KEYLESS = ("/livez", "/readyz", "/v1/token", "/v1/download/{token}/{name}")


def body_schema(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of an operation whose body is `model`."""
    return _body(model.__name__, required=required)


def _body(name: str, *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model=name)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def headers(**described: str) -> dict[str, Any]:
    """`openapi_extra` of an operation whose handler reads these request headers (`_` for `-`) by itself."""
    listed = [
        {"name": name.replace("_", "-"), "in": "header", "required": False, "description": text}
        | {"schema": {"type": "string"}}
        for name, text in described.items()
    ]
    return {"parameters": listed}


JOB_BODY = _body("JobRequest")
CREATE_JOB = {
    **JOB_BODY,
    **headers(
        Idempotency_Key="1 to 255 characters: the same key and body again give the first answer again",
        Prefer="wait=N (at most 60): answer when the job has ended, or after N seconds",
    ),
}
GET_JOB = headers(
    If_None_Match="an ETag of this job: 304 while nothing changed",
    Prefer="wait=N (at most 30): answer at the next change, or after N seconds",
)
GET_EVENTS = headers(Last_Event_ID="of an event stream: go on after this event")
GET_LOGS = headers(Last_Event_ID="of a stream of lines: go on after this line")
GET_BYTES = headers(
    Range="byte ranges, at most 16",
    If_Range="the ETag that Range is meant for; if it is another one, the whole comes",
    If_None_Match="304 if the file has this ETag",
    If_Match="412 if the file has another ETag",
)

_FORM = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token": "the CI system's token",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "scope": "fewer scopes than the trust rule grants, separated by spaces",
    "audience": "only rules with this audience",
}
TOKEN: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "subject_token", "subject_token_type"],
                    "properties": {
                        name: {"type": "string", "description": text} for name, text in _FORM.items()
                    },
                }
            }
        },
    }
}
PUT_FILE: dict[str, Any] = {
    **headers(Content_Range="bytes FIRST-LAST/SIZE: which bytes these are; without it, the whole file"),
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}
UPLOAD_STATE: dict[int | str, dict[str, Any]] = {
    204: {
        "description": "How far the file has come",
        "headers": {
            "Upload-Offset": {"description": "the first missing byte", "schema": {"type": "integer"}},
            "Upload-Length": {"description": "the size", "schema": {"type": "integer"}},
        },
    }
}
VERDICT_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {
        "content": {
            "text/markdown": {"schema": {"type": "string"}},
            "application/xml": {"schema": {"type": "string"}},
        }
    },
    406: {"description": "None of the forms is acceptable"},
    408: {"description": "The job has not ended within the wait; send it again"},
    412: {"description": "With `strict=1`: not a pass, in the same form as the 200"},
}
BYTES_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The ranges that were asked for"},
    304: {"description": "The caller has these bytes already"},
    416: {"description": "No such bytes"},
}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` give the complete document."""
    from api import models
    from api.tokens.models import TrustRequest
    from api.uploads.models import UploadRequest

    bodies: list[type[BaseModel]] = [
        models.LinkRequest,
        models.WebhookRequest,
        models.RedeliverRequest,
        models.KeyRequest,
        models.TenantRequest,
        TrustRequest,
        UploadRequest,
    ]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            load_all(app.routes)
            app.openapi_schema = _document(app, bodies)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents for extending the schema


def _document(app: FastAPI, bodies: list[type[BaseModel]]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    job = TypeAdapter(JobRequest).json_schema(ref_template=_REFERENCE)
    schemas.update(job.pop("$defs", {}))
    schemas["JobRequest"] = job
    everything: list[type[BaseModel]] = [*bodies, ProblemDocument]
    for model in everything:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = SECURITY
    _declare_problems(document)
    return document


def _declare_problems(document: dict[str, Any]) -> None:
    """Every operation may answer with a problem document, and all but the keyless ones need a key."""
    reference = {"$ref": _REFERENCE.format(model="ProblemDocument")}
    problem = {"description": "A problem document", "content": {MEDIA_TYPE: {"schema": reference}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = problem
            operation["security"] = [] if path in KEYLESS else [{"api_key": []}]
