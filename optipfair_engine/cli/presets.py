"""``optipfair presets``."""

from __future__ import annotations

from dataclasses import asdict

from optipfair_engine.cli.shared import Json
from optipfair_engine.cli.terminal import explained, show_json
from optipfair_engine.options.presets import PRESETS, PresetFacts


@explained
def presets(as_json: Json = False) -> None:
    """Show the presets of optipfair prune: what each does, and what it measured."""
    if as_json:
        show_json({"presets": [asdict(preset) for preset in PRESETS]})
        return
    print("\n\n".join(_described(preset) for preset in PRESETS))


def _described(preset: PresetFacts) -> str:
    lines = [f"{preset.name} (version {preset.version})", f"  {preset.summary}"]
    for what, fields in (("neurons", preset.neurons), ("heads", preset.heads), ("layers", preset.layers)):
        if fields:
            lines.append(f"  {what}: " + ", ".join(f"{name} {value}" for name, value in fields.items()))
    return "\n".join([*lines, f"  Measured: {preset.measured}"])
