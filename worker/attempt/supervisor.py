"""One attempt at one job: claim, engine process, heartbeat, events, and the one write that ends it.

The supervisor runs in the Celery worker's thread and never touches a model. Every write carries the attempt's
number; when the database refuses one, another attempt has the job, and this one stops and removes its files.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from jobs.admission.routing import is_better_elsewhere
from jobs.artifacts import KeptSteps
from jobs.artifacts.sealing import full_disk_is_named
from jobs.errors import ArtifactNameError, InvalidError, JobsError, StorageFullError
from jobs.rows import Claim
from jobs.states import State
from worker import test_hooks
from worker.attempt import outcomes, states
from worker.attempt.heartbeat import CANCELLING, LOST, Heartbeat
from worker.attempt.keeping import FinishedSteps
from worker.attempt.log import AttemptLog
from worker.attempt.outcomes import Cancelled, Failed, Finished, Lost, Outcome, Preempted, Replaced, TimedOut
from worker.attempt.progress import ProgressTracker
from worker.attempt.publishing import Workspace
from worker.attempt.retrying import patiently
from worker.attempt.sameness import has_changed, is_as_admitted, model_signatures
from worker.attempt.stages import StageCosts, stages_of
from worker.attempt.task import build_task, expected_bytes
from worker.engine.process import Ended, EngineProcess, Message
from worker.inputs import state as state_files
from worker.log import logger
from worker.services import Services
from worker.tracing import traced_attempt

T = TypeVar("T")
_CHANGED = "the model, or the service's version, is not the one that the job was created for"

#: How often the loop looks at cancel, time-out and shutdown while the engine is silent.
_POLL_SECONDS = 0.2
#: How an engine ends when a whole control group gets SIGTERM: by the signal, or because its fork server did.
_SHUTDOWN_EXITS = frozenset({-signal.SIGTERM, 255})
#: How much later than its engine this process may hear of such a signal.
_SHUTDOWN_SECONDS = 1.0


def run_job(services: Services, job_id: str) -> bool:
    """Work on a job if it is still to be done, and say whether; a better one gets what suits it more."""
    if is_better_elsewhere(services.repository, job_id, services.worker_id):
        services.repository.decline(job_id)
        logger.info("job.declined", job_id=job_id)
        return False
    return claim_and_run(services, job_id)


def claim_and_run(services: Services, job_id: str, *, message_of: str | None = None) -> bool:
    """Work on a job if it is still queued, and say whether; `message_of` is what `claim` takes."""
    claim = services.repository.claim(job_id, services.worker_id, message_of=message_of)
    if claim is None:
        logger.info("job.not_claimed", job_id=job_id)
        return False
    services.running.append(claim)
    try:
        Supervisor(services, claim).run()
    finally:
        services.running.remove(claim)
    return True


def release_running(services: Services) -> None:
    """Put back the job of an attempt that does not stop in time: else its lease would run out, as a loss."""
    for claim in list(services.running):
        services.repository.release_preempted(claim.job.id, claim.attempt)


class Supervisor:
    """Drives one claimed attempt to its end."""

    def __init__(self, services: Services, claim: Claim) -> None:
        self._services, self._claim = services, claim
        self._settings, self._repository = services.settings, services.repository
        self._job, self._attempt = claim.job, claim.attempt
        self._hooks = test_hooks.of_labels(claim.job.labels, claim.attempt, services.environ)
        self._deadline = time.monotonic() + claim.job.timeout_seconds
        self._stop_at: float | None = None
        self._steps: FinishedSteps | None = None
        self._costs = StageCosts.of(services.settings.work_dir)
        self._tracker = ProgressTracker(stages_of(claim.job.kind, claim.job.spec), self._costs)
        self._said = AttemptLog(partial(self._repository.put_log, claim.job.id, claim.attempt))
        self._log = logger.bind(job_id=claim.job.id, attempt=claim.attempt, request_id=claim.job.request_id)

    def run(self) -> None:
        """Everything from the claim to the end state; only defects of this module raise."""
        self._log.info("attempt.started", kind=self._job.kind)
        self._said.say(f"the attempt has begun: {self._job.kind}")
        workspace = Workspace(self._services, self._job.id, self._attempt)
        self._heart = self._make_heartbeat()
        started = time.monotonic()
        with workspace:
            with self._heart, traced_attempt(self._claim) as self._trace, ExitStack() as stack:
                outcome = self._attempt_it(workspace, stack)
                self._trace.outcome(outcome)
                state = self._conclude(outcome, workspace)
                if state is not None and state.terminal:
                    state_files.remove(states.folder_of(self._services, self._job.id))
            self._log.info(
                "attempt.ended",
                outcome=type(outcome).__name__.lower(),
                code=getattr(outcome, "code", None),
                state=state and state.value,
                seconds=round(time.monotonic() - started, 3),
            )

    def _make_heartbeat(self) -> Heartbeat:
        beat = partial(self._repository.heartbeat, self._job.id, self._attempt)
        return Heartbeat(
            beat,
            self._peek,
            interval=self._settings.heartbeat_seconds,
            lease=self._settings.lease_seconds,
        )

    def _peek(self) -> str | None:
        job = self._repository.get_job(self._job.id)
        return job.state.value if job.attempt == self._attempt and job.state in _HELD else None

    def _attempt_it(self, workspace: Workspace, stack: ExitStack) -> Outcome:
        """Prepare, run the engine, and say how it went; foreseen failures are outcomes, not exceptions."""
        try:
            task = self._patiently(partial(self._prepare, workspace, stack))
            engine = EngineProcess(self._services.engines, task, workspace.engine_log)
        except _InterruptedError as error:
            return error.outcome
        except (InvalidError, StorageFullError) as error:
            return Failed(error.code, error.message)
        except (OSError, JobsError, SQLAlchemyError) as error:
            self._log.warning("attempt.preparation_failed", exc_info=True)
            return Lost("preparation_failed", f"the attempt could not be prepared: {type(error).__name__}")
        self._log.debug("engine.started", pid=engine.pid)
        try:
            return self._listen(engine, workspace)
        finally:
            engine.stop()

    def _prepare(self, workspace: Workspace, stack: ExitStack) -> dict[str, Any]:
        services, claim = self._services, self._claim
        self._keep_going()
        self._models_before = model_signatures(services, claim.job)
        if has_changed(services, claim.job, self._models_before):
            self._said.say(_CHANGED, "warning")
            self._repository.warn(claim.job.id, claim.attempt, "changed_since_creation", _CHANGED)
        with full_disk_is_named(), ExitStack() as held:
            workspace.prepare(needed_bytes=expected_bytes(services, claim))
            binding = states.binding_of(services, claim.job, self._models_before)
            self._steps = FinishedSteps(services, claim.job, self._models_before)
            self._steps.take_over(workspace, self._keep_going)
            done = self._steps.metrics
            task = build_task(services, claim, workspace, self._hooks, held, self._keep_going, binding, done)
            stack.enter_context(held.pop_all())  # let go of if this try fails
        return task

    def _keep_going(self) -> None:
        """Called all through the work that this thread does itself, which a signal must end too."""
        interruption = self._interruption()
        if interruption is not None:
            raise _InterruptedError(interruption)

    def _keep_keeping(self) -> None:
        """The same for what is done after the end: a time limit that has passed doesn't matter any more."""
        interruption = self._interruption()
        if interruption is not None and not isinstance(interruption, TimedOut):
            raise _InterruptedError(interruption)

    def _listen(self, engine: EngineProcess, workspace: Workspace) -> Outcome:
        while True:
            interruption = self._interruption()
            if interruption is not None:
                return interruption
            message = engine.receive(_POLL_SECONDS)
            if isinstance(message, Ended):
                return self._gone(message.exitcode, workspace)
            outcome = self._take(message) if message is not None else None
            if isinstance(outcome, Lost) and self._services.stopping.is_set():
                return Preempted()  # a part of the engine that the shutdown's signal reached first
            if outcome is not None:
                return outcome

    def _gone(self, exitcode: int, workspace: Workspace) -> Outcome:
        """The engine ended without a word; by the signal that stops the whole service, it is no loss."""
        if exitcode in _SHUTDOWN_EXITS and self._services.stopping.wait(_SHUTDOWN_SECONDS):
            return Preempted()
        self._log.warning("engine.output", tail=workspace.log_tail())
        return outcomes.of_exit(exitcode)

    def _interruption(self) -> Outcome | None:
        """Why the engine should be stopped now, if it should."""
        if self._heart.status == LOST:
            return Replaced()
        if self._heart.status == CANCELLING:
            return Cancelled()
        now = time.monotonic()
        if now > self._deadline:
            return TimedOut(self._job.timeout_seconds)
        if self._services.stopping.is_set():
            self._stop_at = self._stop_at or now + self._settings.grace_seconds
            if now >= self._stop_at:
                return Preempted()
        return None

    def _take(self, message: Message) -> Outcome | None:
        match message.get("type"):
            case "progress":
                return self._report(message)
            case "announcement":
                return self._announced(str(message.get("what")), message.get("data"))
            case "warning":
                self._said.say(str(message.get("text")), "warning")
                return None
            case "result":
                return Finished(dict(message["metrics"]))  # type: ignore[call-overload]
            case "error":
                self._log.warning("engine.error", code=message.get("code"), trace=message.get("trace"))
                self._said.say(f"the engine failed: {message.get('code')}\n{message.get('trace')}", "error")
                kind = Lost if message.get("retry") else Failed
                return kind(str(message.get("code")), self._public(str(message.get("message"))))
            case other:
                return Lost("engine_protocol", f"the engine sent a message of unknown type {other!r}")

    def _announced(self, what: str, data: object) -> Outcome | None:
        """Write what the engine has decided or found; another kind of news is none."""
        found = data if isinstance(data, dict) else {}
        write: Callable[[], bool]
        if what == "execution":
            way, reason = str(found.get("execution")), str(found.get("reason"))
            write = partial(self._repository.note_execution, self._job.id, self._attempt, way, reason)
            self._said.say(f"execution: {way}, because {reason}")
        elif what == "resumed":
            write = partial(self._repository.add_event, self._job.id, self._attempt, what, found)
            self._said.say(outcomes.resumed(found))
        elif what == "step_finished" and self._steps is not None and self._steps.add(found):
            data = {"step": found["step"]}
            write = partial(self._repository.add_event, self._job.id, self._attempt, what, data)
            self._said.say(f"step {found['step']} is done")
        else:
            return Lost("engine_protocol", f"the engine announced something unknown: {what!r}")
        try:
            return None if write() else Replaced()
        except SQLAlchemyError:
            self._log.warning("announcement.not_written", what=what, exc_info=True)
            return None

    def _public(self, text: str) -> str:
        """A message without this machine's folders: users see it."""
        settings = self._settings
        text = text.replace(str(settings.suites_dir), "suites")
        for folder in (settings.models_dir, settings.work_dir, settings.artifacts_url, settings.data_dir):
            text = text.replace(f"{folder}/", "")
        return text

    def _report(self, message: Message) -> Outcome | None:
        stage, text = str(message["stage"]), str(message["message"])
        done, total = int(str(message["done"])), int(str(message["total"]))
        self._trace.stage(stage)
        progress = self._tracker.update(stage, done, total, text)
        if progress is None:
            return None
        self._said.say(f"{stage} {done}/{total}: {text}")
        data = {"stage": stage, "done": done, "total": total, "message": text, "fraction": progress.fraction}
        try:
            kept = self._repository.add_event(
                self._job.id, self._attempt, "progress", data, progress=progress
            )
        except SQLAlchemyError:
            self._log.warning("progress.not_written", exc_info=True)
            return None
        # Zero rows: cancelled jobs still take events, so the attempt must have been replaced.
        return None if kept else Replaced()

    def _conclude(self, outcome: Outcome, workspace: Workspace) -> State | None:
        """Write the end state; None if another attempt has the job by now."""
        self._said.say(outcomes.told(outcome), "info" if isinstance(outcome, Finished) else "warning")
        self._said.flush()  # before the end is written: who follows the log stops there
        if isinstance(outcome, Finished):
            return self._complete(outcome.metrics, workspace)
        if isinstance(outcome, Replaced):
            return None
        kept = self._kept(outcome, workspace)
        if kept is None:
            # Before the write: on a full disk that holds the database too, it is what makes room for it.
            workspace.discard()
        return self._persist(partial(self._write_end, outcome, kept))

    def _kept(self, outcome: Outcome, workspace: Workspace) -> KeptSteps | None:
        """What a pipeline's finished steps leave in spite of this end; nothing on a full disk."""
        full = isinstance(outcome, Failed) and outcome.code == StorageFullError.code
        if self._steps is None or full or not isinstance(outcome, Failed | Lost | TimedOut):
            return None
        try:
            return self._steps.seal(workspace, self._keep_keeping)
        except _InterruptedError:
            return None

    def _write_end(self, outcome: Outcome, kept: KeptSteps | None) -> State | None:
        job, attempt, repository = self._job.id, self._attempt, self._repository
        match outcome:
            case Failed(code, message):
                return repository.mark_failed(job, attempt, code, message, kept)
            case Lost(code, message):
                return repository.mark_lost(job, attempt, code, message, kept)
            case TimedOut(seconds):
                text = f"the job did not end within its {seconds} seconds"
                return repository.mark_timed_out(job, attempt, text, kept)
            case Cancelled():
                return repository.mark_cancelled(job, attempt)
            case _:
                return repository.release_preempted(job, attempt)

    def _complete(self, metrics: dict[str, Any], workspace: Workspace) -> State | None:
        """Hash and store the files, then publish them in the transaction that ends the job."""
        try:
            self._hold_before_sealing()
            finished_at, reusable = self._patiently(self._look_before_sealing)
            steps = [step["name"] for step in self._job.spec.get("steps", ())]
            files = workspace.seal(finished_at=finished_at, interrupt=self._keep_going, steps=steps)
        except _InterruptedError as error:
            return self._conclude(error.outcome, workspace)
        except (StorageFullError, ArtifactNameError) as error:
            return self._conclude(Failed(error.code, error.message), workspace)
        except (OSError, JobsError, SQLAlchemyError) as error:
            self._log.warning("artifacts.not_stored", exc_info=True)
            return self._conclude(Lost("storage_failed", f"artifacts: {type(error).__name__}"), workspace)
        self._hold_before_completion()
        state = self._persist(
            lambda: self._repository.mark_succeeded(
                self._job.id,
                self._attempt,
                artifacts=files.artifacts,
                archive=files.archive,
                metrics=metrics,
                publish=workspace.publish,
                finished_at=finished_at,
                reusable=reusable,
            )
        )
        if state is None:
            self._log.warning("attempt.stale_rejected")
        else:
            self._costs.learn(self._tracker.spent())
        return state

    def _look_before_sealing(self) -> tuple[int, bool]:
        """The database's time, and whether the result may be reused."""
        self._keep_going()
        now = self._repository.now()
        return now, is_as_admitted(self._services, self._job, self._models_before)

    def _hold_before_sealing(self) -> None:
        kind, seconds = test_hooks.parse_hold(self._hooks.get("seal", ""))
        if kind:
            self._log.info("hook.about_to_seal", seconds=seconds)
            time.sleep(seconds)

    def _hold_before_completion(self) -> None:
        kind, seconds = test_hooks.parse_hold(self._hooks.get("complete", ""))
        if not kind:
            return
        self._log.info("hook.hold", seconds=seconds)
        if kind == "stale":
            self._heart.pause()
            test_hooks.wait_until_replaced(self._peek, seconds)
        else:
            time.sleep(seconds)

    def _persist(self, write: Callable[[], T]) -> T | None:
        try:
            return self._patiently(write)
        except SQLAlchemyError:
            self._log.exception("attempt.end_not_written")
            return None

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, seconds=self._settings.lease_seconds, log=self._log)


class _InterruptedError(Exception):
    """The attempt is to end now, with this outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


_HELD = frozenset({State.RUNNING, State.CANCELLING})
