"""The records of `faults`, one a cell, and the table that people read: a row for each neighbour and fault."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.service.outages.scenes import Outcome


@dataclass(frozen=True)
class Record:
    """One cell: what befell whom, when and for how long, and what it led to."""

    neighbour: str
    fault: str
    moment: str
    seconds: float
    outcome: Outcome
    wrong: tuple[str, ...]

    def line(self) -> str:
        """One line of the table of all cells."""
        told = ", ".join(f"{name} ×{count}" for name, count in sorted(self.outcome.statuses.items()))
        ends = ", ".join(sorted({_end(state, code) for state, code in self.outcome.ends}))
        cells = [self.neighbour, self.fault, self.moment, f"{self.seconds:g}", told]
        cells += [f"{self.outcome.slowest_answer:.1f} s", f"{ends}, attempt {self.outcome.attempts}"]
        mark = f" **{'; '.join(self.wrong)}**" if self.wrong else ""
        return f"| {' | '.join(cells)} | {self.outcome.taken_seconds:.1f} s{mark} |"

    def write(self, file: Path) -> None:
        """Append it to a file of records."""
        with file.open("a") as records:
            records.write(json.dumps(asdict(self)) + "\n")


COLUMNS = (
    "neighbour",
    "fault",
    "moment",
    "s",
    "answers meanwhile",
    "slowest",
    "the jobs",
    "next job taken after",
)


#: Answers that tell a caller nothing of a fault.
USUAL = ("200", "202")


def heading(columns: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def read(files: Iterable[Path]) -> list[Record]:
    """The records of some files; of a cell that was run twice, the last."""
    found = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            told = row["outcome"]
            outcome = Outcome(**{**told, "ends": tuple((state, code) for state, code in told["ends"])})
            record = Record(**{**row, "outcome": outcome, "wrong": tuple(row["wrong"])})
            found[record.neighbour, record.fault, record.moment, record.seconds] = record
    return list(found.values())


def condensed(records: Iterable[Record]) -> str:
    """A row for each neighbour and fault, a column for each length; all moments of a cell together."""
    grouped: dict[tuple[str, str], dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        grouped[record.neighbour, record.fault][record.seconds].append(record)
    lengths = sorted({length for row in grouped.values() for length in row})
    columns = ["neighbour", "fault", "a caller is told also", *(f"{length:g} s" for length in lengths)]
    lines = [heading(columns)]
    for (neighbour, fault), row in grouped.items():
        everything = [record for cell in row.values() for record in cell]
        cells = [_cell(row[length]) if length in row else "–" for length in lengths]
        lines.append(f"| {' | '.join([neighbour, fault, _told(everything), *cells])} |")
    return "\n".join(lines)


def _cell(records: Sequence[Record]) -> str:
    """The slowest answer, the slowest taking of a fresh job, and what went less than well."""
    slowest = max(record.outcome.slowest_answer for record in records)
    taken = max(record.outcome.taken_seconds for record in records)
    attempts = max(record.outcome.attempts for record in records)
    failed = {code for record in records for _, code in record.outcome.ends if code}
    notes = [f"attempts {attempts}"] if attempts > 1 else []
    notes += [f"`{code}`" for code in sorted(failed)]
    wrong = sum(bool(record.wrong) for record in records)
    notes += [f"**{wrong} of {len(records)} wrong**"] if wrong else []
    return ", ".join([f"{slowest:.1f} / {taken:.1f} s ({len(records)})", *notes])


def _told(records: Sequence[Record]) -> str:
    """Every answer but the usual ones, whatever the length and the moment, and to which questions."""
    given: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for status in record.outcome.statuses:
            name, _, answer = status.partition(" ")
            if answer not in USUAL:
                given[answer].add(name)
    told = [f"{answer} ({', '.join(sorted(names))})" for answer, names in sorted(given.items())]
    return "; ".join(told) or "nothing of it"


def _end(state: str, code: str | None) -> str:
    return state if code is None else f"{state} {code}"
