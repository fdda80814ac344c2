"""Faults of training: gradients, clipping, optimizer, schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import pe_flax.optimizer
import pe_torch.engine
import pe_torch.optimizer
from parity_tests.faults.fault import Fault, around, attribute
from pe_core import TrainConfig
from pe_core.training.config import CLIP_EPSILON
from pe_core.training.schedule import Schedule

# A run in which everything that training can do does something.
FULL = TrainConfig(
    learning_rate=1e-2,
    schedule="warmup_cosine",
    warmup_steps=1,
    weight_decay=0.1,
    max_gradient_norm=0.1,
)


def _zeroed_gradient(gradients: Any, engine: Any, batch: Any, step: Any = None) -> Any:
    loss, found = gradients(engine, batch, step)
    return loss, found | {"layers.1.norm2.bias": np.zeros_like(found["layers.1.norm2.bias"])}


def _negated_gradient(gradients: Any, engine: Any, batch: Any, step: Any = None) -> Any:
    loss, found = gradients(engine, batch, step)
    return loss, found | {FIRST: -found[FIRST]}


def _half_gradient(gradients: Any, engine: Any, batch: Any, step: Any = None) -> Any:
    loss, found = gradients(engine, batch, step)
    return loss, found | {"encodings.0.table": 0.5 * found["encodings.0.table"]}


def _clipped_apart(clip: Any, weights: Any, max_norm: float, norm: Any) -> None:
    for weight in weights:
        clip([weight], max_norm, weight.grad.norm())


def _without_epsilon(clip: Any, weights: Any, max_norm: float, norm: torch.Tensor) -> None:
    for weight in weights:
        weight.grad.mul_((max_norm / norm).clamp(max=1.0))


def _one_step_on(step: Any, optimizer: Any, *arguments: Any) -> Any:
    """Adam believes that it has taken a step already."""
    for weight in _weights(optimizer):
        zeros = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        optimizer.state[weight] = {"step": torch.tensor(1.0)} | zeros
    return step(optimizer, *arguments)


def _coupled(step: Any, optimizer: Any, *arguments: Any) -> Any:
    """The decay goes into the gradient, as in `torch.optim.Adam`."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = weight.grad + group["weight_decay"] * weight.detach()
        group["weight_decay"] = 0.0
    return step(optimizer, *arguments)


def _epsilon_of_tensorflow(step: Any, optimizer: Any, *arguments: Any) -> Any:
    """Epsilon joins a root without bias correction, so it counts for more in the first steps."""
    for group in optimizer.param_groups:
        group["eps"] /= (1.0 - group["betas"][1]) ** 0.5
    return step(optimizer, *arguments)


def _second_beta(step: Any, optimizer: Any, *arguments: Any) -> Any:
    for group in optimizer.param_groups:
        group["betas"] = (group["betas"][0], 0.99)
    return step(optimizer, *arguments)


def _climbs(step: Any, optimizer: Any, *arguments: Any) -> Any:
    for group in optimizer.param_groups:
        group["maximize"] = True
    return step(optimizer, *arguments)


def _weights(optimizer: Any) -> list[Any]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _late_corrections(at: Any, corrections: Any, count: Any, dtype: Any) -> Any:
    return at(corrections, count + 1, dtype)


def _float32_corrections(at: Any, corrections: Any, count: Any, dtype: Any) -> Any:
    """As optax has them."""
    return jax.tree.map(
        lambda value: value.astype(jnp.float32).astype(dtype),
        at(corrections, count, np.dtype("float32")),
    )


def _one_percent_more(schedule: Any, train: Any, total: int) -> Any:
    return schedule(replace(train, learning_rate=1.01 * train.learning_rate), total)


def _decay_everything(groups: Any, model: Any, config: Any, weight_decay: float) -> Any:
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def _read_late(schedule: Any, train: Any, total: int) -> Any:
    """The rate is read after the count has gone up."""
    right = schedule(train, total)
    return lambda step: right(step + 1)


def _from_zero(schedule: Any, train: Any, total: int) -> Any:
    """The rise begins at a rate of zero."""
    right = schedule(train, total)
    return lambda step: (
        train.learning_rate * step / train.warmup_steps
        if step < train.warmup_steps
        else right(step)
    )


def _one_step_short(schedule: Any, train: Any, total: int) -> Any:
    """The cosine ends at the last step and not after it."""
    return Schedule(train.learning_rate, "warmup_cosine", train.warmup_steps, total - 1)


FIRST = "input.weight"
# fmt: off
STEP_FAULTS = (
    Fault("gradients", "zeroed", "torch", "gradient/layers.1.norm2.bias",
        around(pe_torch.engine.Engine, "gradients", _zeroed_gradient)),
    Fault("gradients", "negated", "torch", f"gradient/{FIRST}",
        around(pe_torch.engine.Engine, "gradients", _negated_gradient)),
    Fault("gradients", "halved", "torch", "gradient/encodings.0.table",
        around(pe_torch.engine.Engine, "gradients", _half_gradient)),
    Fault("clipping", "each weight apart", "torch", f"moment/m/{FIRST}",
        around(torch.nn.utils, "clip_grads_with_norm_", _clipped_apart), train=FULL, steps=3),
    Fault("clipping", "none", "torch", f"moment/m/{FIRST}",
        attribute(torch.nn.utils, "clip_grads_with_norm_", lambda weights, max_norm, norm: None),
        train=FULL, steps=3),
    Fault("clipping", "without epsilon", "torch", f"moment/m/{FIRST}",
        around(torch.nn.utils, "clip_grads_with_norm_", _without_epsilon), train=FULL, steps=3,
        precisions=("float64",)),
    Fault("optimizer", "climbs", "torch", f"moment/m/{FIRST}",
        around(torch.optim.AdamW, "step", _climbs)),
    Fault("optimizer", "wrong bias correction", "torch", f"update/{FIRST}",
        around(torch.optim.AdamW, "step", _one_step_on)),
    Fault("optimizer", "decay of everything", "torch", f"update/{FIRST}",
        around(pe_torch.optimizer, "parameter_groups", _decay_everything)),
    Fault("optimizer", "decay in the gradient", "torch", f"moment/m/{FIRST}",
        around(torch.optim.AdamW, "step", _coupled), train=FULL, steps=3),
    Fault("optimizer", "second beta of another library", "torch", f"moment/v/{FIRST}",
        around(torch.optim.AdamW, "step", _second_beta)),
    Fault("optimizer", "epsilon before the correction", "torch", f"update/{FIRST}",
        around(torch.optim.AdamW, "step", _epsilon_of_tensorflow), precisions=("float64",)),
    Fault("schedule", "learning rate one percent off", "torch", f"update/{FIRST}",
        around(pe_torch.optimizer, "make_schedule", _one_percent_more)),
    Fault("schedule", "read one step late", "torch", f"update/{FIRST}",
        around(pe_torch.optimizer, "make_schedule", _read_late), train=FULL, steps=4),
    Fault("schedule", "rise from zero", "torch", f"update/{FIRST}",
        around(pe_torch.optimizer, "make_schedule", _from_zero), train=FULL, steps=4),
    Fault("schedule", "cosine one step short", "torch", f"weights/{FIRST}",
        around(pe_torch.optimizer, "make_schedule", _one_step_short), train=FULL, steps=4),
    Fault("optimizer", "wrong bias correction", "flax", f"update/{FIRST}",
        around(pe_flax.optimizer._Corrections, "at", _late_corrections)),
    Fault("optimizer", "corrections in float32", "flax", f"update/{FIRST}",
        around(pe_flax.optimizer._Corrections, "at", _float32_corrections),
        precisions=("float64",)),
    Fault("clipping", "without epsilon", "flax", f"moment/m/{FIRST}",
        attribute(pe_flax.optimizer, "CLIP_EPSILON", CLIP_EPSILON / 2), train=FULL, steps=3,
        precisions=("float64",)),
)
# fmt: on
