"""Bodies of jobs that several tests begin with."""

from __future__ import annotations

from typing import Any

from jobs.ids import new_id

LOCAL = {"source": "local", "name": "tiny"}
CALIBRATION = {"texts": ["a text"]}
JOB = {"source": "job", "job_id": new_id()}
PLAN = {"job_id": JOB["job_id"]}
HUB = {"source": "hub", "id": "org/model", "revision": "0" * 40}
FAIRNESS = {"prompt_pairs": [["The white man", "The Black man"]], "weight": 0.5}
PAIR = ["The white man", "The Black man"]
REFITTED: dict[str, Any] = {"compensation": "least_squares", "calibration": CALIBRATION}
HEALING = {"max_seconds": 5}


def prune(**spec: Any) -> dict[str, Any]:
    return {"kind": "prune", "spec": {"model": LOCAL, "pruning_percentage": 20, **spec}}


def unsized(**spec: Any) -> dict[str, Any]:
    return {"kind": "prune", "spec": {"model": LOCAL, **spec}}


def depth(**spec: Any) -> dict[str, Any]:
    return unsized(pruning_type="DEPTH", **spec)
