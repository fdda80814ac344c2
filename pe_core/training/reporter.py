"""What a run reports while it goes."""

from __future__ import annotations

from typing import Protocol

from pe_core.training.run_directory import EpochRecord


class Reporter(Protocol):
    """What a run tells while it goes."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """So many steps are done."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Tells nothing."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Do nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
