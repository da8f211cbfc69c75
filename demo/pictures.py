"""``python -m demo.pictures``: the pictures of README and site, from those that ``make screenshots`` took."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
MOST_BYTES = 150_000


@dataclass(frozen=True)
class Picture:
    """Which picture, how much of it from the top, and how wide it becomes; in pixels."""

    source: str
    height: int | None = None
    width: int = 1280


WANTED: Mapping[str, Picture] = {
    "job-light": Picture("job-prune-light.png", height=1208),
    "job-dark": Picture("job-prune-dark.png", height=1208),
    "mean-differences": Picture("figures/bias-mean_diff.png", width=1400),
    "error-curves": Picture("figures/prune-error_curves.png", width=960),
}


def main() -> None:
    """Write them all as WebP.

    Raises:
        SystemExit: one is too large to be kept in the tree.
    """
    parser = argparse.ArgumentParser(description="pictures of README and site")
    parser.add_argument("--screenshots", type=Path, default=Path("screenshots"))
    folder = parser.parse_args().screenshots
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, wanted in WANTED.items():
        with Image.open(folder / wanted.source) as full:
            cut = full.convert("RGB").crop((0, 0, full.width, min(full.height, wanted.height or full.height)))
        if cut.width > wanted.width:
            cut = cut.resize(
                (wanted.width, round(cut.height * wanted.width / cut.width)), Image.Resampling.LANCZOS
            )
        target = PICTURES / f"{name}.webp"
        cut.save(target, "WEBP", quality=82, method=6)
        if (size := target.stat().st_size) > MOST_BYTES:
            raise SystemExit(f"{target.name} has {size:,} bytes, more than {MOST_BYTES:,}")
        print(f"{target.name}: {cut.width} × {cut.height}, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
