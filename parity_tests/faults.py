"""Planted faults: small patches of the running model, each with the place where it must be caught.

They are what really goes wrong in ports between frameworks. A fault is caught when the first name of the trace that leaves its budget is
its place; a bound so wide that it lets one through is too wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import pe_flax.attention
import pe_flax.dropout
import pe_flax.encoder
import pe_flax.encodings.additive
import pe_flax.engine
import pe_flax.layers
import pe_flax.optimizer
import pe_flax.pooling
import pe_torch.attention
import pe_torch.dropout
import pe_torch.encoder
import pe_torch.encodings.additive
import pe_torch.engine
import pe_torch.layers
import pe_torch.optimizer
import pe_torch.pooling
from pe_core.parity.trace import Depth

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Args:
        name: what is wrong.
        wing: torch or flax.
        place: the first name of the trace that must leave its budget.
        patch: plants it.
        config: of `cases.CONFIGS`.
        masked: whether the batch has padding.
        dropout: whether the trace is made in training mode.
    """

    name: str
    wing: str
    place: str
    patch: Patch
    config: str = "default"
    masked: bool = False
    dropout: bool = False

    @property
    def depth(self) -> Depth:
        """How far the trace must go to reach the place."""
        head = self.place.split("/")[0]
        return {"gradient": "gradient", "update": "step"}.get(head, "forward")  # type: ignore[return-value]


def attribute(target: Any, name: str, value: Any) -> Patch:
    """Replace an attribute."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


def around(target: Any, name: str, wrapper: Callable[..., Any]) -> Patch:
    """Replace a function by wrapper(function, *arguments)."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(target, name)
        monkeypatch.setattr(target, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))

    return patch


def _transposed_out(load: Any, model: Any, arrays: Any) -> Any:
    return load(model, dict(arrays) | {"layers.0.attention.out.weight": arrays["layers.0.attention.out.weight"].T})


def _swapped_parts(linear: Any, module: Any, x: Any) -> Any:
    """Key and value change places in the fused product."""
    out = linear(module, x)
    width = out.shape[-1] // 3
    if out.shape[-1] != 3 * x.shape[-1]:
        return out
    parts = [out[..., :width], out[..., 2 * width :], out[..., width : 2 * width]]
    return torch.cat(parts, dim=-1) if isinstance(out, torch.Tensor) else jnp.concatenate(parts, axis=-1)


def _interleaved_heads(attend: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    """Features of a head are taken every num_heads-th instead of side by side."""

    def mixed(x: torch.Tensor) -> torch.Tensor:
        batch, heads, length, width = x.shape
        return x.transpose(1, 2).reshape(batch, length, width, heads).permute(0, 3, 1, 2)

    return attend(mixed(query), mixed(key), mixed(value), *rest)


def _scaled_by_d_model(attend: Any, query: Any, *rest: Any) -> Any:
    heads = query.shape[1] if isinstance(query, torch.Tensor) else query.shape[2]
    return attend(query * heads**-0.5, *rest)


def _inverted_mask(attend: Any, query: Any, key: Any, value: Any, allowed: Any, *rest: Any) -> Any:
    return attend(query, key, value, None if allowed is None else ~allowed, *rest)


def _no_mask(attend: Any, query: Any, key: Any, value: Any, allowed: Any, *rest: Any) -> Any:
    return attend(query, key, value, None, *rest)


def _shifted_table(add: Any, encoding: Any, x: Any, positions: Any = None, **options: Any) -> Any:
    steps = torch.arange(x.shape[1]) if isinstance(x, torch.Tensor) else jnp.arange(x.shape[1])
    return add(encoding, x, steps + 1)


def _all_real(pool: Any, module: Any, x: Any, real: Any, *rest: Any) -> Any:
    return pool(module, x, None, *rest)


def _post_norm(block: Any, module: Any, *arguments: Any) -> Any:
    module.pre_norm = False
    return block(module, *arguments)


def _left_on(begin: Any, module: Any, step: Any) -> Any:
    module.train()
    return begin(module, 0)


def _zeroed_gradient(gradients: Any, engine: Any, batch: Any, step: Any = None) -> Any:
    loss, found = gradients(engine, batch, step)
    return loss, found | {"layers.1.norm2.bias": np.zeros_like(found["layers.1.norm2.bias"])}


def _half_gradient(gradients: Any, engine: Any, batch: Any, step: Any = None) -> Any:
    loss, found = gradients(engine, batch, step)
    return loss, found | {"encodings.0.table": 0.5 * found["encodings.0.table"]}


def _one_step_on(step: Any, optimizer: Any, *arguments: Any) -> Any:
    """Adam believes that it has taken a step already."""
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        zeros = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        optimizer.state[weight] = {"step": torch.tensor(1.0)} | zeros
    return step(optimizer, *arguments)


def _late_corrections(at: Any, corrections: Any, count: Any, dtype: Any) -> Any:
    return at(corrections, count + 1, dtype)


def _one_percent_more(schedule: Any, train: Any, total: int) -> Any:
    return schedule(replace(train, learning_rate=1.01 * train.learning_rate), total)


def _decay_everything(groups: Any, model: Any, config: Any, weight_decay: float) -> Any:
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def _mean_over_rows(dot: Any, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return losses.mean() * weights.sum()


def _fast_variance(norm: Any, module: Any, x: Any) -> Any:
    """The variance is divided by one less than the width."""
    variance = x.var(axis=-1, keepdims=True, ddof=1)
    lead = (None,) * (x.ndim - 1)
    scaled = (x - x.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-5)
    return scaled * module.scale[...][lead] + module.bias[...][lead]


def _twin_key(keep: Any, key: Any, shape: Any, *rest: Any) -> Any:
    return keep((key[0] ^ 1, key[1]), shape, *rest)


FAULTS = (
    Fault("LayerNorm epsilon of Flax", "torch", "layers.0.norm1", attribute(pe_torch.layers, "LAYER_NORM_EPSILON", 1e-6)),
    Fault(
        "tanh GELU",
        "torch",
        "layers.0.feed_forward.hidden",
        around(functional, "gelu", lambda gelu, x, approximate: gelu(x, approximate="tanh")),
    ),
    Fault("transposed square matrix", "torch", "layers.0.attention.output", around(pe_torch.engine, "load_arrays", _transposed_out)),
    Fault("inverted mask", "torch", "layers.0.attention.weights", around(pe_torch.attention, "attend", _inverted_mask), masked=True),
    Fault("mask forgotten", "torch", "layers.0.attention.weights", around(pe_torch.attention, "attend", _no_mask), masked=True),
    Fault("positions off by one", "torch", "encoding", around(pe_torch.encodings.additive.LearnedTableEncoding, "add", _shifted_table)),
    Fault("scale of d_model", "torch", "layers.0.attention.logits", around(pe_torch.attention, "attend", _scaled_by_d_model)),
    Fault("post- for pre-norm", "torch", "layers.0.norm1", around(pe_torch.encoder.Block, "forward", _post_norm)),
    Fault("dropout left on", "torch", "layers.0.norm1", around(pe_torch.dropout.Dropout, "begin", _left_on), config="dropout"),
    Fault(
        "another dropout mask",
        "torch",
        "layers.0.norm1",
        around(pe_torch.dropout, "dropout_keep", _twin_key),
        config="dropout",
        dropout=True,
    ),
    Fault(
        "kept elements not scaled up",
        "torch",
        "layers.0.norm1",
        attribute(pe_torch.dropout, "dropout_scale", lambda rate: 1.0),
        config="dropout",
        dropout=True,
    ),
    Fault("key and value swapped", "torch", "layers.0.attention.key", around(pe_torch.layers.Linear, "forward", _swapped_parts)),
    Fault("heads interleaved", "torch", "layers.0.attention.logits", around(pe_torch.attention, "attend", _interleaved_heads)),
    Fault("padding pooled", "torch", "pooled", around(pe_torch.pooling.Pool, "forward", _all_real), masked=True),
    Fault("filler rows in the loss", "torch", "loss", around(torch, "dot", _mean_over_rows), masked=True),
    Fault("one gradient zeroed", "torch", "gradient/layers.1.norm2.bias", around(pe_torch.engine.Engine, "gradients", _zeroed_gradient)),
    Fault("one gradient halved", "torch", "gradient/encodings.0.table", around(pe_torch.engine.Engine, "gradients", _half_gradient)),
    Fault("wrong bias correction", "torch", "update/input.weight", around(torch.optim.AdamW, "step", _one_step_on)),
    Fault("decay of everything", "torch", "update/input.weight", around(pe_torch.optimizer, "parameter_groups", _decay_everything)),
    Fault("learning rate one percent off", "torch", "update/input.weight", around(pe_torch.optimizer, "make_schedule", _one_percent_more)),
    Fault("LayerNorm epsilon of Flax", "flax", "layers.0.norm1", attribute(pe_flax.layers, "LAYER_NORM_EPSILON", 1e-6)),
    Fault("unbiased variance", "flax", "layers.0.norm1", around(pe_flax.layers.LayerNorm, "__call__", _fast_variance)),
    Fault(
        "tanh GELU",
        "flax",
        "layers.0.feed_forward.hidden",
        around(jax.nn, "gelu", lambda gelu, x, approximate: gelu(x, approximate=True)),
    ),
    Fault("inverted mask", "flax", "layers.0.attention.weights", around(pe_flax.attention, "attend", _inverted_mask), masked=True),
    Fault("positions off by one", "flax", "encoding", around(pe_flax.encodings.additive.LearnedTableEncoding, "add", _shifted_table)),
    Fault("scale of d_model", "flax", "layers.0.attention.logits", around(pe_flax.attention, "attend", _scaled_by_d_model)),
    Fault("key and value swapped", "flax", "layers.0.attention.key", around(pe_flax.layers.Linear, "__call__", _swapped_parts)),
    Fault("padding pooled", "flax", "pooled", around(pe_flax.pooling.Pool, "__call__", _all_real), masked=True),
    Fault("wrong bias correction", "flax", "update/input.weight", around(pe_flax.optimizer._Corrections, "at", _late_corrections)),
)
