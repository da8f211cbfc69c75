"""States of streamed jobs: bound to their work, held by one engine at a time, gone when the job is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from jobs.rows import Job
from worker import orphans
from worker.attempt.states import binding_of, folder_of, remove_ended
from worker.inputs import state
from worker.services import Services


def test_a_state_is_kept_for_the_same_work_and_removed_for_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "states" / "job"
    with ExitStack() as stack:
        (state.hold(folder, "one", stack) / "layer").write_text("kept")
    with ExitStack() as stack:
        assert (state.hold(folder, "one", stack) / "layer").read_text() == "kept"
    with ExitStack() as stack:
        assert not (state.hold(folder, "two", stack) / "layer").exists()


def test_two_engines_never_share_a_state(tmp_path: Path) -> None:
    folder = tmp_path / "states" / "job"
    with ExitStack() as first, ExitStack() as second:
        held, other = state.hold(folder, "one", first), state.hold(folder, "one", second)
        assert held == folder
        assert other != folder
        (other / "layer").write_text("its own")
        assert not (folder / "layer").exists()
    assert not other.exists()


def test_a_state_is_bound_to_spec_model_and_code(services: Services, new_job: Callable[..., Job]) -> None:
    job = new_job()
    models = {"tiny": (("model.safetensors", 100, 1),)}
    other_code = replace(services, settings=services.settings.model_copy(update={"code_version": "other"}))
    bindings = [
        binding_of(services, job, models),
        binding_of(services, job, {"tiny": (("model.safetensors", 100, 2),)}),
        binding_of(services, replace(job, spec={**job.spec, "pruning_percentage": 1.5}), models),
        binding_of(other_code, job, models),
    ]
    assert len(set(bindings)) == len(bindings)
    assert binding_of(services, job, models) == bindings[0]


def test_the_states_of_ended_and_deleted_jobs_go_and_others_stay(
    services: Services, new_job: Callable[..., Job]
) -> None:
    waiting, cancelled = new_job(), new_job()
    services.repository.cancel_job(cancelled.id)
    gone = "01981f3a-5b6c-7d8e-9f00-112233445566"
    for job_id in (waiting.id, cancelled.id, gone):
        with ExitStack() as stack:
            state.hold(folder_of(services, job_id), "work", stack)
    orphans.drop_states(services)
    left = sorted(path.name for path in services.states_dir.iterdir())
    assert left == [waiting.id, f"{waiting.id}.lock"]
    assert remove_ended(services) == 0
