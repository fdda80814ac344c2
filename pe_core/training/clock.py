"""Seconds of training steps, and a hint where they crawl because other processes keep the cores
busy.
"""

from __future__ import annotations

import os
import time
from typing import Final

# A hint needs steps of so many seconds together, and is not worth a line below so many a step.
WINDOW: Final = 2.0
SLOW_STEP: Final = 0.02
# The share of one core below which a process waits for others, and how many times slower than the
# best so far counts as crawling.
SHARE: Final = 0.75
TIMES: Final = 10.0
THREADS: Final = "OMP_NUM_THREADS"


class Clock:
    """Seconds of training steps, the first one of the process apart.

    Attributes:
        warm: whether the first step, which compiles, is done.
        hint: what would make the steps faster, once it is known that they crawl.
    """

    def __init__(self) -> None:
        self._started = self._cpu_started = 0.0
        self._lap = 0.0
        self._total = 0.0
        self._steps = 0
        # Seconds, seconds of the processor and steps of the window, and the fastest step so far.
        self._window = [0.0, 0.0, 0.0]
        self._best = float("inf")
        self.warm = False
        self.hint: str | None = None

    def start(self) -> None:
        """Note when steps begin."""
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    @property
    def overdue(self) -> bool:
        """Whether steps have gone on for so long that their metrics should be read."""
        return self.warm and time.perf_counter() - self._started > WINDOW

    def stop(self, steps: int) -> None:
        """Note that so many steps are done."""
        seconds = time.perf_counter() - self._started
        self._lap += seconds
        if self.warm:
            self._total, self._steps = self._total + seconds, self._steps + steps
            self._best = min(self._best, seconds / steps)
            for place, more in enumerate((seconds, time.process_time() - self._cpu_started, steps)):
                self._window[place] += more
            if self._window[0] >= WINDOW:
                self.hint = self.hint or self._crawling()
                self._window = [0.0, 0.0, 0.0]
        self.warm = True

    def lap(self) -> float:
        """Return the seconds since the last call."""
        lap, self._lap = self._lap, 0.0
        return lap

    @property
    def seconds_per_step(self) -> float:
        """The mean after the first step; NaN where there was no other."""
        return self._total / self._steps if self._steps else float("nan")

    def _crawling(self) -> str | None:
        """Say that the steps of the window crawl: several threads wait for each other at every
        operation, and on busy cores for their turn as well.
        """
        cores = os.cpu_count() or 1
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load <= cores or os.environ.get(THREADS) == "1":
            return None
        seconds, cpu, steps = self._window
        step, share = seconds / steps, cpu / seconds
        if step < TIMES * self._best and (step < SLOW_STEP or share > SHARE):
            return None
        return (
            f"steps take {1e3 * step:,.0f} ms, while other processes keep the cores busy (load "
            f"{load:.1f} on {cores}) and this one gets {share:.0%} of a core: they may take a "
            "fraction of it with --threads 1"
        )
