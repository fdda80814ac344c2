"""Measure the noise floor of training: how far runs that differ only by rounding drift apart.

All runs take the same steps side by side: one in float32 in each backend, one in float64, and
several in float32 of which one parameter was moved by one ulp before the first step. Backends that
drift apart no faster than one of them drifts from itself are indistinguishable.

Everything is measured twice: over all parameters, and without those whose steps were rounding at
some time (see `pe_parity.adam_noise`), of which a few among a hundred thousand decide the former.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from pe_core.data import Batch, Sequences, batch_at, epoch_order, steps_per_epoch
from pe_core.model.config import ComputeConfig, ModelConfig, Precision
from pe_core.model.initial import initial_arrays
from pe_core.model.random import derive, uniform
from pe_core.training.config import TrainConfig
from pe_core.training.engine import Engine, EngineType
from pe_parity.adam_noise import signals
from pe_parity.budgets import AIM, CHAOS, above_noise, distance
from pe_parity.trace import second_moments

# The purpose of the random keys that choose the moved parameters.
ULP: Final = 65
# Number of steps at which runs are compared, evenly spaced in the logarithm of the step.
MARKS: Final = 48


@dataclass(frozen=True)
class Curves:
    """Distances between runs, relative to the distance that the parameters moved in float64.

    Args:
        steps: at which the runs were compared, counted from 1.
        between: between the two backends in float32; empty where there is one only.
        exact: from float32 to float64, of each backend.
        one_ulp: of each run with a moved parameter from the run without, both in float32 and the
            first backend.
        handed_over: of runs that are resumed in the other backend from the run of the first
            backend, all in float32.
        moved: the distance moved.
        loss: of the float64 run at the step.
    """

    steps: list[int]
    between: list[float]
    exact: dict[str, list[float]]
    one_ulp: list[list[float]]
    handed_over: dict[str, list[float]]
    moved: list[float]
    loss: list[float]

    @property
    def floor(self) -> list[float]:
        """The largest distance that one ulp caused, at each of the steps."""
        return [max(column) for column in zip(*self.one_ulp, strict=True)]

    @property
    def chaos(self) -> int | None:
        """The first of the steps at which training is chaotic; None where it never is."""
        smallest = np.minimum.accumulate(self.floor)
        return next(
            (
                step
                for step, now, least in zip(self.steps, self.floor, smallest, strict=True)
                if now > CHAOS * least
            ),
            None,
        )

    @property
    def worst_ratio(self) -> float:
        """The largest ratio of the distance between the backends to the floor, before chaos."""
        return self._worst(self.between)

    @property
    def settled(self) -> int | None:
        """The first of the steps from which on the backends stay within the aim, up to chaos; None
        where there is none.
        """
        end = len(self.steps) if self.chaos is None else self.steps.index(self.chaos)
        beyond = [
            number
            for number in range(end)
            if self.between and self.between[number] > AIM * self.floor[number]
        ]
        first = beyond[-1] + 1 if beyond else 0
        return self.steps[first] if first < end else None

    @property
    def worst_ratio_handed_over(self) -> dict[str, float]:
        """The largest ratio of each run that is resumed in the other backend."""
        return {name: self._worst(curve) for name, curve in self.handed_over.items()}

    def _worst(self, curve: list[float]) -> float:
        end = len(self.steps) if self.chaos is None else self.steps.index(self.chaos)
        return max(
            (a / b for a, b in zip(curve[:end], self.floor[:end], strict=False)), default=0.0
        )

    def to_json(self) -> dict[str, Any]:
        """Return the curves as a dictionary for JSON."""
        found = {
            "floor": self.floor,
            "chaos": self.chaos,
            "worst_ratio": self.worst_ratio,
            "settled": self.settled,
        }
        return asdict(self) | found | {"worst_ratio_handed_over": self.worst_ratio_handed_over}


@dataclass(frozen=True)
class Floor:
    """The curves of one training.

    Args:
        compared: without the parameters that are left out.
        all_weights: with them.
        left_out: number of these at each of the steps.
    """

    compared: Curves
    all_weights: Curves
    left_out: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return the curves as a dictionary for JSON."""
        return {
            "compared": self.compared.to_json(),
            "all_weights": self.all_weights.to_json(),
            "left_out": self.left_out,
        }


def noise_floor(
    engine_types: Mapping[str, EngineType],
    config: ModelConfig,
    data: Sequences,
    train: TrainConfig,
    *,
    steps: int,
    ulps: int,
    changes: Mapping[str, Collection[int]] | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Floor:
    """Measure how far the runs lie apart at each of the marked steps.

    Args:
        engine_types: the engine of each backend.
        config: what the model is.
        data: what it is trained on, epoch after epoch.
        train: what a run is; the schedule ends at the last step.
        steps: of every run.
        ulps: number of runs with a moved parameter, each with another one.
        changes: for each further run its label and the steps before which it is handed over to the
            other backend.
        progress: called with the number of steps done.
    """
    arrays = initial_arrays(config, train.seed)

    def engine(
        name: str, weights: Mapping[str, np.ndarray], precision: Precision = "float32"
    ) -> Engine:
        return engine_types[name](config, weights, train, ComputeConfig(precision=precision), steps)

    first = next(iter(engine_types))
    runs: dict[str, Any] = {name: engine(name, arrays) for name in engine_types} | {
        "exact": engine(first, arrays, "float64")
    }
    runs |= {
        f"ulp {number}": engine(first, moved_by_one_ulp(arrays, train.seed, number))
        for number in range(ulps)
    }
    runs |= {
        name: _HandedOver([engine(each, arrays) for each in engine_types], at)
        for name, at in (changes or {}).items()
    }
    start = _flat(config, arrays)
    marks = set(np.geomspace(1, steps, MARKS).astype(int).tolist())
    floor = Floor(
        _no_curves(engine_types, ulps, changes or {}),
        _no_curves(engine_types, ulps, changes or {}),
        [],
    )
    least = None
    for step, batch in _stream(data, train, steps):
        metrics = {name: run.train_step(batch, step) for name, run in runs.items()}
        least = signals(second_moments(runs["exact"].state()), least)
        progress(step + 1)
        if step + 1 not in marks:
            continue
        kept = above_noise(_flat(config, least), "float32")
        floor.left_out.append(int(np.count_nonzero(~kept)))
        weights = {name: _flat(config, run.weights()) for name, run in runs.items()}
        for curves, chosen in ((floor.compared, kept), (floor.all_weights, slice(None))):
            curves.steps.append(step + 1)
            curves.loss.append(float(runs["exact"].read([metrics["exact"]])[0, 0]))
            _add(curves, {name: array[chosen] for name, array in weights.items()}, start[chosen])
    return floor


def _no_curves(engine_types: Collection[str], ulps: int, changes: Collection[str]) -> Curves:
    return Curves(
        [],
        [],
        {name: [] for name in engine_types},
        [[] for _ in range(ulps)],
        {name: [] for name in changes},
        [],
        [],
    )


def _add(curves: Curves, weights: Mapping[str, np.ndarray], start: np.ndarray) -> None:
    """Add the distances between the weights of the runs."""
    moved = weights["exact"] - start
    curves.moved.append(float(np.linalg.norm(moved)))
    first, *others = curves.exact
    if others:
        curves.between.append(distance(weights[first], weights[others[0]], moved))
    for name, curve in curves.exact.items():
        curve.append(distance(weights[name], weights["exact"], moved))
    for number, curve in enumerate(curves.one_ulp):
        curve.append(distance(weights[first], weights[f"ulp {number}"], moved))
    for name, curve in curves.handed_over.items():
        curve.append(distance(weights[first], weights[name], moved))


class _HandedOver:
    """A run that goes on in the other backend at some of its steps, and back."""

    def __init__(self, engines: Sequence[Engine], at: Collection[int]) -> None:
        self.engines, self.at = list(engines), at

    def train_step(self, batch: Batch, step: int) -> Any:
        if step in self.at:
            state = self.engines[0].state()
            self.engines.reverse()
            self.engines[0].restore(state)
        return self.engines[0].train_step(batch, step)

    def weights(self) -> dict[str, np.ndarray]:
        return self.engines[0].weights()


def _stream(data: Sequences, train: TrainConfig, steps: int) -> Iterator[tuple[int, Batch]]:
    per_epoch = steps_per_epoch(data.count, train.batch_size)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = epoch_order(train.seed, epoch, data.count)
        yield step, batch_at(data, order, place, train.batch_size)


def moved_by_one_ulp(
    arrays: Mapping[str, np.ndarray], seed: int, number: int
) -> dict[str, np.ndarray]:
    """Return the parameters with one element, drawn among all by the number, one float32 further
    from zero.
    """
    place = int(
        uniform(derive(seed, ULP, number), (1,))[0] * sum(array.size for array in arrays.values())
    )
    found = {name: array.copy() for name, array in arrays.items()}
    for array in found.values():
        if place < array.size:
            array.flat[place] = np.nextafter(
                array.flat[place], np.copysign(np.float32(np.inf), array.flat[place])
            )
            break
        place -= array.size
    return found


def _flat(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return all parameters as one float64 vector, without the key biases, which have no effect
    (see `pe_parity.trace`).
    """
    flat = []
    for name, array in arrays.items():
        if name.endswith("attention.qkv.bias"):
            array = np.delete(array, slice(config.d_model, 2 * config.d_model))
        flat.append(np.asarray(array, np.float64).ravel())
    return np.concatenate(flat)
