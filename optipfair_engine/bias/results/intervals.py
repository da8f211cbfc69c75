"""Estimates with their 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; no limits where nothing says how certain it is."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """JSON-ready."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def named(self, name: str) -> dict[str, float | None]:
        """One level: ``name``, ``name_low``, ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def limits(self) -> str:
        """Both limits as people read them; a dash where there are none."""
        if self.low is None or self.high is None:
            return "–"
        return f"{self.low:.3g} … {self.high:.3g}"

    def percent(self) -> Interval:
        """A share's interval in percent."""
        limits = [None if end is None else 100 * end for end in (self.low, self.high)]
        return Interval(100 * self.value, limits[0], limits[1])


def named(name: str, interval: Interval | None) -> dict[str, float | None]:
    """``Interval.named``, all null where there is no estimate."""
    if interval is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return interval.named(name)
