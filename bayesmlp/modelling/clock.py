"""The clock of a posterior: how much time the dynamics let pass until an event."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass
class Clock:
    """Time that passes for a posterior as events come, one after the other.

    Args:
        unit: seconds in a unit of the dynamics; None where every event is one unit.
        newest: time of the newest event so far, in seconds since the epoch; None where none had a time.
        passed: units that have passed since the posterior.
    """

    unit: float | None
    newest: float | None
    passed: float = 0.0

    def until(self, time: float | None) -> float:
        """Units since the posterior, if an event of that time comes next.

        Late events, those without a time and the first one with a time let nothing pass.
        """
        if self.unit is None:
            return self.passed + 1.0
        if time is None or self.newest is None:
            return self.passed
        return self.passed + max(0.0, time - self.newest) / self.unit

    def advance(self, time: float | None) -> None:
        """An event of that time came."""
        self.passed = self.until(time)
        if time is not None and self.unit is not None:
            self.newest = time if self.newest is None else max(time, self.newest)
