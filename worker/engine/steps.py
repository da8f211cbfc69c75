"""The steps of a pipeline: where their files lie while it runs, and under which names they are published.

The engine and its supervisor both need this; nothing here loads torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
FOLDER = "steps"


def folder_of(output: Path, step: str) -> Path:
    """Where a step writes its files while the pipeline runs."""
    return output / FOLDER / step


def flatten_steps(output: Path) -> None:
    """Turn `steps/NAME/file` into `NAME.file`, the names under which a pipeline's artifacts are published."""
    steps = output / FOLDER
    for folder in sorted(steps.iterdir()):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.rename(output / f"{folder.name}.{'.'.join(file.relative_to(folder).parts)}")
    shutil.rmtree(steps)


def remove_unfinished(output: Path, finished: Collection[str]) -> None:
    """Leave nothing but the folders of the finished steps, and those of their files that are flat already.

    An engine may have ended in the middle of `flatten_steps`.
    """
    folders, flat = [folder_of(output, step) for step in finished], tuple(f"{step}." for step in finished)
    for path in [*output.iterdir(), *(output / FOLDER).iterdir()]:
        if path == output / FOLDER or path in folders:
            continue
        if path.parent == output and path.name.startswith(flat):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def merge_metrics(by_step: Mapping[str, Metrics]) -> Metrics:
    """All steps' metrics by full name; a name that one step alone reports also stands by itself."""
    merged = {f"{step}.{name}": value for step, metrics in by_step.items() for name, value in metrics.items()}
    names = [name for metrics in by_step.values() for name in metrics]
    for metrics in by_step.values():
        merged.update({name: value for name, value in metrics.items() if names.count(name) == 1})
    return merged


def metrics_of(step: str, merged: Mapping[str, Any]) -> Metrics:
    """One step's metrics out of all."""
    before = f"{step}."
    return {name.removeprefix(before): value for name, value in merged.items() if name.startswith(before)}
