"""The progress of a run: who is called after each step and epoch."""

from __future__ import annotations

from typing import Protocol

from pe_core.training.run_directory import EpochRecord


class Reporter(Protocol):
    """Receives the progress of a run."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Report that `done` of `total` steps are done."""

    def epoch(self, record: EpochRecord) -> None:
        """Report an epoch."""

    def note(self, text: str) -> None:
        """Report something that the user should know."""


class Silent:
    """Reports nothing."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Do nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
