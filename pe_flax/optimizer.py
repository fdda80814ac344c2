"""Adam with decoupled decay, global-norm clipping and a schedule in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pe_core.errors import UserValueError
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.training.config import CLIP_EPSILON, TrainConfig
from pe_core.training.schedule import Schedule, make_schedule

# The groups of weights and whether they decay.
GROUPS: Final = {"decaying": True, "resting": False}


class AdamState(NamedTuple):
    """Steps taken and the two moments."""

    count: Array  # type: ignore[assignment]  # named as in optax's own states, over tuple's method
    mu: optax.Params
    nu: optax.Params


def adam(
    schedule: float | Schedule | optax.Schedule,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_gradient_norm: float | None = None,
    mask: Callable[[optax.Params], Any] | Any = None,
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter 2019) in torch's order of operations, for any optax
    chain.

    The bias corrections, and the learning rate of a `Schedule`, are computed in float64 on the host
    for every step at which they still change and looked up by the step, so they are exact to the
    dtype of the weights, with JAX's x64 flag on or off.

    Args:
        schedule: learning rate, a constant, a closed form or an optax schedule.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        max_gradient_norm: the global norm to which gradients are clipped; None clips nothing.
        mask: a tree of booleans like the weights, or a function that makes one: which weights
        decay; all when None.
    """
    beta1, beta2 = betas
    corrections = _Corrections(schedule, betas, weight_decay)

    def init(params: optax.Params) -> AdamState:
        return AdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(
        gradients: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        if params is None and weight_decay:
            raise UserValueError(
                f"weight_decay={weight_decay} needs the weights; call update(gradients, state, "
                "params)"
            )
        if max_gradient_norm is not None:
            factor = clip_factor(global_norm(gradients), max_gradient_norm)
            gradients = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
        mu = jax.tree.map(lambda m, g: m + (g - m) * (1 - beta1), state.mu, gradients)
        nu = jax.tree.map(lambda v, g: v * beta2 + g * g * (1 - beta2), state.nu, gradients)

        # Looked up once for a dtype: a table for every weight would make the compiled program many
        # megabytes.
        found = {
            dtype: corrections.at(state.count, dtype)
            for dtype in {m.dtype for m in jax.tree.leaves(mu)}
        }

        def step(m: Array, v: Array) -> Array:
            return -found[m.dtype].step_size * (m / (jnp.sqrt(v) / found[m.dtype].root + eps))

        updates = jax.tree.map(step, mu, nu)
        if weight_decay:
            decays = (
                jax.tree.map(lambda _: True, params)
                if mask is None
                else mask(params)
                if callable(mask)
                else mask
            )

            def decay(u: Array, p: Array, decaying: bool) -> Array:
                # torch rounds the decayed weight before the step. A thousand roundings are seen, so
                # it is rounded here too: the difference of neighbours is exact, and a product and a
                # sum in one instruction round to the same weight.
                return ((p + p * found[u.dtype].decay) - p) + u if decaying else u

            updates = jax.tree.map(decay, updates, params, decays)
        return updates, AdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def global_norm(gradients: optax.Updates) -> Array:
    """Return the norm of all gradients together."""
    return jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(gradients)))


def clip_factor(norm: Array, max_norm: float) -> Array:
    """Return what gradients of this norm are multiplied with, as `torch.nn.utils.clip_grad_norm_`
    has it.
    """
    return jnp.minimum(max_norm / (norm + CLIP_EPSILON), 1.0)


def decay_mask(config: ModelConfig) -> dict[str, bool]:
    """Return which weights decay, by canonical name and by group: not tables, norms and biases."""
    return {item.name: item.decay for item in parameters(config)} | GROUPS


def make_optimizer(
    config: ModelConfig, train: TrainConfig, total_steps: int
) -> optax.GradientTransformation:
    """Return the optimizer of a training run over a dictionary of weights by canonical name, or of
    the groups end to end.
    """
    schedule, decays = make_schedule(train, total_steps), decay_mask(config)

    def mask(params: optax.Params) -> dict[str, bool]:
        return {name: decays[name] for name in params}

    if train.optimizer == "stock":
        rates = np.array([schedule(step) for step in range(total_steps + 1)])
        stock = optax.adamw(
            lambda count: jnp.asarray(rates, jnp.float32)[jnp.minimum(count, total_steps)],
            train.beta1, train.beta2, train.epsilon, weight_decay=train.weight_decay, mask=mask,
        )  # fmt: skip
        return (
            stock
            if train.max_gradient_norm is None
            else optax.chain(optax.clip_by_global_norm(train.max_gradient_norm), stock)
        )
    return adam(
        schedule,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        weight_decay=train.weight_decay,
        max_gradient_norm=train.max_gradient_norm,
        mask=mask,
    )


class _Correction(NamedTuple):
    """What depends on the step alone, at one step and in one dtype."""

    step_size: Array
    root: Array
    decay: Array


class _Corrections:
    """What depends on the step alone, as tables in float64."""

    def __init__(
        self,
        schedule: float | Schedule | optax.Schedule,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        last = schedule.total_steps if isinstance(schedule, Schedule) else 0
        # From here on 1 - beta^t is 1 in float64.
        settled = max(
            (math.ceil(math.log(2.0**-54) / math.log(beta)) for beta in betas if beta > 0.0),
            default=1,
        )
        steps = np.arange(1, max(last, settled) + 2)
        self.first = 1.0 - np.power(betas[0], steps)
        self.root = np.sqrt(1.0 - np.power(betas[1], steps))
        # A schedule of optax's is asked inside the step; ours and a constant are tables.
        self.ask: optax.Schedule | None = None
        if isinstance(schedule, Schedule):
            rates = [schedule(step) for step in range(last + 1)]
        elif callable(schedule):
            self.ask, rates = schedule, [0.0]
        else:
            rates = [float(schedule)]
        # The learning rate stays what it is after the last step of its table.
        self.rates = np.pad(rates, (0, len(steps) - len(rates)), mode="edge")
        self.weight_decay = weight_decay

    def at(self, count: Array, dtype: jnp.dtype) -> _Correction:
        """Return learning rate / (1 - beta1^t), the root of 1 - beta2^t, and what a weight is
        multiplied with and gains by decay.

        torch multiplies a weight with 1 - learning rate * decay, rounded to its dtype. That
        rounding goes the same way at every step, so it is taken over; less 1, which is exact, it
        makes an update.
        """
        root = _at(self.root, count, dtype)
        if self.ask is None:
            step_size, kept = (
                _at(self.rates / self.first, count, dtype),
                _at(1.0 - self.rates * self.weight_decay, count, dtype),
            )
        else:
            rate = jnp.asarray(self.ask(count), dtype)
            step_size, kept = rate / _at(self.first, count, dtype), 1.0 - rate * self.weight_decay
        return _Correction(step_size, root, kept - 1.0)


def _at(table: np.ndarray, count: Array, dtype: jnp.dtype) -> Array:
    return jnp.asarray(table, dtype)[jnp.minimum(count, len(table) - 1)]
