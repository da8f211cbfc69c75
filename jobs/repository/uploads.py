"""Uploads in the database: what was declared, which bytes have arrived, and what nothing refers to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from jobs import tables as t
from jobs.database import now_ms
from jobs.errors import ConflictError, InvalidError, NotFoundError
from jobs.ids import is_id, new_id
from jobs.repository.base import Verbs, later
from jobs.rows import JsonObject, storage_of, to_json
from jobs.uploads.declaring import Declared
from jobs.uploads.rows import Part, Upload, UploadFile, missing, overlaps


class UploadVerbs(Verbs):
    """Files that callers bring; a tenant of None means every tenant's."""

    def create_upload(self, tenant: str, kind: str, name: str, files: Sequence[Declared]) -> Upload:
        """Declare an upload. A file whose hash the tenant has verified before is there at once.

        InvalidError (`upload_quota_exceeded`) if the tenant's files would be larger than its quota: what
        is declared counts, so that bytes that were promised a place have one.
        """
        upload_id = new_id()
        values = {"id": upload_id, "tenant": tenant, "kind": kind, "name": name, "state": "open"}
        ends = later(self.settings.upload_ttl_seconds)
        with self._write() as connection:
            self._one_at_a_time(connection, tenant)
            connection.execute(insert(t.uploads).values(**values, created_at=now_ms(), expires_at=ends))
            for file in files:
                blob_id = _blob_for(connection, tenant, file)
                row = {"upload_id": upload_id, "name": file.name, "blob_id": blob_id}
                connection.execute(insert(t.upload_files).values(**row))
            self._check_upload_quota(connection, tenant)
            self._audit(connection, "upload.create", tenant, upload_id)
            return _load(connection, upload_id, tenant)

    def get_upload(self, upload_id: str, tenant: str | None = None) -> Upload:
        """The upload; NotFoundError if there is none (any more), or if it is another tenant's."""
        with self._read() as connection:
            return _load(connection, upload_id, tenant)

    def list_uploads(self, tenant: str | None, *, limit: int = 100) -> list[Upload]:
        """The tenant's uploads, the newest first."""
        c = t.uploads.c
        query = select(c.id).where(c.expires_at > now_ms()).order_by(c.id.desc()).limit(limit)
        with self._read() as connection:
            wanted = query if tenant is None else query.where(c.tenant == tenant)
            ids = list(connection.execute(wanted).scalars())
            found = []
            for upload_id in ids:
                with suppress(NotFoundError):  # deleted meanwhile
                    found.append(_load(connection, upload_id, tenant))
            return found

    def restart_file(self, file: UploadFile) -> list[str]:
        """Forget the bytes of a file that is sent anew; returns the storage folders to delete."""
        with self._write() as connection:
            return _forget_parts(connection, file.blob_id)

    def next_part(self, blob_id: str) -> int:
        """The number of a new part: handed out once. NotFoundError if the file is gone."""
        c = t.blobs.c
        counted = update(t.blobs).where(c.id == blob_id).values(last_part=c.last_part + 1)
        with self._write() as connection:
            number: int | None = connection.execute(counted.returning(c.last_part)).scalar_one_or_none()
        if number is None:
            raise _no_such_upload()
        return number

    def add_part(self, part: Part, publish: Callable[[], None]) -> bool:
        """Record a part that the store has sealed, and `publish` it, both or neither.

        False if the bytes came by another way meanwhile, or the file is verified: the part is not needed.
        Race: the blob's row is locked. NotFoundError if the upload was deleted.
        """
        with self._write() as connection:
            held = select(t.blobs.c.verified).where(t.blobs.c.id == part.blob_id).with_for_update()
            verified = connection.execute(held).scalar_one_or_none()
            if verified is None:
                raise _no_such_upload()
            if verified or overlaps(_parts(connection, [part.blob_id]), part.first, part.end):
                return False
            row = {"blob_id": part.blob_id, "number": part.number, "first": part.first, "size": part.size}
            connection.execute(insert(t.blob_parts).values(**row))
            publish()
        return True

    def has_bytes(self, part: Part) -> bool:
        """Whether other parts hold every byte of this one, or the file is verified, or gone."""
        with self._read() as connection:
            query = select(t.blobs.c.verified).where(t.blobs.c.id == part.blob_id)
            if connection.execute(query).scalar_one_or_none() is not False:
                return True
            return not missing(_parts(connection, [part.blob_id]), part.first, part.end)

    def complete_upload(self, upload: Upload, facts: JsonObject | None) -> Upload:
        """Make a checked upload usable. Repeats are safe; ConflictError if its bytes changed meanwhile."""
        blobs = sorted({file.blob_id for file in upload.files})
        with self._write() as connection:
            connection.execute(select(t.blobs.c.id).where(t.blobs.c.id.in_(blobs)).with_for_update())
            current = _load(connection, upload.id, upload.tenant)
            if [file.parts for file in current.files] != [file.parts for file in upload.files]:
                raise ConflictError("the files changed while they were checked", code="upload_changed")
            if not current.complete:
                connection.execute(update(t.blobs).where(t.blobs.c.id.in_(blobs)).values(verified=True))
                connection.execute(
                    update(t.uploads)
                    .where(t.uploads.c.id == upload.id)
                    .values(
                        state="complete",
                        facts=None if facts is None else to_json(facts),
                        completed_at=now_ms(),
                        expires_at=later(self.settings.upload_ttl_seconds),
                    )
                )
                self._audit(connection, "upload.complete", upload.tenant, upload.id)
            return _load(connection, upload.id, upload.tenant)

    def keep_uploads(self, upload_ids: Sequence[str]) -> None:
        """Uploads that a new job names stay for their whole time from now."""
        c = t.uploads.c
        if upload_ids:
            with self._write() as connection:
                ends = later(self.settings.upload_ttl_seconds)
                connection.execute(update(t.uploads).where(c.id.in_(upload_ids)).values(expires_at=ends))

    def delete_upload(self, upload_id: str, tenant: str | None) -> list[str]:
        """Forget an upload; returns the storage folders that nothing refers to any more."""
        with self._write() as connection:
            upload = _load(connection, upload_id, tenant)
            self._audit(connection, "upload.delete", upload.tenant, upload_id)
            return _remove(connection, [upload_id])

    def take_expired_uploads(self, *, limit: int = 20) -> list[str]:
        """Forget uploads whose time has passed; returns the storage folders to delete from the store.

        Safe to run several times at once; folders that a dying process leaves are found as orphans.
        """
        due = (
            select(t.uploads.c.id)
            .where(t.uploads.c.expires_at <= now_ms())
            .limit(limit)
            .with_for_update(skip_locked=self._skip_locked)
        )
        with self._write() as connection:
            return _remove(connection, list(connection.execute(due).scalars()))

    def _one_at_a_time(self, connection: Connection, tenant: str) -> None:
        """Let a tenant's declarations follow each other, or two could use the same rest of its quota."""
        connection.execute(select(t.tenants.c.name).where(t.tenants.c.name == tenant).with_for_update())

    def _check_upload_quota(self, connection: Connection, tenant: str) -> None:
        limit = self.settings.upload_quota_bytes
        total = func.coalesce(func.sum(t.blobs.c.size), 0)
        used = int(connection.execute(select(total).where(t.blobs.c.tenant == tenant)).scalar_one())
        if used > limit:
            message = (
                f"this tenant's uploads would take {used} bytes; its quota is {limit}: delete some first"
            )
            raise InvalidError(message, code="upload_quota_exceeded", location=("files",))


def _no_such_upload() -> NotFoundError:
    return NotFoundError("no such upload", code="upload_not_found")


def _blob_for(connection: Connection, tenant: str, file: Declared) -> str:
    """The blob of these bytes that the tenant has verified, or a new one without bytes."""
    c = t.blobs.c
    same = (c.tenant == tenant, c.sha256 == file.sha256, c.size == file.size, c.verified.is_(True))
    known = connection.execute(
        select(c.id).where(*same).limit(1).with_for_update(read=True)
    ).scalar_one_or_none()
    if known is not None:
        return str(known)
    values = {"id": new_id(), "tenant": tenant, "size": file.size, "sha256": file.sha256}
    connection.execute(insert(t.blobs).values(**values, verified=False, last_part=0, created_at=now_ms()))
    return str(values["id"])


def _load(connection: Connection, upload_id: str, tenant: str | None) -> Upload:
    row = None
    if is_id(upload_id):
        c = t.uploads.c
        query = select(t.uploads).where(c.id == upload_id, c.expires_at > now_ms())
        row = connection.execute(query).mappings().first()
    if row is None or (tenant is not None and row["tenant"] != tenant):
        raise _no_such_upload()
    values = dict(row)
    facts = None if values["facts"] is None else json.loads(values["facts"])
    return Upload(**{**values, "facts": facts, "files": _files(connection, upload_id)})


def _files(connection: Connection, upload_id: str) -> tuple[UploadFile, ...]:
    b, f = t.blobs.c, t.upload_files.c
    query: Select[Any] = (
        select(f.name, b.id.label("blob_id"), b.size, b.sha256, b.verified)
        .join(t.blobs, b.id == f.blob_id)
        .where(f.upload_id == upload_id)
        .order_by(f.name)
    )
    rows: Sequence[Mapping[Any, Any]] = connection.execute(query).mappings().all()
    parts = _parts(connection, [row["blob_id"] for row in rows])
    by_blob = {key: tuple(group) for key, group in groupby(parts, lambda part: part.blob_id)}
    return tuple(UploadFile(**row, parts=by_blob.get(row["blob_id"], ())) for row in rows)


def _parts(connection: Connection, blob_ids: Sequence[str]) -> list[Part]:
    c = t.blob_parts.c
    query = select(t.blob_parts).where(c.blob_id.in_(blob_ids)).order_by(c.blob_id, c.first)
    return [Part(**row) for row in connection.execute(query).mappings()]


def _forget_parts(connection: Connection, blob_id: str) -> list[str]:
    """Those of a blob that is not verified; of one that is, none."""
    held = select(t.blobs.c.verified).where(t.blobs.c.id == blob_id).with_for_update()
    if connection.execute(held).scalar_one_or_none() is not False:
        return []
    folders = [part.storage for part in _parts(connection, [blob_id])]
    connection.execute(delete(t.blob_parts).where(t.blob_parts.c.blob_id == blob_id))
    return folders


def _remove(connection: Connection, upload_ids: Sequence[str]) -> list[str]:
    f = t.upload_files.c
    named = select(f.blob_id).distinct().where(f.upload_id.in_(upload_ids))
    blobs = sorted(connection.execute(named).scalars())
    connection.execute(select(t.blobs.c.id).where(t.blobs.c.id.in_(blobs)).with_for_update())
    connection.execute(delete(t.uploads).where(t.uploads.c.id.in_(upload_ids)))
    used = set(connection.execute(select(f.blob_id).distinct().where(f.blob_id.in_(blobs))).scalars())
    unused = [blob for blob in blobs if blob not in used]
    folders = [storage_of(part.blob_id, part.number) for part in _parts(connection, unused)]
    connection.execute(delete(t.blobs).where(t.blobs.c.id.in_(unused)))
    return folders
