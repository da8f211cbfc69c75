"""How friendly a text sounds, by a lexicon of English words that its package ships."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

_PACKAGE = "vaderSentiment"


class Lexicon:
    """VADER (Hutto & Gilbert 2014): −1, the most hostile, to 1, the most friendly."""

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer: Any = SentimentIntensityAnalyzer()

    @property
    def name(self) -> str:
        """The package and its version."""
        return f"{_PACKAGE} {version(_PACKAGE)}"

    def score(self, text: str) -> float:
        """The compound score; 0 for a text without a word that the lexicon knows."""
        return float(self._analyzer.polarity_scores(text)["compound"])

    def share_known(self, texts: Sequence[str]) -> float:
        """Share of the texts that have at least one word of the lexicon."""
        known = self._analyzer.lexicon
        hits = sum(any(word in known for word in re.findall(r"[\w'-]+", text.lower())) for text in texts)
        return hits / len(texts) if texts else 0.0
