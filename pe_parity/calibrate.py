"""Measure the noise: how far correct implementations lie from the baseline and from each other,
over random models and seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pe_core.data import Batch
from pe_core.encodings import EncodingOptions, LearnedTable, Sinusoidal
from pe_core.model.config import (
    POOLINGS,
    PRECISIONS,
    ComputeConfig,
    Features,
    ModelConfig,
    Precision,
    Tokens,
)
from pe_core.model.random import Key, derive, normal, uniform
from pe_core.training.config import TrainConfig
from pe_core.training.engine import EngineType
from pe_parity.budgets import compared_up_to, quantity, same_side_of_kinks
from pe_parity.compare import Row, compare
from pe_parity.probe_inputs import probe_arrays
from pe_parity.trace import Depth, Trace, moved_arrays, reference_trace, trace

# What the keys of calibration are for; far from the purposes of a run.
CALIBRATION: Final = 64
# Steps of the run of a case: past the rise of its learning rate, and far from where training
# becomes chaotic.
STEPS: Final = 20
# Two in three are smooth all through and go to the end of a run: a hundred of these.
CASES: Final = 165


@dataclass(frozen=True)
class Case:
    """One random model with its weights and the batches of a short run."""

    config: ModelConfig
    train: TrainConfig
    arrays: dict[str, np.ndarray]
    batches: list[Batch]

    @property
    def depth(self) -> Depth:
        """How far the case is traced."""
        return compared_up_to(self.config.activation, self.config.pooling)


class _Draw:
    """Choices, one after the other, from a key."""

    def __init__(self, key: Key) -> None:
        self._shares = iter(uniform(key, (64,)))

    def one_of(self, *options: Any) -> Any:
        return options[int(next(self._shares) * len(options))]

    def between(self, low: int, high: int) -> int:
        return low + int(next(self._shares) * (high + 1 - low))

    def flip(self, share: float = 0.5) -> bool:
        return bool(next(self._shares) < share)


def random_case(number: int, steps: int) -> Case:
    """Return the case of a number: every option of a model and of a run is drawn."""
    draw = _Draw(derive(number, CALIBRATION))
    heads, length = draw.between(2, 4), draw.between(3, 24)
    layers = draw.one_of("first", "all")
    encodings: tuple[EncodingOptions, ...] = draw.one_of(
        (),
        (LearnedTable(length + 1, layers),),
        (Sinusoidal(layout=draw.one_of("interleaved", "half", "tensor2tensor"), layers=layers),),
        (Sinusoidal(), LearnedTable(length, layers)),
    )
    config = ModelConfig(
        inputs=draw.one_of(Features(draw.between(1, 16)), Tokens(draw.between(3, 40))),
        num_classes=draw.between(2, 6),
        d_model=heads * draw.between(8, 16),
        num_heads=heads,
        num_layers=draw.between(1, 3),
        d_ff=draw.between(8, 96),
        encodings=encodings,
        norm=draw.one_of("pre", "post"),
        activation=draw.one_of("gelu", "gelu", "gelu", "relu"),
        attention_bias=draw.flip(),
        pooling=draw.one_of(*POOLINGS, *(kind for kind in POOLINGS if kind != "max")),
        dropout=draw.one_of(0.0, 0.1, 0.3),
    )
    rise = draw.one_of(0, 5)
    train = TrainConfig(
        batch_size=draw.between(4, 32),
        learning_rate=draw.one_of(1e-3, 3e-3),
        schedule=draw.one_of("constant", "warmup_cosine") if rise == 0 else "warmup_cosine",
        warmup_steps=rise,
        weight_decay=draw.one_of(0.0, 0.01),
        max_gradient_norm=draw.one_of(None, 0.1, 1.0),
        seed=number,
    )
    masked = draw.flip()
    batches = [_batch(config, train, length, step, masked=masked) for step in range(steps)]
    return Case(config, train, probe_arrays(config, number), batches)


def measure(
    engine_types: Mapping[str, EngineType],
    case: Case,
    precision: Precision,
    exact: Mapping[str, Trace],
) -> tuple[Row, ...]:
    """Return every distance of a case in one precision.

    Args:
        engine_types: the engine of each backend.
        case: what is run.
        precision: of the runs.
        exact: the runs in float64, of `run_case`; the first is the baseline of all that training
            adds.
    """
    drops = case.config.dropout > 0.0
    baseline = next(iter(exact.values())) | reference_trace(
        case.config, case.arrays, case.batches[0], seed=case.train.seed, dropout=drops
    )
    found = exact if precision == "float64" else run_case(engine_types, case, precision)
    moved = moved_arrays(baseline, case.arrays) if case.depth == "run" else None
    rows = compare(baseline, found, precision, moved=moved).rows
    if case.config.activation == "relu" and not all(
        same_side_of_kinks(baseline, one) for one in found.values()
    ):
        return tuple(row for row in rows if quantity(row.name) != "gradient")
    return rows


def run_case(
    engine_types: Mapping[str, EngineType], case: Case, precision: Precision
) -> dict[str, Trace]:
    """Return the trace of each backend."""
    compute, drops = ComputeConfig(precision=precision), case.config.dropout > 0.0
    return {
        name: trace(
            engine_type,
            case.config,
            case.arrays,
            case.batches,
            depth=case.depth,
            train=case.train,
            compute=compute,
            dropout=drops,
        )
        for name, engine_type in engine_types.items()
    }


@dataclass
class Noise:
    """The largest distance of a quantity over all cases, and where it was measured.

    Args:
        largest: of all distances, from the baseline and between the backends.
        name: in the trace.
        case: its number.
        count: number of names compared.
        elements: number of elements of these names.
        left_out: number of these that are not compared (see `Rule.above_noise`).
    """

    largest: float = 0.0
    name: str = ""
    case: int = 0
    count: int = 0
    elements: int = 0
    left_out: int = 0

    def add(self, row: Row, case: int) -> None:
        """Take a distance into account."""
        self.count += 1
        self.elements += row.size
        self.left_out += row.left_out
        if row.worst > self.largest:
            self.largest, self.name, self.case = row.worst, row.name, case


@dataclass
class Calibration:
    """What was measured over the cases.

    Args:
        cases: number of cases.
        noise: of each quantity and precision.
        errors: in float32, for each kind of name (with a star for the layer), the errors of each
            backend.
    """

    cases: int
    noise: dict[tuple[str, str], Noise]
    errors: dict[str, dict[str, list[float]]]

    def medians(self) -> dict[str, dict[str, float]]:
        """Return the median error of each backend in float32, for each kind of name that has any
        error.
        """
        found = {
            kind: {name: float(np.median(values)) for name, values in both.items()}
            for kind, both in self.errors.items()
        }
        return {kind: both for kind, both in found.items() if all(both.values())}


def calibrate(
    engine_types: Mapping[str, EngineType],
    cases: int,
    precisions: tuple[Precision, ...] = PRECISIONS,
    *,
    steps: int = STEPS,
    progress: Callable[[int], None] = lambda case: None,
) -> Calibration:
    """Measure the noise over random cases.

    Args:
        engine_types: the engine of each backend.
        cases: number of cases.
        precisions: to measure.
        steps: of each run.
        progress: called with the number of cases done.
    """
    found = Calibration(cases, {}, {})
    for number in range(cases):
        case = random_case(number, steps)
        exact = run_case(engine_types, case, "float64")
        for precision in precisions:
            for row in measure(engine_types, case, precision, exact):
                found.noise.setdefault((quantity(row.name), precision), Noise()).add(row, number)
                if precision == "float32":
                    kind = re.sub(r"\.\d+\.", ".*.", row.name)
                    for name, error in row.errors.items():
                        found.errors.setdefault(kind, {}).setdefault(name, []).append(error)
        progress(number + 1)
    return found


def _batch(
    config: ModelConfig, train: TrainConfig, length: int, step: int, *, masked: bool
) -> Batch:
    key = derive(train.seed, CALIBRATION, 1000 + step)
    shape = (train.batch_size, length)
    if isinstance(config.inputs, Features):
        inputs = normal(key, (*shape, config.inputs.num_features)).astype(np.float32)
    else:
        inputs = (uniform(key, shape) * config.inputs.vocab_size).astype(np.int32)
    shares = uniform(derive(train.seed, CALIBRATION, 2000 + step), (3, *shape))
    labels = (shares[0, :, 0] * config.num_classes).astype(np.int32)
    weights = np.ones(train.batch_size, np.float32)
    if masked:
        # The last row is filler, without a real step.
        weights[-1] = 0.0
        return Batch(inputs, labels, weights, (shares[1] < 0.8) & (weights[:, None] > 0.0))
    return Batch(inputs, labels, weights, None)
