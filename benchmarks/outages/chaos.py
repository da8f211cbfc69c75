"""`make chaos`: hundreds of small jobs while their workers, engines, API, broker and database are killed.

Nothing may be lost and nothing published twice, whatever dies. Being consistent is not enough: the broker is
also killed and frozen just when a worker is about to acknowledge a job, Postgres is frozen, and when calm has
come a fresh job must be taken and end within 30 s. Among the jobs are some that are streamed and calibrated
layer by layer, among the workers one that takes a single job and ends (`--once`), started again some times.
The run also fails if it was too gentle: unless, of 200 jobs, at least 30 attempts were lost while running, at
least 10 stale attempts tried to complete, and 3 `--once` workers carried out their job; of fewer jobs as many
less.

    python -m benchmarks.outages.chaos [--backend sqlite|postgres|both] [--jobs 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.outages.chaos_books import Books, Plan, Report, Tally
from benchmarks.outages.chaos_cluster import LEASE_SECONDS, Cluster, cluster, wait_until
from benchmarks.outages.chaos_load import Poster, requests
from jobs.database import connect
from jobs.patience import BROKER_ANSWER_SECONDS
from jobs.repository import Repository
from jobs.settings import Settings
from jobs.signing.keys import SCOPES, generate_key
from jobs.signing.secret import load_secrets
from tests.tiny import write_tiny_llama, write_word_tokenizer

WORKERS = 3
#: Acts of violence per attempt that was started: more, and on a slow machine nothing would ever end.
ACTIONS_PER_ATTEMPT = 0.3
ABOUT_TO_ACKNOWLEDGE = "hook.about_to_acknowledge"
#: So long chaos waits for a worker that is about to acknowledge, in seconds.
END_PATIENCE = 3.0
#: The workers load torch all at once, which a busy machine takes minutes for.
START_SECONDS = 600.0


class Chaos(threading.Thread):
    """Does something violent for every third attempt or so, until it is told to stop."""

    def __init__(self, made: Cluster, books: Books, tally: Tally, dice: random.Random) -> None:
        super().__init__(name="chaos", daemon=True)
        self._cluster, self._books, self._tally, self._dice = made, books, tally, dice
        self.finished = threading.Event()
        # (weight, most in a run, action): what costs a process start of seconds is rationed
        self._actions: list[tuple[float, int, Callable[[], bool]]] = [
            (20.0, 1000, self.kill_engine),
            (3.0, 4, self.kill_worker),
            (2.0, 6, self.freeze_worker),
            (1.5, 3, self.kill_api),
            (1.0, 3, self.empty_broker),
            (2.0, 3, self.kill_broker_at_an_end),
            (2.0, 3, self.freeze_broker_at_an_end),
        ]
        if made.postgres is not None:
            self._actions.append((1.0, 2, self.restart_database))
            self._actions.append((1.0, 2, self.freeze_database))

    def run(self) -> None:
        """Act until finished; each kind of action once before any is repeated."""
        first = [action for _weight, _most, action in self._actions]
        self._dice.shuffle(first)
        while not self.finished.wait(self._dice.uniform(0.1, 0.3)):
            self._cluster.revive()
            if self._tally.actions.total() >= ACTIONS_PER_ATTEMPT * self._books.attempts():
                continue
            action = first[-1] if first else self._choose()
            if action() and first:
                first.pop()

    def _choose(self) -> Callable[[], bool]:
        done = self._tally.actions
        open_ones = [(w, act) for w, most, act in self._actions if done[act.__name__] < most]
        weights, actions = zip(*open_ones, strict=True)
        chosen: Callable[[], bool] = self._dice.choices(actions, weights)[0]
        return chosen

    def kill_engine(self) -> bool:
        """SIGKILL to a running attempt's engine, as when memory runs out."""
        engines = [pid for worker in self._cluster.workers for pid in worker.engines()]
        return bool(engines) and self._did("kill_engine", lambda: _kill(self._dice.choice(engines)))

    def kill_worker(self) -> bool:
        """SIGKILL to a worker, preferably one that is busy."""
        busy = [worker for worker in self._cluster.workers if worker.engines()]
        if not busy:
            return False
        worker = self._dice.choice(busy)
        held = self._books.held_by(worker.pid)
        moment = time.time() * 1000
        self._tally.killed += [(job, attempt, moment) for job, attempt in held]
        return self._did("kill_worker", worker.kill)

    def kill_api(self) -> bool:
        """SIGKILL to the HTTP process, wherever it is between commit and publish."""
        return self._did("kill_api", self._cluster.api.kill)

    def empty_broker(self) -> bool:
        """SIGKILL to the broker, and a start without its data: every message is lost."""
        return self._did("empty_broker", lambda: self._cluster.valkey.restart(empty=True))

    def kill_broker_at_an_end(self) -> bool:
        """SIGKILL to the broker when a worker is about to acknowledge a job; back a moment later."""
        if not self._at_an_end():
            return False
        self._cluster.valkey.stop(signal.SIGKILL)
        time.sleep(1.5)
        return self._did("kill_broker_at_an_end", self._cluster.valkey.start)

    def freeze_broker_at_an_end(self) -> bool:
        """SIGSTOP to the broker when a worker is about to acknowledge a job; longer than its time limit."""
        if not self._at_an_end() or self._cluster.valkey.process is None:
            return False
        pid = self._cluster.valkey.process.pid
        return self._did("freeze_broker_at_an_end", lambda: _freeze([pid], BROKER_ANSWER_SECONDS + 1.0))

    def freeze_database(self) -> bool:
        """SIGSTOP to all of Postgres, then SIGCONT before the leases run out."""
        postgres = self._cluster.postgres
        if postgres is None or postgres.process is None:
            return False
        top = postgres.process.pid
        pids = [top, *(child.pid for child in psutil.Process(top).children(recursive=True))]
        return self._did("freeze_database", lambda: _freeze(pids, LEASE_SECONDS / 2))

    def _at_an_end(self) -> bool:
        """Wait until a worker is about to acknowledge; False if none is within a few seconds."""
        before = self._cluster.logged(ABOUT_TO_ACKNOWLEDGE)
        with suppress(TimeoutError):
            wait_until(lambda: self._cluster.logged(ABOUT_TO_ACKNOWLEDGE) > before, "an end", END_PATIENCE)
            return True
        return False

    def freeze_worker(self) -> bool:
        """SIGSTOP past the lease, then SIGCONT: the worker wakes up as a stale one."""
        busy = [worker for worker in self._cluster.workers if worker.engines() and not worker.stopped]
        if not busy:
            return False
        worker = self._dice.choice(busy)
        pid = worker.pid
        worker.stopped = True

        def thaw() -> None:
            _send(pid, signal.SIGCONT)
            worker.stopped = False

        _send(pid, signal.SIGSTOP)
        threading.Timer(LEASE_SECONDS + 2.0, thaw).start()
        return self._did("freeze_worker", lambda: None)

    def restart_database(self) -> bool:
        """A crash of Postgres (SIGQUIT) and its recovery."""
        postgres = self._cluster.postgres
        return postgres is not None and self._did(
            "restart_database", lambda: postgres.restart(signal.SIGQUIT)
        )

    def _did(self, name: str, act: Callable[[], object]) -> bool:
        act()
        self._tally.actions[name] += 1
        return True


def _freeze(pids: Sequence[int], seconds: float) -> None:
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        _send(pid, signal.SIGCONT)


def _kill(pid: int) -> None:
    _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def run(backend: str, plan: Plan, seed: int, home: Path) -> Report:
    """One run; the members' logs stay under `home`."""
    dice = random.Random(seed)
    write_word_tokenizer(write_tiny_llama(home / "models" / "tiny"))
    write_tiny_llama(home / "models" / "broken", nan_in="model.norm.weight")
    with cluster(home, backend, WORKERS, once=2 * plan.once_jobs) as made:
        settings = Settings(data_dir=home, database_url=made.database_url, secret_file=home / "secret")
        database = connect(made.database_url)
        repository = Repository(database, settings)
        wait_until(repository.live_workers, "a worker", START_SECONDS)
        started = time.monotonic()
        tally = Tally()
        key = _new_key(repository, settings)
        poster = Poster(f"http://127.0.0.1:{made.port}", key, requests(plan, dice), tally)
        books = Books(repository, home / "artifacts", tally)
        chaos = Chaos(made, books, tally, dice)
        poster.start()
        _rage(books, chaos, poster, made, plan)
        made.revive()
        left = max(30.0, plan.end_seconds - (time.monotonic() - started))
        with suppress(TimeoutError):  # what has not ended then is counted as lost
            wait_until(lambda: books.open_jobs() == 0, "every job to end", left)
        next_job = _time_of_next_job(poster, books)
        _tidy(made, books)
        seconds = time.monotonic() - started
        stale, once = made.logged("attempt.stale_rejected"), made.jobs_of_once_workers()
        report = books.report(stale, once, seconds, next_job)
        database.dispose()
    return report


def _new_key(repository: Repository, settings: Settings) -> str:
    repository.ensure_tenant("chaos")
    key = generate_key(load_secrets(settings.secret_file))
    repository.create_key("chaos", key_hash=key.hash, hint=key.hint, scopes=SCOPES)
    return key.plain


def _rage(books: Books, chaos: Chaos, poster: Poster, made: Cluster, plan: Plan) -> None:
    """Until the quotas are met or the work runs out, and everything has been posted; then calm."""

    def enough() -> bool:
        stale = made.logged("attempt.stale_rejected") >= plan.stale_attempts
        return not poster.is_alive() and (
            (stale and books.lost_attempts() >= plan.lost_attempts) or books.open_jobs() == 0
        )

    chaos.start()
    try:
        with suppress(TimeoutError):  # too gentle then, which the report says
            wait_until(enough, "the quotas of violence", 0.8 * plan.end_seconds)
    finally:
        chaos.finished.set()
        chaos.join()


def _time_of_next_job(poster: Poster, books: Books) -> float:
    """Seconds until a job that is posted now has ended; infinity after some minutes."""
    began = time.monotonic()
    with suppress(TimeoutError):
        wait_until(poster.post_one, "a job to be accepted", 60)
        wait_until(lambda: books.open_jobs() == 0, "the last job", 120)
        return time.monotonic() - began
    return float("inf")


def _tidy(made: Cluster, books: Books) -> None:
    """Let the service tidy up by its own means: stale attempts end, a worker that starts removes orphans."""
    time.sleep(LEASE_SECONDS + 3.0)
    made.workers[0].kill()
    made.revive()
    with suppress(TimeoutError):  # what is left then is counted
        wait_until(lambda: not books.orphans(), "orphans to be removed", 60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on each backend; 0 if all passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=145.0, help="bound of one backend's run")
    chosen = parser.parse_args(arguments)
    backends = ["sqlite", "postgres"] if chosen.backend == "both" else [chosen.backend]
    plan = Plan.of(chosen.jobs, chosen.seconds)
    return max([_run_and_tell(backend, plan, chosen.seed) for backend in backends])


def _run_and_tell(backend: str, plan: Plan, seed: int) -> int:
    home = Path(tempfile.mkdtemp(prefix="optipfair-chaos-"))
    print(f"{backend}: {plan.jobs} jobs, {WORKERS} workers, seed {seed}", flush=True)
    report = run(backend, plan, seed, home)
    print(report.line())
    print(report.details(), flush=True)
    failures = report.failures(plan)
    for reason in failures:
        print(f"  FAILED: {reason}; the logs are in {home}", file=sys.stderr)
    if not failures:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
