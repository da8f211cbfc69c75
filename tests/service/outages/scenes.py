"""A service in trouble: what befalls it at a moment of a job, what callers are told meanwhile, what heals."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from tests.service.harness import Service, wait_for

MODEL = {"source": "local", "name": "tiny"}
#: Those of a service that is not in a hurry: quicker ones would cost attempts that a real service keeps.
TIMES = {
    "OPTIPFAIR_LEASE_SECONDS": "45",
    "OPTIPFAIR_HEARTBEAT_SECONDS": "5",
    "OPTIPFAIR_REPUBLISH_SECONDS": "10",
}
#: Where in a job's life the fault begins; at the last three, a second before the upload, the commit, the ack.
#: `engine`: while it computes, and over before it writes; `staging`: a second before it writes.
MOMENTS = ("claim", "engine", "staging", "publication", "commit", "acknowledgement")
#: When the fault is over, a fresh job is taken after so long and the time of those that wait before it.
NEXT_JOB_SECONDS = 30.0
#: Every request is answered within this, whatever is away.
ANSWER_SECONDS = 10.0
#: The label by which a job is held at a moment, and what the worker logs then.
_HOOKS = {
    "publication": ("test.seal", "hook.about_to_seal"),
    "commit": ("test.complete", "hook.hold"),
    "acknowledgement": ("test.acknowledge", "hook.about_to_acknowledge"),
}


@dataclass
class Scene(ABC):
    """A service whose surroundings can be made to fail."""

    service: Service
    #: How long an undisturbed job takes here.
    usual_seconds: float = 0.0
    #: A job that ended before, with files.
    earlier_job: str = ""
    #: States in which the job that a fault befalls may end, and the code of its error.
    fair_ends: tuple[tuple[str, str | None], ...] = (("succeeded", None),)
    #: The job that is posted during a fault.
    posted: dict[str, Any] = field(default_factory=lambda: {"kind": "analyze", "spec": {"model": MODEL}})

    @abstractmethod
    def away(self, what: str, fault: str) -> AbstractContextManager[None]:
        """The fault, for as long as the context lasts."""

    def logged(self, event: str) -> int:
        """How often the worker logged it."""
        return (self.service.data_dir / "logs" / "worker.log").read_text().count(event)

    def post(self, labels: dict[str, str] | None = None) -> str:
        """A prune job, which publishes files; what it wrote is checked in the quickest way."""
        return self.service.post_job(spec={"verify": "structure"}, labels=labels or {})

    def reach(self, moment: str, length: float) -> str:
        """A job that is at the moment where a fault of this length shall begin."""
        if moment in _HOOKS:
            label, event = _HOOKS[moment]
            before = self.logged(event)
            job_id = self.post({label: "hold:1"})
            wait_for(lambda: self.logged(event) > before, f"the worker to say {event}")
            return job_id
        if moment == "claim":
            return self.post()
        seconds = 1.0 if moment == "staging" else length + 1.0
        job_id = self.post({"test.engine": f"hold-once:{seconds:g}"})
        self.service.wait_state(job_id, "running")
        return job_id

    def warm_up(self) -> None:
        """Measure the second job's time: the first one warms up."""
        self.earlier_job = self.post()
        self.service.wait_end(self.earlier_job)
        began = time.monotonic()
        self.service.wait_end(self.post())
        self.usual_seconds = time.monotonic() - began


class Asking:
    """A caller that goes on asking during a fault, fetches a file, and posts one job; what it was told."""

    def __init__(self, scene: Scene, job_id: str) -> None:
        self.statuses: Counter[str] = Counter()
        self.slowest = 0.0
        self.accepted: str | None = None
        self._scene = scene
        self._over, self._lock = threading.Event(), threading.Lock()
        state = {"job": f"/v1/jobs/{job_id}", "livez": "/livez", "readyz": "/readyz"}
        file = {"file": f"/v1/jobs/{scene.earlier_job}/artifacts/config.json"}
        # a slow answer must not keep the others from being asked for
        tasks = [(self._go_on, state), (self._go_on, file), (self._post, {"post": "/v1/jobs"})]
        self._threads = [threading.Thread(target=task, args=(paths,), daemon=True) for task, paths in tasks]

    def start(self) -> None:
        """Ask from now on."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No more questions; waits for the last answers."""
        self._over.set()
        for thread in self._threads:
            thread.join(90)

    def _client(self) -> httpx.Client:
        service = self._scene.service
        headers = {"Authorization": service.client.headers["Authorization"]}
        return httpx.Client(base_url=service.url, headers=headers, timeout=60)

    def _go_on(self, paths: dict[str, str]) -> None:
        with self._client() as client:
            while not self._over.is_set():
                for name, path in paths.items():
                    self._ask(client, name, "GET", path)
                self._over.wait(0.3)

    def _post(self, paths: dict[str, str]) -> None:
        with self._client() as client:
            answer = self._ask(client, "post", "POST", paths["post"], json=self._scene.posted)
            if answer is not None and answer.status_code == 202:
                self.accepted = str(answer.json()["id"])

    def _ask(
        self, client: httpx.Client, name: str, method: str, path: str, **options: Any
    ) -> httpx.Response | None:
        began, answer = time.monotonic(), None
        try:
            answer = client.request(method, path, **options)
            said = f"{name} {answer.status_code}"
            if name != "readyz" and answer.status_code >= 400:
                said += f" {answer.json()['code']}"
        except httpx.HTTPError as error:
            said = f"{name} {type(error).__name__}"
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.statuses[said] += 1
        return answer


@dataclass(frozen=True)
class Outcome:
    """What one fault led to."""

    statuses: dict[str, int]
    slowest_answer: float
    taken_seconds: float
    """From the fault's end until a fresh job was taken."""
    ends: tuple[tuple[str, str | None], ...]
    """State and error code of the disturbed job, and of the one that was accepted meanwhile."""
    attempts: int

    def wrong(self, scene: Scene) -> list[str]:
        """What must not be; empty if all is well."""
        alive = all(name == "livez 200" for name in self.statuses if name.startswith("livez"))
        answered = all(name.split()[1] in {"200", "202", "503"} for name in self.statuses)
        # the disturbed job and the one that was posted meanwhile may come first
        bound = NEXT_JOB_SECONDS + 2 * scene.usual_seconds
        checks = [
            (set(self.ends) <= set(scene.fair_ends), f"ends: {self.ends}"),
            (alive, f"liveness: {self.statuses}"),
            (answered, f"answers other than 2xx and 503: {self.statuses}"),
            (self.slowest_answer <= ANSWER_SECONDS, f"an answer took {self.slowest_answer:.1f} s"),
            (self.taken_seconds <= bound, f"the next job was taken after {self.taken_seconds:.1f} s"),
        ]
        return [reason for well, reason in checks if not well]


def suffer(scene: Scene, what: str, fault: str, moment: str, length: float) -> Outcome:
    """One fault at one moment of a job; then a fresh job, and the end of the disturbed one."""
    service = scene.service
    job_id = scene.reach(moment, length)
    asking = Asking(scene, job_id)
    with scene.away(what, fault):
        asking.start()
        time.sleep(length)
    began = time.monotonic()
    asking.end()
    fresh = wait_for(partial(_admitted, service), "a fresh job to be admitted")
    service.wait_state(fresh, "running", "succeeded")
    taken = time.monotonic() - began
    assert service.wait_end(fresh)["state"] == "succeeded"
    jobs = [service.wait_end(each) for each in (job_id, asking.accepted) if each is not None]
    for job in jobs:
        assert len(service.events(job["id"], "succeeded")) == (job["state"] == "succeeded")
    ends = tuple((str(job["state"]), job["error"] and str(job["error"]["code"])) for job in jobs)
    return Outcome(dict(asking.statuses), asking.slowest, taken, ends, int(jobs[0]["attempt"]))


def _admitted(service: Service) -> str | None:
    """A fresh job, unless no worker has been able to say lately that it is alive: that is tried again."""
    answer = service.request("POST", "/v1/jobs", json={"kind": "analyze", "spec": {"model": MODEL}})
    if answer is None or (answer.status_code == 422 and answer.json()["code"] == "no_live_worker"):
        return None
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])
