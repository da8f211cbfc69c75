"""Calibration: text and data loaders as batches, accumulators, and the runners that feed them."""

from __future__ import annotations

from optipfair_engine.calibration.accumulators import CosineImportance, CrossGram, Gram, SquaredNorm
from optipfair_engine.calibration.runner import Captured, capture, capture_sites
from optipfair_engine.calibration.text import (
    CalibrationSet,
    as_calibration_set,
    calibration_from_texts,
    calibration_from_windows,
    iter_batches,
    load_calibration_file,
    windows_from_text,
)

__all__ = [
    "CalibrationSet",
    "Captured",
    "CosineImportance",
    "CrossGram",
    "Gram",
    "SquaredNorm",
    "as_calibration_set",
    "calibration_from_texts",
    "calibration_from_windows",
    "capture",
    "capture_sites",
    "iter_batches",
    "load_calibration_file",
    "windows_from_text",
]
