"""The artifact stores: the same promises on a disk and in S3, and an archive that tar can read."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import (
    ArchivePlan,
    ArtifactStore,
    Sealed,
    check_name,
    make_store,
    remove_if_dead,
    remove_orphans,
)
from jobs.artifacts.local import LocalStore
from jobs.artifacts.s3 import PART_BYTES
from jobs.errors import ArtifactMissingError, StorageError
from jobs.ids import new_id
from jobs.repository import Repository
from jobs.rows import Artifact, Job
from jobs.settings import Settings
from tests.servers import S3, s3_server

FINISHED_AT = 1_795_000_000_123
FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model.safetensors": os.urandom(700_001),
    "z.png": b"\x89PNG" * 128,
}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def s3_settings(server: S3, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        artifacts_url=f"s3://{server.bucket}/{tmp_path.name}",
        artifacts_s3_endpoint=server.endpoint,
        artifacts_s3_access_key=server.access_key,
        artifacts_s3_secret_key=server.secret_key,
    )


def s3_client(server: S3) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return make_store(Settings(data_dir=tmp_path / "data"))
    return make_store(s3_settings(request.getfixturevalue("s3"), tmp_path))


def sealed_files(store: ArtifactStore, job_id: str, attempt: int = 1) -> Sealed:
    stage = store.stage(job_id, attempt)
    for name, data in FILES.items():
        (stage / name).write_bytes(data)
    return store.seal(job_id, attempt, finished_at=FINISHED_AT)


def read(store: ArtifactStore, item: Artifact, start: int, length: int) -> bytes:
    return b"".join(store.open_range(item.storage, item.name, start, length))


def test_what_was_staged_comes_back_with_its_size_and_hash(store: ArtifactStore) -> None:
    job_id = new_id()
    sealed = sealed_files(store, job_id)
    store.publish(job_id, 1)
    store.discard(job_id, 1)
    assert [item.name for item in sealed.artifacts] == sorted(FILES)
    for item in sealed.artifacts:
        data = read(store, item, 0, item.size)
        assert data == FILES[item.name]
        assert item.sha256 == hashlib.sha256(data).hexdigest()
    assert sealed.artifacts[0].media_type == "application/json"


def test_any_range_can_be_read(store: ArtifactStore) -> None:
    job_id = new_id()
    item = next(i for i in sealed_files(store, job_id).artifacts if i.name == "model.safetensors")
    store.publish(job_id, 1)
    data = FILES[item.name]
    for start, length in ((0, 1), (1, 1), (699_999, 2), (100, 500_000), (700_001, 0)):
        assert read(store, item, start, length) == data[start : start + length]


def test_missing_or_short_files_are_an_error_before_the_first_byte(store: ArtifactStore) -> None:
    job_id = new_id()
    item = sealed_files(store, job_id).artifacts[0]
    store.publish(job_id, 1)
    with pytest.raises(ArtifactMissingError):
        store.open_range(item.storage, item.name, 0, item.size + 1)
    with pytest.raises(ArtifactMissingError):
        store.open_range(item.storage, "absent.json", 0, 1)
    store.delete(item.storage)
    with pytest.raises(ArtifactMissingError):
        store.open_range(item.storage, item.name, 0, item.size)


def test_the_archive_is_the_tar_that_its_hash_promises(store: ArtifactStore) -> None:
    job_id = new_id()
    sealed = sealed_files(store, job_id)
    store.publish(job_id, 1)
    plan = ArchivePlan.of(sealed.artifacts)

    def read_range(name: str, start: int, length: int) -> Iterator[bytes]:
        return store.open_range(f"{job_id}/1", name, start, length)

    whole = b"".join(plan.read(0, plan.size, read_range))
    assert len(whole) == plan.size == sealed.archive.size
    assert hashlib.sha256(whole).hexdigest() == sealed.archive.sha256
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [job_id, *(f"{job_id}/{name}" for name in sorted(FILES))]
        assert {int(m.mtime) for m in members} == {FINISHED_AT // 1000}
        for name, data in FILES.items():
            extracted = tar.extractfile(f"{job_id}/{name}")
            assert extracted is not None
            assert extracted.read() == data
    for start, length in ((0, 1), (511, 2), (1000, 4000), (plan.size - 1, 1), (700_000, 20_000)):
        assert b"".join(plan.read(start, length, read_range)) == whole[start : start + length]
    store.delete(f"{job_id}/1")
    with pytest.raises(ArtifactMissingError):
        plan.read(0, plan.size, read_range)


def test_publishing_and_deleting_can_be_repeated(store: ArtifactStore) -> None:
    job_id = new_id()
    item = sealed_files(store, job_id).artifacts[0]
    for _ in range(2):
        store.publish(job_id, 1)
    assert read(store, item, 0, item.size) == FILES[item.name]
    for _ in range(2):
        store.delete(item.storage)
        store.discard(job_id, 1)
    assert list(store.folders()) == []


def test_publishing_leaves_no_stage_folder(store: ArtifactStore, tmp_path: Path) -> None:
    job_id = new_id()
    sealed_files(store, job_id)
    store.publish(job_id, 1)
    assert not list(tmp_path.rglob("*.tmp"))


def test_discarding_never_touches_what_was_published(store: ArtifactStore) -> None:
    job_id = new_id()
    item = sealed_files(store, job_id).artifacts[0]
    store.publish(job_id, 1)
    store.discard(job_id, 1)
    assert read(store, item, 0, item.size) == FILES[item.name]


def test_attempts_of_one_job_do_not_touch_each_other(store: ArtifactStore) -> None:
    job_id = new_id()
    sealed_files(store, job_id, 1)
    second = sealed_files(store, job_id, 2).artifacts[0]
    store.publish(job_id, 2)
    store.delete(f"{job_id}/1")
    assert read(store, second, 0, second.size) == FILES[second.name]
    assert {(f.job_id, f.attempt) for f in store.folders()} == {(job_id, 2)}


def test_the_check_leaves_nothing(store: ArtifactStore) -> None:
    store.check("abc123")
    assert list(store.folders()) == []
    assert store.free_bytes() > 0


def test_a_look_at_a_folder_that_is_not_there_yet_does_not_make_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "data" / "artifacts")
    store.check("abc123")
    assert store.free_bytes() > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError, match=f"{tmp_path / 'data'} is not a folder"):
        LocalStore(tmp_path / "data" / "artifacts").check("abc123")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a b", "ä", "x" * 129, "a\n", "-"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(StorageError):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "step.model.safetensors", "x" * 128, "0_-.json"])
def test_names_that_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("storage", ["../../etc/1", "x/1", "{id}/1.tmp", "{id}/0", "{id}/", "{id}/../{id}/1"])
def test_only_storage_folders_can_be_read_or_deleted(store: ArtifactStore, storage: str) -> None:
    path = storage.replace("{id}", new_id())
    with pytest.raises(StorageError):
        store.open_range(path, "passwd", 0, 1)
    with pytest.raises(StorageError):
        store.delete(path)


def test_only_regular_files_are_sealed(tmp_path: Path) -> None:
    store = make_store(Settings(data_dir=tmp_path / "data"))
    job_id = new_id()
    (store.stage(job_id, 1) / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="regular file"):
        store.seal(job_id, 1, finished_at=FINISHED_AT)


def test_before_publication_the_final_folder_does_not_exist(tmp_path: Path) -> None:
    store = make_store(Settings(data_dir=tmp_path / "data"))
    job_id = new_id()
    sealed_files(store, job_id)
    root = tmp_path / "data" / "artifacts" / job_id
    assert [path.name for path in root.iterdir()] == ["1.tmp"]
    store.publish(job_id, 1)
    assert [path.name for path in root.iterdir()] == ["1"]


@pytest.mark.server
def test_large_files_are_uploaded_in_parts_and_read_by_ranges(s3: S3, tmp_path: Path) -> None:
    store = make_store(s3_settings(s3, tmp_path))
    job_id = new_id()
    data = os.urandom(1 << 20) * 20
    (store.stage(job_id, 1) / "model.safetensors").write_bytes(data)
    (item,) = store.seal(job_id, 1, finished_at=FINISHED_AT).artifacts
    store.publish(job_id, 1)
    store.discard(job_id, 1)
    assert read(store, item, 0, item.size) == data
    assert read(store, item, 16 * (1 << 20) - 3, 7) == data[16 * (1 << 20) - 3 :][:7]
    head = s3_client(s3).head_object(Bucket=s3.bucket, Key=f"{tmp_path.name}/{job_id}/1/model.safetensors")
    assert head["ETag"].strip('"').endswith("-3")  # S3's mark of an upload in three parts


def test_unknown_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        make_store(Settings(data_dir=tmp_path, artifacts_url="gs://bucket"))
    with pytest.raises(ValueError, match="bucket"):
        make_store(Settings(data_dir=tmp_path, artifacts_url="s3://"))


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
class TestOrphans:
    def test_only_dead_folders_go(
        self,
        repository: Repository,
        store: ArtifactStore,
        create: Callable[..., Job],
        turn_back: Callable[..., None],
    ) -> None:
        done, held, lost, deleted = (create() for _ in range(4))
        for job in (done, held, lost, deleted):
            repository.claim(job.id, "w")
            sealed = sealed_files(store, job.id)
            if job in (done, deleted):
                repository.mark_succeeded(
                    job.id,
                    1,
                    artifacts=sealed.artifacts,
                    archive=sealed.archive,
                    metrics={},
                    publish=lambda job=job: store.publish(job.id, 1),  # type: ignore[misc]
                )
                store.discard(job.id, 1)
        repository.delete_job(deleted.id)  # and the process died before it removed the files
        turn_back(lost, "lease_expires_at", 3600)
        repository.sweep_expired()
        sealed_files(store, new_id())  # of a job that nobody knows
        assert remove_orphans(repository, store, grace_seconds=3600) == 0
        assert remove_orphans(repository, store, grace_seconds=-5) >= 3
        assert {folder.job_id for folder in store.folders()} == {done.id, held.id}
        item = repository.list_artifacts(done.id)[0]
        assert read(store, item, 0, item.size) == FILES[item.name]

    def test_a_search_that_was_cut_off_goes_on_where_it_stopped(
        self, repository: Repository, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.artifacts.orphans._BATCH", 2)
        ids = sorted(new_id() for _ in range(5))
        for job_id in ids:
            sealed_files(store, job_id)
            store.publish(job_id, 1)
        places: list[str] = []

        def until_the_first(place: str) -> bool:
            places.append(place)
            return False

        assert remove_orphans(repository, store, grace_seconds=-5, go_on=until_the_first) == 2
        assert places == [ids[1]]
        assert [folder.job_id for folder in store.folders(ids[3])] == [ids[4]]
        assert remove_orphans(repository, store, grace_seconds=-5, after=ids[2]) == 2
        assert [folder.job_id for folder in store.folders()] == [ids[2]]

    def test_an_attempt_that_was_replaced_removes_its_files_at_once(
        self,
        repository: Repository,
        store: ArtifactStore,
        create: Callable[..., Job],
        turn_back: Callable[..., None],
    ) -> None:
        job = create()
        repository.claim(job.id, "w")
        sealed_files(store, job.id)
        assert not remove_if_dead(repository, store, job.id, 1)
        turn_back(job, "lease_expires_at", 3600)
        repository.sweep_expired()
        assert remove_if_dead(repository, store, job.id, 1)
        assert list(store.folders()) == []


@pytest.mark.server
def test_an_upload_that_is_interrupted_leaves_no_parts_behind(s3: S3, tmp_path: Path) -> None:
    store = make_store(s3_settings(s3, tmp_path))
    job_id = new_id()
    (store.stage(job_id, 1) / "model.safetensors").write_bytes(b"x" * (PART_BYTES * 3))
    client, begun = s3_client(s3), []

    def interrupt() -> None:
        begun.extend(client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", []))
        if begun:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        store.seal(job_id, 1, finished_at=FINISHED_AT, interrupt=interrupt)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3.bucket)
    assert "Contents" not in client.list_objects_v2(Bucket=s3.bucket, Prefix=tmp_path.name)


@pytest.mark.server
def test_a_store_that_does_not_answer_is_a_storage_error(s3: S3, tmp_path: Path) -> None:
    gone = {"artifacts_url": f"s3://no-such-bucket/{tmp_path.name}"}
    store = make_store(s3_settings(s3, tmp_path).model_copy(update=gone))
    with pytest.raises(StorageError):
        store.delete(f"{new_id()}/1")
    with pytest.raises(StorageError):
        list(store.folders())
