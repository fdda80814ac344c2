"""Small data, and short runs of training on them by an engine or by one that only records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parity_tests.cases import BATCH, ENGINES, FEATURES, LENGTH, small_config
from pe_core import ComputeConfig, ModelConfig, TrainConfig
from pe_core.data import Batch, Dataset, Sequences
from pe_core.model.config import Precision
from pe_core.model.random import derive, normal
from pe_core.training.engine import Engine
from pe_core.training.loop import TrainResult, train

CONFIG = small_config(num_layers=1)
COUNT = 14  # three batches of five, of which the last has four


def part(number: int, count: int, *, masked: bool = False) -> Sequences:
    inputs = normal(derive(0, 95, number), (count, LENGTH, FEATURES)).astype(np.float32)
    mask = np.arange(LENGTH) < 3 + np.arange(count)[:, None] % 5 if masked else None
    return Sequences(inputs, np.arange(count) % 4, mask, tuple("abcd"))


def data(*, masked: bool = False) -> Dataset:
    train, validation, test = (
        part(number, count, masked=masked) for number, count in enumerate((COUNT, 9, 6))
    )
    return Dataset("small", train, validation, test)


def run(
    name: str,
    config: ModelConfig = CONFIG,
    precision: Precision = "float32",
    *,
    masked: bool = False,
    **changes: Any,
) -> TrainResult:
    options = TrainConfig(**({"epochs": 2, "batch_size": BATCH} | changes))
    compute = ComputeConfig(precision=precision)
    return train(ENGINES[name], config, data(masked=masked), train_config=options, compute=compute)


def bits(arrays: Mapping[str, np.ndarray | None]) -> dict[str, tuple[str, bytes]]:
    there = {name: array for name, array in arrays.items() if array is not None}
    return {name: (str(array.dtype), array.tobytes()) for name, array in there.items()}


class Recorder:
    """An engine that computes nothing: it notes its batches and reports given metrics.

    Args:
        metrics: (loss, correct, weight, gradient norm) of a step; None is a healthy one.
        taps: the named intermediates.
        gradients: of the parameters.
    """

    def __init__(
        self,
        metrics: Callable[[int], tuple[float, float, float, float] | None] = lambda step: None,
        taps: Mapping[str, np.ndarray] | None = None,
        gradients: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.metrics = metrics
        self.seen: list[Batch] = []
        self.found = dict(taps or {}), dict(gradients or {})
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(
        self, config: ModelConfig, arrays: Mapping[str, np.ndarray], *arguments: Any, **options: Any
    ) -> Engine:
        self.arrays, self.classes = dict(arrays), config.num_classes
        return self

    def train_step(self, batch: Batch, step: int) -> Any:
        self.seen.append(batch)
        return self.metrics(step) or (1.0, 1.0, float(batch.weights.sum()), 1.0)

    def evaluate(self, batch: Batch) -> Any:
        return (1.0, 1.0, float(batch.weights.sum()), 0.0)

    def predict(self, batch: Batch) -> np.ndarray:
        return np.zeros((len(batch.inputs), self.classes))

    def read(self, metrics: Sequence[Any]) -> np.ndarray:
        return np.array(metrics)

    def gradients(self, batch: Batch, step: int | None = None) -> tuple[float, Any]:
        return 1.0, self.found[1]

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        return self.found[0]

    def weights(self) -> dict[str, np.ndarray]:
        return self.arrays

    def state(self) -> dict[str, np.ndarray]:
        return self.arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError
