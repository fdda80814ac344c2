"""What a backend's engine offers to code that runs one without knowing which.

`ForwardEngine` is enough for `pe predict` and for a comparison of depth "forward"; everything else
takes an `Engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

import numpy as np

from pe_core.data import Batch
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.training.config import TrainConfig

# The columns of what `read` returns.
METRICS: Final = ("loss", "correct", "weight", "gradient_norm")


class ForwardEngine(Protocol):
    """A model ready to predict."""

    def predict(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch, (batch, num_classes)."""

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        """Return the named intermediates of a forward pass and the loss, in evaluation mode, or
        with the dropout of a step.
        """


@runtime_checkable
class Engine(ForwardEngine, Protocol):
    """A model in training, or ready to predict."""

    def train_step(self, batch: Batch, step: int) -> Any:
        """Take one step and return its metrics, not waited for."""

    def evaluate(self, batch: Batch) -> Any:
        """Return the metrics of a batch, not waited for."""

    def read(self, metrics: Sequence[Any]) -> np.ndarray:
        """Wait for metrics and return them as rows of float64."""

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the loss and all gradients."""

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights under their canonical names."""

    def state(self) -> dict[str, np.ndarray]:
        """Return all that a step changes."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state."""


class ForwardEngineType(Protocol):
    """The class of an engine that may be unable to train."""

    def __call__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        train: TrainConfig,
        compute: ComputeConfig,
        total_steps: int,
        device: str | None = None,
    ) -> ForwardEngine:
        """Return an engine."""


class EngineType(ForwardEngineType, Protocol):
    """The class of an engine that trains."""

    def __call__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        train: TrainConfig,
        compute: ComputeConfig,
        total_steps: int,
        device: str | None = None,
    ) -> Engine:
        """Return an engine."""


def can_train(engine_type: ForwardEngineType) -> TypeGuard[EngineType]:
    """Return whether the engines of a class have all that training needs."""
    return isinstance(engine_type, type) and issubclass(engine_type, Engine)
