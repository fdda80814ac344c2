"""A number that is not finite, put into an input, the loss and one gradient: the run stops before
the update and can go on without it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pe_flax.engine
import pe_flax.program
import pe_torch.engine
from parity_tests.cases import ENGINES, FEATURES, LENGTH, small_config
from parity_tests.saved_folders import Digests, digests
from pe_core import ComputeConfig, TrainConfig
from pe_core.data import Batch, Dataset, Sequences
from pe_core.model.initial import initial_arrays
from pe_core.model.random import derive, normal
from pe_core.storage.checkpoint import newest_checkpoint
from pe_core.training.engine import Engine, EngineType
from pe_core.training.evaluation import NotFiniteError
from pe_core.training.loop import TrainResult, train
from pe_core.training.run_directory import CHECKPOINTS_FOLDER, METRICS_FILE, checkpoint_shapes

CONFIG = small_config(num_layers=1)
# Nine steps, three to an epoch; the bad number comes two steps after a checkpoint, in an epoch that
# has begun.
TRAIN = TrainConfig(epochs=3, batch_size=5)
BAD, INTERVAL, STEPS = 5, 3, 9
GRADIENT = "layers.0.attention.out.weight"


@cache
def data() -> Dataset:
    inputs = normal(derive(0, 92), (19, LENGTH, FEATURES)).astype(np.float32)
    whole = Sequences(inputs, np.arange(19) % CONFIG.num_classes, None, tuple("abcd"))
    return Dataset("small", whole.take(np.arange(14)), whole.take(np.arange(14, 19)))


class Watched:
    """An engine whose batch of one step is changed before it is seen, also by what looks for the
    bad tensor.

    Args:
        engine: the engine itself.
        change: of the batch.
    """

    def __init__(self, engine: Engine, change: Callable[[Batch], Batch]) -> None:
        self.engine = engine
        self.change = change
        self.before: dict[int, Digests] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def train_step(self, batch: Batch, step: int) -> Any:
        self.before[step] = digests(self.engine.weights())
        return self.engine.train_step(self._changed(batch, step), step)

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        return self.engine.taps(self._changed(batch, step), step)

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        return self.engine.gradients(self._changed(batch, step), step)

    def _changed(self, batch: Batch, step: int | None) -> Batch:
        return self.change(batch) if step == BAD else batch


def as_it_is(batch: Batch) -> Batch:
    return batch


def row_of_infinity(batch: Batch) -> Batch:
    inputs = batch.inputs.copy()
    inputs[2, 1] = np.inf
    return dataclasses.replace(batch, inputs=inputs)


def bad_weight_of_the_loss(batch: Batch) -> Batch:
    return dataclasses.replace(batch, weights=batch.weights * np.float32(np.nan))


class TorchBadGradient(pe_torch.engine.Engine):
    """NaN in one gradient of one step, by a hook on its weight."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.step: int | None = None
        weight = dict(self.model.named_parameters())[f"encoder.{GRADIENT}"]
        weight.register_hook(
            lambda gradient: gradient * torch.nan if self.step == BAD else gradient
        )

    def train_step(self, batch: Batch, step: int) -> Any:
        self.step = step
        return super().train_step(batch, step)

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        self.step = step
        return super().gradients(batch, step)


class BadProgram(pe_flax.program.Program):
    """NaN in one gradient of one step, compiled in."""

    def _gradient(self, weights: Any, rest: Any, batch: dict[str, Any], step: Any) -> Any:
        found, gradients = super()._gradient(weights, rest, batch, step)
        if step is None:
            return found, gradients
        split = self.split(gradients)
        split[GRADIENT] = jnp.where(jnp.equal(step, BAD), jnp.nan, split[GRADIENT])
        return found, self._join(split)


class FlaxBadGradient(pe_flax.engine.Engine):
    """An engine of this program."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        model = pe_flax.SequenceClassifier(self.config, compute=self.compute)
        self._program = BadProgram(model, TRAIN, STEPS)


BAD_GRADIENTS: dict[str, EngineType] = {"torch": TorchBadGradient, "flax": FlaxBadGradient}
# What changes the batch, whether the engine has the bad gradient, and the name of the first bad
# tensor.
WAYS: dict[str, tuple[Callable[[Batch], Batch], bool, str]] = {
    "an input row": (row_of_infinity, False, "input"),
    "the loss": (bad_weight_of_the_loss, False, "loss"),
    "one gradient": (as_it_is, True, f"the gradient of {GRADIENT}"),
}


@cache
def first(name: str, *, bad_gradient: bool) -> tuple[Engine, dict[str, np.ndarray]]:
    """An engine that is compiled once, and its first state."""
    kind = (BAD_GRADIENTS if bad_gradient else ENGINES)[name]
    engine = kind(CONFIG, initial_arrays(CONFIG, TRAIN.seed), TRAIN, ComputeConfig(), STEPS)
    return engine, engine.state()


def go(watched: Watched, **options: Any) -> TrainResult:
    """A run by this engine."""
    return train(
        lambda *arguments, **others: cast(Engine, watched),
        CONFIG,
        data(),
        train_config=TRAIN,
        **options,
    )


def begin(name: str, change: Callable[[Batch], Batch], *, bad_gradient: bool = False) -> Watched:
    engine, state = first(name, bad_gradient=bad_gradient)
    engine.restore(state)
    return Watched(engine, change)


@cache
def whole(name: str) -> tuple[Digests, Digests]:
    """The digests of the weights of the run without a bad number, at its end and before the bad
    step.
    """
    watched = begin(name, as_it_is)
    result = go(watched)
    assert result.steps == STEPS
    return digests(result.arrays), watched.before[BAD]


def shapes(record: dict[str, Any]) -> Mapping[str, tuple[int, ...]]:
    return checkpoint_shapes(CONFIG, record)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_the_run_stops_before_the_update_and_goes_on(way: str, name: str, tmp_path: Path) -> None:
    change, bad_gradient, tensor = WAYS[way]
    at_the_end, before = whole(name)
    watched = begin(name, change, bad_gradient=bad_gradient)
    with pytest.raises(
        NotFiniteError,
        match=rf"^step {BAD} \(epoch 1\): .* not finite is {tensor}; the weights are those",
    ) as raised:
        go(watched, out=tmp_path / "run", checkpoint_every=INTERVAL)
    assert "\n" not in str(raised.value)
    assert digests(watched.weights()) == before
    found, passed_over = newest_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, shapes)
    assert found is not None
    assert (found.step, passed_over) == (BAD - BAD % INTERVAL, [])
    lines = [
        json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    ]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(BAD))
    last = go(begin(name, as_it_is), out=tmp_path / "run", checkpoint_every=INTERVAL, resume=True)
    assert digests(last.arrays) == at_the_end
