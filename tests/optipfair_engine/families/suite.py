"""Runs the checks, each once, and renders what they found as the documentation's table."""

from __future__ import annotations

from pathlib import Path

import torch

from optipfair_engine.checkpoints.reload import ReloadItem
from optipfair_engine.checkpoints.verify import reload_logits
from optipfair_engine.errors import UnsupportedModelError
from tests.optipfair_engine.families.checks import CHECKS, TOKENS, Outcome, Saved
from tests.optipfair_engine.families.zoo import FAMILIES, Family

RELOAD = "reload in a new process"

INTRODUCTION = f"""# What works on which model family

This page is written by the test suite (`python -m tests.optipfair_engine.families.table`): every cell is the
outcome of a test on a random four-layer model of the family. A test fails if the page is not what the suite
finds.

- **MLP neurons**: width pruning of all layers equals the dense model with those neurons zeroed, and the
  result loads with plain transformers (Bloom's code has no option for the size: there a plain load raises,
  and `load_pruned` loads it).
- **neurons of chosen layers**: the same for some layers only; `load_pruned` reloads it, and a plain load
  raises or is right.
- **layers**: depth pruning equals the dense model with those layers bypassed.
- **attention heads**: whole key/value groups; equals the dense model with those heads' output zeroed.
- **experts**: a quarter of each layer's experts; equals the model whose router logits are −inf for them. A
  family without experts (–) is refused by name.
- **layer importance**: 1 − cos of each layer's input and output.
- **{RELOAD}**: every pruned model gives bit-equal logits in a process that never held it.
- Generation with a cache equals generation without, in each.
- llama.cpp: `optipfair export gguf` writes Llama, Mistral, Qwen2 and Qwen3 models
  ([which layers](pruning.md#serving-with-llamacpp)); other families are refused by name.
- *refused*: an error that names the family, before anything is touched; the notes say why.
"""


class Suite:
    """Outcomes of (family, capability), computed when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._reloaded: dict[Path, torch.Tensor] | None = None

    def outcome(self, family: Family, capability: str) -> Outcome:
        """The outcome of one check; raises AssertionError where a claim is wrong."""
        key = (family.name, capability)
        if key not in self._outcomes:
            place = self.folder / family.name.replace(" ", "_").replace("/", "_")
            place.mkdir(exist_ok=True)
            try:
                self._outcomes[key] = CHECKS[capability](family, place)
            except UnsupportedModelError as error:  # a family that is refused as a whole
                assert family.model_type in str(error)
                self._outcomes[key] = Outcome("refused", reason=str(error))
        return self._outcomes[key]

    def saved(self, family: Family) -> list[Saved]:
        """Everything that the family's checks wrote."""
        return [saved for name in CHECKS for saved in self.outcome(family, name).saved]

    def reload(self, family: Family) -> Outcome:
        """Every pruned model of the family gives equal logits in a process that never held it."""
        if self._reloaded is None:
            # one process for all families: starting it takes longer than reloading them
            items = [saved for each in FAMILIES for saved in self._saved_if_right(each)]
            logits = reload_logits([ReloadItem(saved.folder, TOKENS) for saved in items])
            self._reloaded = {saved.folder: found for saved, found in zip(items, logits, strict=True)}
        saved = self.saved(family)
        for one in saved:
            assert torch.equal(self._reloaded[one.folder], one.logits), (
                f"{one.folder.name} reloads differently"
            )
        return Outcome("yes" if saved else "–")

    def _saved_if_right(self, family: Family) -> list[Saved]:
        try:
            return self.saved(family)
        except AssertionError:  # reported by the family's own test
            return []


def render(suite: Suite) -> str:
    """``docs/support.md``."""
    names = [*CHECKS, RELOAD]
    lines = [
        INTRODUCTION,
        f"| family | `model_type` | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    reasons: dict[str, int] = {}
    for family in FAMILIES:
        cells = [_cell(suite.outcome(family, name), reasons) for name in CHECKS]
        cells.append(suite.reload(family).cell)
        lines.append(f"| {family.name} | `{family.model_type}` | {' | '.join(cells)} |")
    lines += ["", "## Why refused", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome, reasons: dict[str, int]) -> str:
    if outcome.reason is None:
        return outcome.cell
    number = reasons.setdefault(outcome.reason, len(reasons) + 1)
    return f"refused ({number})"


def support_page() -> Path:
    """Where the table is."""
    return Path(__file__).resolve().parents[3] / "docs" / "support.md"
