"""``importance``: how much each layer changes what passes through it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optipfair_engine.calibration import CalibrationSet
from optipfair_engine.computing.asked import computed_in, takes_compute_dtype
from optipfair_engine.errors import CalibrationError
from optipfair_engine.notebooks import Result
from optipfair_engine.options.words import ComputeDtype
from optipfair_engine.progress import Reporter, null_reporter
from optipfair_engine.workflow.common import calibration_set, load
from optipfair_engine.workflow.foreseen import facts_of, refuse_long_windows
from optipfair_engine.workflow.metrics import write_metrics


@takes_compute_dtype
def importance_checkpoint(
    source: Path,
    output: Path | None,
    *,
    texts: Sequence[str] | CalibrationSet,
    max_length: int = 512,
    num_samples: int | None = None,
    batch_size: int = 8,
    layers_path: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    compute_dtype: ComputeDtype = "auto",
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """The importance of each layer over texts; writes ``metrics.json`` and ``importance.png``.

    Returns:
        ``importance`` (layer → 1 − cosine, ``None`` where undefined), ``least_important`` (layers, lowest
        first), ``calibration`` (source, tokens), ``compute_dtype`` (what the passes were computed in: as
        asked by the argument, see ``number_type.chosen_dtype``).

    Raises:
        InvalidOptionError: windows longer than the model's positions.
        CalibrationError, TokenizerError: no usable text, or no tokenizer for it.
    """
    from optipfair_engine.pruning.depth.layer_importance import analyze_layer_importance

    start = time.perf_counter()
    refuse_long_windows(facts_of(source), {"max_length": getattr(texts, "max_length", max_length)})
    loaded = load(source, dtype=dtype, device=device, needs_tokenizer=True, report=report)
    samples = calibration_set(
        texts, loaded.tokenizer, max_length=max_length, num_samples=num_samples, batch_size=batch_size
    )
    if samples is None:
        raise CalibrationError("layer importance needs texts to calibrate on")
    scores = analyze_layer_importance(loaded.model, samples.batches, layers_path, report=report)
    defined = [score for score in scores.values() if math.isfinite(score)]
    metrics: dict[str, Any] = {
        "min_importance": min(defined, default=math.nan),
        "max_importance": max(defined, default=math.nan),
        "mean_importance": sum(defined) / len(defined) if defined else math.nan,
        "tokens": samples.tokens,
        "importance": scores,
        "least_important": sorted(
            (i for i in scores if math.isfinite(scores[i])), key=lambda i: (scores[i], i)
        ),
        "calibration": {"source": samples.source, "tokens": samples.tokens, "samples": samples.num_samples},
        "compute_dtype": computed_in(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if output is None:
        return Result(metrics)
    from optipfair_engine.figures import draw_importance, save

    output.mkdir(parents=True, exist_ok=True)
    save(draw_importance(scores), output / "importance.png")
    report("plot", 1, 1, "importance.png")
    return write_metrics(output, metrics)
