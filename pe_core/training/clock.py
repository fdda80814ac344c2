"""Seconds of training steps."""

from __future__ import annotations

import time


class Clock:
    """Seconds of training steps, the first one of the process apart.

    Attributes:
        warm: whether the first step, which compiles, is done.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._lap = 0.0
        self._total = 0.0
        self._steps = 0
        self.warm = False

    def start(self) -> None:
        """Note when steps begin."""
        self._started = time.perf_counter()

    def stop(self, steps: int) -> None:
        """Note that so many steps are done."""
        seconds = time.perf_counter() - self._started
        self._lap += seconds
        if self.warm:
            self._total, self._steps = self._total + seconds, self._steps + steps
        self.warm = True

    def lap(self) -> float:
        """Return the seconds since the last call."""
        lap, self._lap = self._lap, 0.0
        return lap

    @property
    def seconds_per_step(self) -> float:
        """The mean after the first step; NaN where there was no other."""
        return self._total / self._steps if self._steps else float("nan")
