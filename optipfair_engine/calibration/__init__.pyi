from .accumulators import (
    CosineImportance as CosineImportance,
    CrossGram as CrossGram,
    Gram as Gram,
    SquaredNorm as SquaredNorm,
)
from .runner import Captured as Captured, capture as capture, capture_sites as capture_sites
from .text import (
    CalibrationSet as CalibrationSet,
    as_calibration_set as as_calibration_set,
    calibration_from_texts as calibration_from_texts,
    calibration_from_windows as calibration_from_windows,
    iter_batches as iter_batches,
    load_calibration_file as load_calibration_file,
    windows_from_text as windows_from_text,
)
