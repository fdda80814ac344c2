"""Check one model: every backend against the baseline, at every tap and through a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pe_core.data import Batch, Sequences, batches, dummy, epoch_order
from pe_core.encodings import LearnedTable
from pe_core.model.config import ComputeConfig, Features, ModelConfig, Precision
from pe_core.model.initial import initial_arrays
from pe_core.model.random import DATA, derive, normal, uniform
from pe_core.training.config import TrainConfig
from pe_core.training.engine import ForwardEngineType
from pe_parity.budgets import SAME_BITS_AFTER, same_bits
from pe_parity.compare import Comparison, compare
from pe_parity.trace import Depth, Trace, moved_arrays, reference_trace, trace

DEFAULT_LENGTH = 10


@dataclass(frozen=True)
class ParityCheck:
    """The result of a check in one precision.

    Args:
        comparison: name by name.
        equal: number of parameters that are the same bits in all backends after the run, once
            rounded to float32; None without a run or with one backend alone.
        total: number of parameters compared.
    """

    comparison: Comparison
    equal: int | None
    total: int

    @property
    def passed(self) -> bool:
        """Whether every name keeps its budget and, in float64, every parameter after the run is
        the same bits.
        """
        exact = self.comparison.precision == SAME_BITS_AFTER and self.equal is not None
        same = not exact or self.equal == self.total
        return self.comparison.first_failure is None and same


def default_model() -> ModelConfig:
    """Return the model of the demonstration: a learned table over length 10, 16 features, two
    classes.
    """
    return ModelConfig(
        inputs=Features(16), num_classes=2, encodings=(LearnedTable(DEFAULT_LENGTH),)
    )


def default_batches(config: ModelConfig, train: TrainConfig, steps: int | None) -> list[Batch]:
    """Return the batches of the default run on the dummy data; normal noise of the model's own
    shape where those do not fit it.
    """
    data = dummy(train.seed).train
    fits = (
        isinstance(config.inputs, Features)
        and data.num_features == config.inputs.num_features
        and config.num_classes == 2
    )
    if not fits or _longest(config) < data.length:
        data = _noise(config, train.seed)
    found: list[Batch] = []
    for epoch in range(train.epochs if steps is None else steps):
        found += batches(data, train.batch_size, epoch_order(train.seed, epoch, data.count))
        if steps is not None and len(found) >= steps:
            break
    return found[:steps]


def check_parity(
    engine_types: Mapping[str, ForwardEngineType],
    config: ModelConfig,
    precisions: tuple[Precision, ...],
    *,
    depth: Depth = "run",
    steps: int | None = None,
    train: TrainConfig | None = None,
) -> dict[str, ParityCheck]:
    """Check a model in each precision.

    The baseline of the forward pass and the loss is the NumPy reference; that of gradients and
    training is the first backend in float64.

    Args:
        engine_types: the engine of each backend.
        config: what the model is.
        precisions: float32, float64 or both.
        depth: how far to go.
        steps: of the run; the default epochs when None.
        train: what the run is.
    """
    options = train or TrainConfig()
    arrays = initial_arrays(config, options.seed)
    found = default_batches(config, options, steps if depth == "run" else 1)
    exact = _traces(engine_types, config, arrays, found, depth, options, "float64")
    baseline = next(iter(exact.values())) | reference_trace(
        config, arrays, found[0], seed=options.seed
    )
    moved = moved_arrays(baseline, arrays) if depth == "run" else None
    trained = [name for name in moved or {} if name.startswith("weights/")]
    checks: dict[str, ParityCheck] = {}
    for precision in precisions:
        traces = (
            exact
            if precision == "float64"
            else _traces(engine_types, config, arrays, found, depth, options, precision)
        )
        comparison = compare(baseline, traces, precision, moved=moved)
        equal = (
            None
            if moved is None or len(traces) < 2
            else sum(same_bits([one[name] for one in traces.values()]) for name in trained)
        )
        total = sum(baseline[name].size for name in trained)
        checks[precision] = ParityCheck(comparison, equal, total)
    return checks


def _traces(
    engine_types: Mapping[str, ForwardEngineType],
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    found: list[Batch],
    depth: Depth,
    train: TrainConfig,
    precision: Precision,
) -> dict[str, Trace]:
    compute = ComputeConfig(precision=precision)
    return {
        name: trace(engine_type, config, arrays, found, depth=depth, train=train, compute=compute)
        for name, engine_type in engine_types.items()
    }


def _longest(config: ModelConfig) -> int:
    limits = [encoding.length_limit for encoding in config.encodings]
    return min([DEFAULT_LENGTH, *(limit for limit in limits if limit is not None)])


def _noise(config: ModelConfig, seed: int) -> Sequences:
    count, length, key = 256, _longest(config), derive(seed, DATA, 1)
    if isinstance(config.inputs, Features):
        inputs = normal(key, (count, length, config.inputs.num_features)).astype(np.float32)
    else:
        inputs = (uniform(key, (count, length)) * config.inputs.vocab_size).astype(np.int32)
    labels = (uniform(derive(seed, DATA, 2), (count,)) * config.num_classes).astype(np.int32)
    return Sequences(
        inputs, labels, None, tuple(str(number) for number in range(config.num_classes))
    )
