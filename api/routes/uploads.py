"""Uploads: declare, send, complete, look, delete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.auth import Reader, Writer
from api.body import body_of
from api.context import Services, WithServices, acting
from api.operations import PUT_FILE, UPLOAD_STATE, body_schema
from api.problem import not_found
from api.uploads import models
from api.uploads.receiving import receive, stretch_of
from api.views import rfc3339_or_none
from jobs.errors import StorageError
from jobs.logs import structlog
from jobs.repository import Repository
from jobs.times import rfc3339
from jobs.uploads.checking import HashMismatchError, check_upload
from jobs.uploads.declaring import Declared, check_declaration
from jobs.uploads.rows import Upload, UploadFile

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
UploadBody = Annotated[models.UploadRequest, Depends(body_of(models.UploadRequest))]
_log = structlog.get_logger("api.uploads")


@router.post(
    "", status_code=201, response_model=models.Upload, openapi_extra=body_schema(models.UploadRequest)
)
def create_upload(
    principal: Writer, wanted: UploadBody, request: Request, response: Response, services: WithServices
) -> models.Upload:
    """Declare files; those whose sha256 the tenant has sent before are `here` at once."""
    files = [Declared(file.name, file.size, file.sha256) for file in wanted.files]
    check_declaration(wanted.kind, files)
    repository = acting(services, request, principal)
    upload = repository.create_upload(principal.tenant, wanted.kind, wanted.name, files)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return _view(upload)


@router.get("", response_model=models.UploadList)
def list_uploads(principal: Reader, services: WithServices) -> models.UploadList:
    """The newest uploads, at most 100."""
    return models.UploadList(items=[_view(item) for item in services.repository.list_uploads(principal.sees)])


@router.get("/{upload_id}", response_model=models.Upload)
def get_upload(upload_id: str, principal: Reader, services: WithServices) -> models.Upload:
    """An upload, with the first missing byte of each file."""
    return _view(services.repository.get_upload(upload_id, principal.sees))


@router.delete("/{upload_id}", status_code=204, response_class=Response)
def delete_upload(upload_id: str, request: Request, principal: Writer, services: WithServices) -> None:
    """Delete an upload; jobs that name it and have not begun will fail."""
    remove_upload(services, acting(services, request, principal), upload_id, principal.sees)


def remove_upload(services: Services, repository: Repository, upload_id: str, tenant: str | None) -> None:
    """Forget an upload and delete its files."""
    _remove(services, repository.delete_upload(upload_id, tenant))


@router.head("/{upload_id}/files/{name}", status_code=204, responses=UPLOAD_STATE, response_class=Response)
def head_file(upload_id: str, name: str, principal: Reader, services: WithServices) -> Response:
    """`Upload-Offset`: the first byte of the file that is missing."""
    file = _file(services.repository.get_upload(upload_id, principal.sees), name)
    return Response(status_code=204, headers=_progress(file))


@router.put("/{upload_id}/files/{name}", status_code=204, response_class=Response, openapi_extra=PUT_FILE)
async def put_file(
    upload_id: str, name: str, request: Request, principal: Writer, services: WithServices
) -> Response:
    """Send a file whole, or the bytes that Content-Range says; any order, and again after a cut."""
    upload = await run_in_threadpool(services.repository.get_upload, upload_id, principal.sees)
    file = _file(upload, name)
    stretch = stretch_of(request, file)
    if "content-range" not in request.headers and not upload.complete:  # sent whole: it replaces what came
        _remove(services, await run_in_threadpool(services.repository.restart_file, file))
        file = _file(await run_in_threadpool(services.repository.get_upload, upload_id, principal.sees), name)
    await receive(services, file, stretch, request.stream())
    upload = await run_in_threadpool(services.repository.get_upload, upload_id, principal.sees)
    return Response(status_code=204, headers=_progress(_file(upload, name)))


@router.post("/{upload_id}/complete", response_model=models.Upload)
def complete_upload(
    upload_id: str, request: Request, principal: Writer, services: WithServices
) -> models.Upload:
    """Check sizes, hashes and headers; from then on jobs may name the upload. A repeat is safe."""
    upload = services.repository.get_upload(upload_id, principal.sees)
    if upload.complete:
        return _view(upload)
    try:
        facts = check_upload(services.store, upload, services.settings.work_dir / "checks")
    except HashMismatchError as error:
        wrong = next(file for file in upload.files if file.blob_id == error.blob_id)
        _remove(services, services.repository.restart_file(wrong))
        raise
    except OSError:
        raise StorageError("the files can't be checked at the moment: no place for their headers") from None
    return _view(acting(services, request, principal).complete_upload(upload, facts))


def _file(upload: Upload, name: str) -> UploadFile:
    found = upload.file(name)
    if found is None:
        raise not_found("file")
    return found


def _progress(file: UploadFile) -> dict[str, str]:
    return {"Upload-Offset": str(file.offset), "Upload-Length": str(file.size), "Cache-Control": "no-store"}


def _remove(services: Services, folders: Iterable[str]) -> None:
    """Delete folders of the store; what can't be deleted now is found as an orphan later."""
    for storage in folders:
        try:
            services.store.delete(storage)
        except StorageError as error:
            _log.warning("files_left", storage=storage, error=error.message)


def _view(upload: Upload) -> models.Upload:
    base = f"/v1/uploads/{upload.id}"
    files = [
        models.UploadFile.model_validate(
            {"name": f.name, "size": f.size, "sha256": f.sha256, "state": f.state, "offset": f.offset}
        )
        for f in upload.files
    ]
    return models.Upload.model_validate(
        {
            "id": upload.id,
            "kind": upload.kind,
            "name": upload.name,
            "state": upload.state,
            "files": files,
            "facts": upload.facts,
            "created_at": rfc3339(upload.created_at),
            "completed_at": rfc3339_or_none(upload.completed_at),
            "expires_at": rfc3339(upload.expires_at),
            "links": {"self": base, "files": f"{base}/files", "complete": f"{base}/complete"},
        }
    )
