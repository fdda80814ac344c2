"""The learning rate of a step, in closed form and float64: one function for both frameworks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pe_core.errors import UserValueError
from pe_core.training.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
        learning_rate: the peak.
        kind: "constant", or "warmup_cosine": (step + 1) / (warmup_steps + 1) of the peak while
            warming up, then half a cosine from the peak to zero at total_steps (Loshchilov and
            Hutter 2017, equation 5, without restarts).
        warmup_steps: steps of the rise.
        total_steps: where the cosine reaches zero.
    """

    learning_rate: float
    kind: Literal["constant", "warmup_cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind == "warmup_cosine" and not 0 <= self.warmup_steps < self.total_steps:
            raise UserValueError(
                f"warmup_steps must be fewer than the steps of the run, got {self.warmup_steps} "
                f"of {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        if self.kind == "constant":
            return self.learning_rate
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        progress = min((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def new_epochs(train: TrainConfig, epochs: int, step: int, per_epoch: int) -> list[str]:
    """Return what is to be said of a run that goes on with other epochs than it began with.

    Under the constant schedule it is the run that had them from the start, and nothing is said.

    Args:
        train: what the run is now.
        epochs: what it had before.
        step: steps taken.
        per_epoch: steps of an epoch.

    Raises:
        ValueError: the run has gone beyond the new end.
    """
    total = train.epochs * per_epoch
    if total < step:
        raise UserValueError(
            f"epochs={train.epochs} ends at step {total:,}, and the run has taken {step:,}; give "
            f"at least {-(-step // per_epoch)}"
        )
    if train.epochs == epochs or train.schedule == "constant":
        return []
    before = make_schedule(train, epochs * per_epoch)
    return [
        f"a new schedule: {train.schedule} now ends at step {total:,}, not {epochs * per_epoch:,}; "
        f"the learning rate goes on from {make_schedule(train, total)(step):.3g}, not "
        f"{before(step):.3g}, so the run is not the one that has {train.epochs} epochs from the "
        "start"
    ]


def make_schedule(train: TrainConfig, total_steps: int) -> Schedule:
    """Return the schedule of a run of so many steps."""
    return Schedule(train.learning_rate, train.schedule, train.warmup_steps, total_steps)
