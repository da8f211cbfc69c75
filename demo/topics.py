"""Text that every CPython has: the topics of its own manual, some to calibrate on, others to measure on."""

from __future__ import annotations

from pydoc_data.topics import topics

#: One topic in so many is kept for measuring: nothing is measured on what was calibrated on.
APART_EVERY = 5


def calibration_text() -> str:
    """The topics to calibrate on, one after the other."""
    return _joined(evaluation=False)


def evaluation_text() -> str:
    """The topics to measure on: none of those of `calibration_text`."""
    return _joined(evaluation=True)


def excerpts(text: str, count: int, characters: int) -> list[str]:
    """`count` pieces of at most `characters` characters, which begin evenly over the text."""
    step = len(text) // count
    return [text[start : start + characters] for start in range(0, step * count, step)]


def _joined(*, evaluation: bool) -> str:
    chosen = [name for place, name in enumerate(sorted(topics)) if (place % APART_EVERY == 0) == evaluation]
    return "\n\n".join(topics[name] for name in chosen)
