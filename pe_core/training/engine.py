"""What a wing's engine offers, for those that drive one without knowing which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from pe_core.data import Batch
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.training.config import TrainConfig

# The columns of what `read` returns.
METRICS: Final = ("loss", "correct", "weight", "gradient_norm")


class Engine(Protocol):
    """A model in training, or ready to predict."""

    def train_step(self, batch: Batch, step: int) -> Any:
        """Take one step and return its metrics, not waited for."""

    def evaluate(self, batch: Batch) -> Any:
        """Return the metrics of a batch, not waited for."""

    def predict(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch."""

    def read(self, metrics: Sequence[Any]) -> np.ndarray:
        """Wait for metrics and return them as rows of float64."""

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the loss and all gradients."""

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        """Return the named intermediates of a forward pass and the loss."""

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights under their canonical names."""

    def state(self) -> dict[str, np.ndarray]:
        """Return all that a step changes."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state."""


class EngineType(Protocol):
    """How an engine is made."""

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
