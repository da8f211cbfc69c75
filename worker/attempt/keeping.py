"""The finished steps of a pipeline: kept when an attempt ends otherwise than well, used by the next one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from jobs.artifacts import Interrupt, KeptSteps
from jobs.errors import JobsError, StorageError, StorageFullError
from jobs.rows import Job, JsonObject
from optipfair_engine.workflow.metrics import write_metrics
from worker.attempt import states
from worker.attempt.publishing import Workspace
from worker.attempt.sameness import Signatures, model_signatures
from worker.attempt.task import fetch
from worker.engine import steps as layout
from worker.log import logger
from worker.services import Services


class FinishedSteps:
    """Which steps of a pipeline are done, with their metrics; of any other job there are none.

    Args:
        services: the worker's.
        job: the claimed job.
        models: the signatures of its local models as the attempt begins.
    """

    def __init__(self, services: Services, job: Job, models: Signatures) -> None:
        self._services, self._job, self._models = services, job, models
        self._names = [step["name"] for step in job.spec.get("steps", ())]
        self._binding = states.binding_of_steps(services, job, models) if self._names else None
        self._taken_over: list[str] = []
        self.metrics: dict[str, JsonObject] = {}

    def take_over(self, workspace: Workspace, interrupt: Interrupt) -> None:
        """Put the files of the steps that earlier attempts have finished where this one's engine looks.

        Nothing is taken over from another spec, model or code, nor if a file isn't what was published.
        Raises what `interrupt` raises, and StorageFullError.
        """
        kept = self._job.kept
        if kept is None or self._binding is None or kept["binding"] != self._binding:
            return
        try:
            self._fetch(workspace, interrupt)
        except StorageFullError:
            raise
        except StorageError as error:
            logger.warning("steps.not_taken_over", job_id=self._job.id, error=type(error).__name__)
            shutil.rmtree(workspace.output / layout.FOLDER, ignore_errors=True)
            return
        merged = self._services.repository.get_metrics(self._job.id) or {}
        self._taken_over = self._job.kept_steps
        self.metrics = {name: layout.metrics_of(name, merged) for name in self._taken_over}

    def _fetch(self, workspace: Workspace, interrupt: Interrupt) -> None:
        artifacts = self._services.repository.list_artifacts(self._job.id)
        if not artifacts:
            raise StorageError("the finished steps have gone since the claim, past their time")
        for name in self._job.kept_steps:
            folder, before = layout.folder_of(workspace.output, name), f"{name}."
            folder.mkdir(parents=True)
            for artifact in artifacts:
                if artifact.name.startswith(before):
                    fetch(self._services, artifact, folder / artifact.name.removeprefix(before), interrupt)

    def add(self, told: Mapping[str, Any]) -> bool:
        """Take note of a step that the engine says is finished; False if the job has no such step."""
        name, metrics = told.get("step"), told.get("metrics")
        if not isinstance(name, str) or name not in self._names or not isinstance(metrics, dict):
            return False
        self.metrics[name] = metrics
        return True

    def seal(self, workspace: Workspace, interrupt: Interrupt) -> KeptSteps | None:
        """Hash and store what is done, for an end that publishes it; None if there is nothing new, or no way.

        The engine's process must be gone. Whatever goes wrong here costs the finished steps, never the end.
        """
        if len(self.metrics) == len(self._taken_over):
            return None
        try:
            merged = layout.merge_metrics(self.metrics)
            layout.remove_unfinished(workspace.output, self.metrics)
            layout.flatten_steps(workspace.output)
            write_metrics(workspace.output, merged)
            finished_at = self._services.repository.now()
            sealed = workspace.seal(finished_at=finished_at, interrupt=interrupt, steps=self._names)
            unchanged = model_signatures(self._services, self._job) == self._models
        except (OSError, JobsError, SQLAlchemyError):
            logger.warning("steps.not_kept", job_id=self._job.id, exc_info=True)
            return None
        done = [name for name in self._names if name in self.metrics]
        binding = self._binding if unchanged else None
        return KeptSteps(done, binding, merged, sealed.artifacts, sealed.archive, workspace.publish)
