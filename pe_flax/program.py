"""The compiled functions of a model in training: pure functions of plain arrays, compiled once for
all engines of one model and one optimizer, whatever their seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from pe_core.model.config import ComputeConfig
from pe_core.model.parameters import parameters
from pe_core.training.config import TrainConfig
from pe_flax.encoder import SequenceClassifier
from pe_flax.layout import canonical_variables
from pe_flax.optimizer import GROUPS, global_norm, make_optimizer

Weights = dict[str, Array]
Content = dict[str, Any]


class State(NamedTuple):
    """What a step changes: weights and moments lie end to end in one vector for each group of the
    optimizer.
    """

    weights: Weights
    optimizer: Any
    finite: Array


class Program:
    """The functions of one model and one optimizer, compiled when first called.

    Steps are compiled over a few plain arrays with donated buffers: `nnx.jit` over the module would
    walk it at every call, and an optimizer over every weight apart would be a hundred small
    kernels.

    Args:
        model: gives the structure; its weights are not kept.
        train: of the optimizer.
        total_steps: steps of the whole run, for the schedule.
    """

    def __init__(self, model: SequenceClassifier, train: TrainConfig, total_steps: int) -> None:
        variables = canonical_variables(model)
        # In the order of the paths of canonical names, numbers as numbers.
        self.variables = {
            name: (variables[name][0].shape, variables[name][1])
            for name in sorted(variables, key=_path)
        }
        decays = {item.name: item.decay for item in parameters(model.config)}
        self.groups = {
            group: [n for n in self.variables if decays[n] == (GROUPS[group])] for group in GROUPS
        }
        model.train()
        parts: tuple[Any, ...] = nnx.split(model, nnx.Param, ...)
        model.eval()
        self._graphs = {True: parts[0], False: nnx.graphdef(model)}
        self._tree = jax.tree.structure(parts[1])
        self._rest = jax.tree.structure(parts[2])
        self._leaves = list(variables)
        self.optimizer = make_optimizer(model.config, train, total_steps)
        self.tap_order: list[str] = []
        self.train_step = jax.jit(self._step, donate_argnums=0)
        self.evaluate = jax.jit(self._evaluate)
        self.predict = jax.jit(self._predict)
        self.taps = jax.jit(self._tapped)
        self.gradients = jax.jit(self._gradient)

    def split(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The weights one by one, in the module's layout; on the device or as NumPy."""
        found = {}
        for group, names in self.groups.items():
            start = 0
            for name in names:
                shape = self.variables[name][0]
                end = start + math.prod(shape)
                found[name] = weights[group][start:end].reshape(shape)
                start = end
        return found

    def _join(self, found: dict[str, Array]) -> Weights:
        return {
            group: jnp.concatenate([found[name].ravel() for name in names])
            for group, names in self.groups.items()
        }

    def _model(
        self, weights: dict[str, Array], rest: list[Any], training: bool
    ) -> SequenceClassifier:
        tree = jax.tree.unflatten(self._tree, [weights[name] for name in self._leaves])
        return nnx.merge(self._graphs[training], tree, jax.tree.unflatten(self._rest, rest))

    def _logits(
        self,
        weights: dict[str, Array],
        rest: list[Any],
        batch: Content,
        step: Any,
        taps: dict[str, Array] | None = None,
    ) -> Array:
        # On a GPU, JAX takes float32 products in TF32 unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return self._model(weights, rest, step is not None)(
                batch["inputs"],
                mask=batch["mask"],
                positions=batch["positions"],
                taps=taps,
                dropout_step=step,
            )

    def _predict(self, weights: Weights, rest: list[Any], batch: Content) -> Array:
        return self._logits(self.split(weights), rest, batch, None)

    def _evaluate(self, weights: Weights, rest: list[Any], batch: Content) -> Array:
        return self._loss(self.split(weights), rest, batch, None)[1]

    def _tapped(
        self, weights: Weights, rest: list[Any], batch: Content, step: Any
    ) -> dict[str, Array]:
        taps: dict[str, Array] = {}
        taps["loss"] = self._loss(self.split(weights), rest, batch, step, taps)[0]
        # A compiled function returns dictionaries sorted by key.
        self.tap_order = list(taps)
        return taps

    def _loss(
        self,
        weights: dict[str, Array],
        rest: list[Any],
        batch: Content,
        step: Any,
        taps: dict[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        logits = self._logits(weights, rest, batch, step, taps)
        labels, share = batch["labels"], batch["weights"].astype(logits.dtype)
        total = share.sum()
        loss = (
            optax.softmax_cross_entropy_with_integer_labels(logits, labels) * share
        ).sum() / total
        correct = (
            (logits.argmax(axis=-1).astype(labels.dtype) == labels).astype(share.dtype) * share
        ).sum()
        return loss, jnp.stack([loss, correct, total, jnp.zeros_like(loss)])

    def _gradient(
        self, weights: Weights, rest: list[Any], batch: Content, step: Any
    ) -> tuple[tuple[Array, Array], Weights]:
        found, gradients = jax.value_and_grad(self._loss, has_aux=True)(
            self.split(weights), rest, batch, step
        )
        return found, self._join(gradients)

    def _step(
        self, state: State, rest: list[Any], batch: Content, step: Array
    ) -> tuple[State, Array]:
        (loss, metrics), gradients = self._gradient(state.weights, rest, batch, step)
        norm = global_norm(gradients)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        kept = jax.tree.map(
            partial(jnp.where, finite),
            State(weights, optimizer, finite),
            State(state.weights, state.optimizer, finite),
        )
        return kept, metrics.at[3].set(norm)


PROGRAMS: Final[dict[Any, Program]] = {}


def program(
    model: SequenceClassifier, train: TrainConfig, compute: ComputeConfig, total_steps: int
) -> Program:
    """Return the program of a model, the same for all that differ in their seeds alone."""
    steps = 0 if train.schedule == "constant" else total_steps
    key = (model.config, compute, replace(train, seed=0, epochs=1), steps)
    if key not in PROGRAMS:
        PROGRAMS[key] = Program(model, train, total_steps)
    return PROGRAMS[key]


def _path(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
