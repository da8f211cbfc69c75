"""Progress bars for people who call the engine from a notebook or a script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from optipfair_engine.progress import Reporter, null_reporter

_TITLES = {
    "generate": "Writing text",
    "calibrate": "Calibrating",
    "select": "Selecting neurons",
    "search": "Searching widths",
    "reconstruct": "Fitting layers",
    "prune": "Pruning layers",
    "importance": "Layer importance",
    "evaluate": "Evaluating",
    "bias": "Prompt pairs",
    "plot": "Figures",
}


@contextmanager
def progress_bars(show: bool) -> Iterator[Reporter]:
    """A reporter that shows one bar a stage, as a notebook or a terminal has them, or says nothing."""
    if not show:
        yield null_reporter
        return
    bars: dict[str, tqdm] = {}
    ended: set[str] = set()

    def report(stage: str, done: int, total: int, message: str) -> None:
        ends = done >= total > 0
        if ends and stage in ended:
            return  # said again
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=_TITLES.get(stage, stage), leave=True)
        bar = bars[stage]
        bar.total = total
        bar.update(done - bar.n)
        if ends:
            ended.add(stage)
            bars.pop(stage).close()  # its last line stays, and the next stage's bar stands below it
        else:
            ended.discard(stage)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()
