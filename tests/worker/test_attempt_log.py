"""An attempt's log is bounded, its end wins, and it tells nobody's secrets or places."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from jobs.rows import Job
from worker.attempt.log import LOG_BYTES, AttemptLog, clean
from worker.services import Services

Written = list[tuple[list[str], int]]


def log_into(written: Written, times: list[float]) -> AttemptLog:
    def write(lines: Sequence[str], dropped: int) -> None:
        written.append((list(lines), dropped))

    return AttemptLog(write, clock=lambda: times[0])


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("wrong key ofk_abcdefghijklmnop given", "wrong key [secret] given"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [secret]"),
        ("token eyJhbGciOi.eyJzdWIi.sig-1", "token [secret]"),
        ("from https://user:word@host/path", "from https://[secret]host/path"),
        ("hf_abcdefghijklmnop", "[secret]"),
        ('file "/srv/data/models/tiny/model.safetensors" is short', 'file "model.safetensors" is short'),
        ("  /usr/lib/python3/site-packages/torch/nn.py:12 forward", "  nn.py:12 forward"),
        (r"C:\Users\me\model.bin", "model.bin"),
        ("layer 3 of 12, 1/2 done at 0.5/s", "layer 3 of 12, 1/2 done at 0.5/s"),
    ],
)
def test_keys_tokens_and_paths_are_taken_out(said: str, kept: str) -> None:
    assert clean(said) == kept


def test_the_newest_lines_are_kept_and_the_others_counted() -> None:
    written: Written = []
    log = log_into(written, [0.0])
    for number in range(2000):
        log.say(f"line {number} " + "x" * 80)
    log.flush()
    lines, dropped = written[-1]
    assert sum(len(line.encode()) + 1 for line in lines) <= LOG_BYTES
    assert dropped + len(lines) == 2000
    assert "line 1999 " in lines[-1]
    assert f"line {dropped} " in lines[0]


def test_lines_are_written_at_once_then_together_and_never_without_news() -> None:
    written: Written = []
    times = [0.0]
    log = log_into(written, times)
    log.say("first")
    log.say("second")
    assert [len(lines) for lines, _ in written] == [1]
    times[0] = 10.0
    log.say("third\nfourth", "error")
    log.flush()
    assert [len(lines) for lines, _ in written] == [1, 4]
    assert " error " in written[-1][0][-1]


def test_a_database_that_is_away_is_no_error_and_the_lines_come_later() -> None:
    written: Written = []
    away = [True]

    def write(lines: Sequence[str], dropped: int) -> None:
        if away[0]:
            raise OSError("away")
        written.append((list(lines), dropped))

    log = AttemptLog(write)
    log.say("said while it was away")
    away[0] = False
    log.flush()
    assert "said while it was away" in written[-1][0][0]


def test_each_attempts_lines_are_kept_apart(services: Services, new_job: Callable[..., Job]) -> None:
    repository, job = services.repository, new_job()
    for attempt in (1, 2):
        assert repository.claim(job.id, "w") is not None
        repository.put_log(job.id, attempt, [f"of {attempt}"], 0)
        repository.put_log(job.id, attempt, [f"of {attempt}", "more"], attempt)
        repository.release_preempted(job.id, attempt)
    found = repository.list_logs(job.id)
    assert [(log.attempt.number, log.lines, log.dropped) for log in found] == [
        (1, ["of 1", "more"], 1),
        (2, ["of 2", "more"], 2),
    ]
    assert [log.attempt.number for log in repository.list_logs(job.id, 2)] == [2]
    assert repository.list_logs(job.id, 3) == []
