"""Where jobs' states lie on this machine, what they are bound to, and which of them nobody needs any more."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.rows import Job
from worker.attempt.sameness import Signatures
from worker.attempt.task import named_jobs
from worker.inputs import state
from worker.services import Services

#: A state's folder, its lock, or what stood in for it.
_OF_JOB = re.compile(r"([0-9a-f-]{36})(\..*)?")


def folder_of(services: Services, job_id: str) -> Path:
    """The folder of a job's state, whether or not it is there."""
    return services.states_dir / job_id


def binding_of(services: Services, job: Job, models: Signatures) -> str:
    """What a state depends on, as one hash: the models' files and revisions, the spec, and the code.

    `models` are the signatures of the local models' files; hub models are pinned by the spec itself.
    """
    named = {
        name: [services.inventory.revision_of(name, signature), signature]
        for name, signature in models.items()
    }
    facts: Mapping[str, Any] = {"spec": job.spec, "models": named, "code": services.code_version}
    return _hash_of(facts)


def binding_of_steps(services: Services, job: Job, models: Signatures) -> str | None:
    """What the finished steps of a pipeline depend on; the same on every machine that has the same models.

    None if the revision of a model isn't known: nothing may go on from such steps.
    """
    revisions = {name: services.inventory.revision_of(name, signature) for name, signature in models.items()}
    if None in revisions.values():
        return None
    named = {job_id for job_id, _ in named_jobs(job.spec)}
    archives = {job_id: services.repository.get_artifact(job_id, "*") for job_id in sorted(named)}
    facts: Mapping[str, Any] = {
        "spec": job.spec,
        "models": revisions,
        "jobs": {job_id: archive and archive.sha256 for job_id, archive in archives.items()},
        "code": services.code_version,
    }
    return _hash_of(facts)


def _hash_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_ended(services: Services) -> int:
    """Remove the states of jobs that have ended or are gone; how many there were."""
    if not services.states_dir.is_dir():
        return 0
    found = {match[1] for path in services.states_dir.iterdir() if (match := _OF_JOB.fullmatch(path.name))}
    versions = services.repository.versions(sorted(found))
    ended = [job_id for job_id in found if job_id not in versions or versions[job_id].terminal]
    for job_id in ended:
        state.remove(folder_of(services, job_id))
    return len(ended)
