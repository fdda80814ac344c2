"""Runs of torch's and optax's own Adam over our model, written as anyone would, with their states
taken out and put in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS, perturbed_arrays, small_batch, small_config
from pe_core import ComputeConfig, TrainConfig
from pe_core.model.config import Precision
from pe_core.model.parameters import parameters
from pe_core.model.random import derive, normal
from pe_core.training.schedule import make_schedule
from pe_torch.optimizer import parameter_groups

CONFIG = small_config(num_layers=1, pooling="cls")
BEFORE, TOTAL = 6, 14
TRAIN = TrainConfig(
    learning_rate=3e-3,
    weight_decay=0.1,
    schedule="warmup_cosine",
    warmup_steps=4,
    max_gradient_norm=None,
)
RATE = make_schedule(TRAIN, TOTAL)
NAMES = [item.name for item in parameters(CONFIG)]
START = perturbed_arrays(CONFIG)

Arrays = dict[str, np.ndarray]


class StockTorch:
    """torch.optim.AdamW with the learning rate set before each step."""

    def __init__(self, precision: Precision) -> None:
        compute = ComputeConfig(precision=precision)
        self.model = pe_torch.from_arrays(CONFIG, START, compute=compute).train()
        groups = parameter_groups(self.model, CONFIG, TRAIN.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, TRAIN.learning_rate)

    def go(self, steps: Sequence[int]) -> None:
        batch = small_batch(CONFIG)
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = RATE(step)
            self.optimizer.zero_grad()
            logits = self.model(torch.from_numpy(batch.inputs))
            nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels).long()).backward()
            self.optimizer.step()

    def take(self) -> Arrays:
        return pe_torch.import_adam(self.model, self.optimizer)

    def put(self, arrays: Arrays) -> tuple[str, ...]:
        return pe_torch.export_adam(arrays, self.model, self.optimizer)


def decaying(weights: Any) -> Any:
    """The linear weights: in Flax, the kernels."""
    keystr = jax.tree_util.keystr
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in keystr(path), weights)


def scheduled(precision: Precision) -> Callable[[Any], Any]:
    rates = np.array([RATE(step) for step in range(TOTAL + 1)], precision)
    return lambda count: jnp.asarray(rates)[count]


class StockFlax:
    """optax.adamw with a schedule, in an nnx.Optimizer."""

    def __init__(
        self, precision: Precision, chain: optax.GradientTransformation | None = None
    ) -> None:
        self.mode = partial(BACKENDS["flax"].mode, precision)
        with self.mode():
            compute = ComputeConfig(precision=precision)
            self.model = pe_flax.from_arrays(CONFIG, START, compute=compute)
            rates, decay = scheduled(precision), TRAIN.weight_decay
            adamw = chain or optax.adamw(rates, weight_decay=decay, mask=decaying)
            self.optimizer = nnx.Optimizer(self.model, adamw, wrt=nnx.Param)

    def go(self, steps: Sequence[int]) -> None:
        with self.mode(), jax.numpy_dtype_promotion("standard"):
            for _ in steps:
                stock_flax_step(self.model, self.optimizer)

    def take(self) -> Arrays:
        with self.mode():
            return pe_flax.import_adam(self.model, self.optimizer)

    def put(self, arrays: Arrays) -> tuple[str, ...]:
        with self.mode():
            return pe_flax.export_adam(arrays, self.model, self.optimizer)


@nnx.jit
def stock_flax_step(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
    batch = small_batch(CONFIG)

    def loss(model: Any) -> Any:
        logits = model(jnp.asarray(batch.inputs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


STOCK: dict[str, Callable[[Precision], StockTorch | StockFlax]] = {
    "torch": StockTorch,
    "flax": StockFlax,
}


@cache
def stopped(framework: str, precision: Precision) -> Arrays:
    """The state of a stock run after its first steps."""
    run = STOCK[framework](precision)
    run.go(range(BEFORE))
    return run.take()


GRADIENTS = {
    name: normal(derive(7, number), (TOTAL, *array.shape)).astype(np.float32)
    for number, (name, array) in enumerate(START.items())
}
