"""A number that is not finite, put into an input, the loss and one gradient: the run stops before the update and can go on without it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import pe_flax.engine
import pe_torch.engine
from parity_tests.cases import ENGINES, FEATURES, LENGTH, small_config
from pe_core import ComputeConfig, ModelConfig, TrainConfig
from pe_core.checkpoint import newest_checkpoint
from pe_core.data import Batch, Dataset, Sequences
from pe_core.engine import Engine, EngineType
from pe_core.parameters import parameters
from pe_core.random import derive, normal
from pe_core.run_directory import CHECKPOINTS_FOLDER, METRICS_FILE, checkpoint_shapes
from pe_core.training import NotFiniteError, train
from pe_core.weights import digest

CONFIG = small_config(num_layers=1)
# Nine steps, three to an epoch; the bad number comes two steps after a checkpoint, in an epoch that has begun.
TRAIN = TrainConfig(epochs=3, batch_size=5)
BAD, INTERVAL, STEPS = 5, 3, 9
GRADIENT = "layers.0.attention.out.weight"


@cache
def data() -> Dataset:
    inputs = normal(derive(0, 92), (19, LENGTH, FEATURES)).astype(np.float32)
    whole = Sequences(inputs, np.arange(19) % CONFIG.num_classes, None, tuple("abcd"))
    return Dataset("small", whole.take(np.arange(14)), whole.take(np.arange(14, 19)))


class BadBatch:
    """An engine whose batch of one step is changed before it is seen, also by what looks for the bad tensor.

    Args:
        make: how the engine is made.
        change: of the batch.
    """

    def __init__(self, make: EngineType, change: Callable[[Batch], Batch]) -> None:
        self.make = make
        self.change = change

    def __call__(self, *arguments: Any) -> Engine:
        engine: Any = self.make(*arguments)
        for name in ("train_step", "taps", "gradients"):

            def changed(batch: Batch, step: int | None = None, call: Callable[..., Any] = getattr(engine, name)) -> Any:
                return call(self.change(batch) if step == BAD else batch, step)

            setattr(engine, name, changed)
        found: Engine = engine
        return found


def row_of_infinity(batch: Batch) -> Batch:
    inputs = batch.inputs.copy()
    inputs[2, 1] = np.inf
    return dataclasses.replace(batch, inputs=inputs)


def bad_weight_of_the_loss(batch: Batch) -> Batch:
    return dataclasses.replace(batch, weights=batch.weights * np.float32(np.nan))


class TorchBadGradient(pe_torch.engine.Engine):
    """NaN in one gradient of one step, by a hook on its weight."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.step: int | None = None
        weight = dict(self.model.named_parameters())[GRADIENT]
        weight.register_hook(lambda gradient: gradient * torch.nan if self.step == BAD else gradient)

    def train_step(self, batch: Batch, step: int) -> Any:
        self.step = step
        return super().train_step(batch, step)

    def gradients(self, batch: Batch, step: int | None = None) -> tuple[float, dict[str, np.ndarray]]:
        self.step = step
        return super().gradients(batch, step)


class FlaxBadGradient(pe_flax.engine.Engine):
    """NaN in one gradient of one step, compiled in."""

    def _gradient(self, weights: Any, batch: dict[str, Any], step: Any) -> Any:
        found, gradients = super()._gradient(weights, batch, step)
        if step is None:
            return found, gradients
        split = self._split(gradients)
        split[GRADIENT] = jnp.where(jnp.equal(step, BAD), jnp.nan, split[GRADIENT])
        return found, self._join(split)


WAYS: dict[str, tuple[Callable[[str], EngineType], str]] = {
    "an input row": (lambda name: BadBatch(ENGINES[name], row_of_infinity), "input"),
    "the loss": (lambda name: BadBatch(ENGINES[name], bad_weight_of_the_loss), "loss"),
    "one gradient": (lambda name: {"torch": TorchBadGradient, "flax": FlaxBadGradient}[name], f"the gradient of {GRADIENT}"),
}


@cache
def whole(name: str) -> tuple[str, str]:
    """The digests of the weights of the run without a bad number, at its end and before the bad step."""
    states = {}

    def kept(*arguments: Any) -> Engine:
        engine: Any = ENGINES[name](*arguments)
        take = engine.train_step

        def train_step(batch: Batch, step: int) -> Any:
            states[step] = digest(engine.weights())
            return take(batch, step)

        engine.train_step = train_step
        found: Engine = engine
        return found

    result = train(kept, CONFIG, data(), train=TRAIN)
    assert result.steps == STEPS
    return digest(result.arrays), states[BAD]


def shapes(record: dict[str, Any]) -> Mapping[str, tuple[int, ...]]:
    return checkpoint_shapes(CONFIG, record)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_the_run_stops_before_the_update_and_goes_on(way: str, name: str, tmp_path: Path) -> None:
    make, tensor = WAYS[way]
    engines: list[Engine] = []

    def kind(
        config: ModelConfig, arrays: Mapping[str, np.ndarray], options: TrainConfig, compute: ComputeConfig, total: int, *rest: Any
    ) -> Engine:
        engines.append(make(name)(config, arrays, options, compute, total, *rest))
        return engines[0]

    with pytest.raises(NotFiniteError, match=rf"^step {BAD} \(epoch 1\): .* not finite is {tensor}; the weights are those") as raised:
        train(kind, CONFIG, data(), train=TRAIN, out=tmp_path / "run", checkpoint_every=INTERVAL)
    assert "\n" not in str(raised.value)
    at_the_end, before = whole(name)
    assert digest(engines[0].weights()) == before
    assert set(engines[0].weights()) == {item.name for item in parameters(CONFIG)}
    found, passed_over = newest_checkpoint(tmp_path / "run" / CHECKPOINTS_FOLDER, shapes)
    assert found is not None
    assert (found.step, passed_over) == (BAD - BAD % INTERVAL, [])
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(BAD))
    last = train(ENGINES[name], CONFIG, data(), train=TRAIN, out=tmp_path / "run", checkpoint_every=INTERVAL, resume=True)
    assert digest(last.arrays) == at_the_end
