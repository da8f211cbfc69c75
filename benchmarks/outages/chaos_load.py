"""The jobs of the chaos run, and who posts them."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import Any

import httpx

from benchmarks.outages.chaos_books import Plan, Tally
from jobs.ids import new_id


def requests(plan: Plan, dice: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """The jobs to post, shuffled: most are plain, some are slow, stale, poison, or a user's mistake."""
    stale = max(2, round(plan.stale_attempts * 1.7))
    poison = max(1, plan.jobs // 100)
    mistakes = max(2, plan.jobs // 20)
    slow = plan.jobs // 4
    made = [("stale", analyze({"test.complete": "stale:60"}))] * stale
    made += [("poison", analyze({"test.engine": "die"}))] * poison
    made += [("user_error", prune("broken"))] * mistakes
    made += [("slow", analyze({"test.engine": "hold:0.7"}))] * slow
    made += [("frozen", analyze({"test.complete": "hold:1.5"}))] * (plan.jobs // 20)
    made += [("plain", analyze({"test.acknowledge": "hold:1"}))] * (plan.jobs // 10)
    made += [("plain", prune("tiny"))] * (plan.jobs // 10)
    made += [("plain", streamed())] * max(1, plan.jobs // 20)
    made += [("plain", analyze({}))] * max(0, plan.jobs - len(made))
    dice.shuffle(made)
    return made


def analyze(labels: dict[str, str]) -> dict[str, Any]:
    """A job of a fraction of a second."""
    return {"kind": "analyze", "spec": {"model": {"source": "local", "name": "tiny"}}, "labels": labels}


def prune(model: str) -> dict[str, Any]:
    """A job that writes a checkpoint, or fails on the NaN of the model `broken`."""
    spec = {"model": {"source": "local", "name": model}, "pruning_percentage": 25}
    return {"kind": "prune", "spec": spec}


def streamed() -> dict[str, Any]:
    """A job that is calibrated layer by layer, from disk to disk, and can be hit between two layers."""
    calibration = {"texts": ["w3 w4 w5 w6 w7 w8"] * 4, "max_length": 8, "num_samples": 4, "batch_size": 2}
    spec = {"execution": "streamed", "neuron_selection_method": "OBS", "compensation": "least_squares"}
    made = prune("tiny")
    labels = {"test.calibrate": "hold:0.5"}
    return {**made, "spec": {**made["spec"], **spec, "calibration": calibration}, "labels": labels}


class Poster(threading.Thread):
    """Posts every job once, with an Idempotency-Key, however often the API dies in between."""

    def __init__(self, url: str, key: str, wanted: list[tuple[str, dict[str, Any]]], tally: Tally) -> None:
        super().__init__(name="poster", daemon=True)
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        self._wanted, self._tally = wanted, tally

    def run(self) -> None:
        """Post all; what can't be answered now (its first try may be in flight) is posted again later."""
        waiting = deque((new_id(), what, body) for what, body in self._wanted)
        while waiting:
            key, what, body = waiting.popleft()
            job_id = self._post(key, body)
            if job_id is None:
                waiting.append((key, what, body))
                time.sleep(0.2)
            else:
                self._tally.accepted[job_id] = what

    def post_one(self) -> bool:
        """Post one more plain job, once all are posted; whether it was accepted."""
        job_id = self._post(new_id(), analyze({}))
        if job_id is not None:
            self._tally.accepted[job_id] = "plain"
        return job_id is not None

    def _post(self, key: str, body: dict[str, Any]) -> str | None:
        try:
            answer = self._client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            return None
        if answer.status_code == 202:
            return str(answer.json()["id"])
        # 422 only while no worker has reported the model yet, 409 while the first try is in flight
        if answer.status_code in {409, 422, 429} or answer.status_code >= 500:
            return None
        raise RuntimeError(f"POST /v1/jobs: {answer.status_code} {answer.text}")
