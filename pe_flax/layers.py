"""The small layers: dense, table, norm."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.errors import UserTypeError
from pe_core.model.config import LAYER_NORM_EPSILON, ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.laws import Constant, Normal, Parameter, Uniform, Values, XavierUniform
from pe_core.model.values import require_tokens_fit
from pe_flax.layout import canonical_variables, put_arrays
from pe_flax.positions import can_read


class Linear(nnx.Module):
    """A dense layer whose product is taken in a dtype of its own: x K + b, with the kernel (in,
    out) as Flax has it.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, compute: ComputeConfig
    ) -> None:
        self.kernel = nnx.Param(zeros((in_features, out_features), compute))
        self.bias = nnx.Param(zeros((out_features,), compute)) if bias else None
        self.product_dtype = jnp.dtype(compute.precision)

    def __call__(self, x: Array) -> Array:
        """Return the product, (..., out_features), in the dtype of products."""
        # One plain matrix product: XLA on a CPU is slower on a batch of them.
        rows = x.reshape(-1, x.shape[-1]).astype(self.product_dtype)
        product = rows @ self.kernel[...].astype(self.product_dtype)
        if self.bias is not None:
            product = product + self.bias[...].astype(self.product_dtype)[None]
        return product.reshape(*x.shape[:-1], -1)


class Table(nnx.Module):
    """A trained vector per token."""

    def __init__(self, rows: int, width: int, *, compute: ComputeConfig) -> None:
        self.table = nnx.Param(zeros((rows, width), compute))

    def __call__(self, tokens: Array) -> Array:
        """Return the rows of the tokens, (batch, length, width); under `jax.jit` a token outside
        the table cannot raise and gives NaN.
        """
        rows = self.table.shape[0]
        if can_read(tokens):
            require_tokens_fit(rows, int(tokens.min()), int(tokens.max()))
        return rows_or_nan(tokens, self.table[...])


class LayerNorm(nnx.Module):
    """Layer normalisation with the epsilon of the config and the variance in two passes."""

    def __init__(self, width: int, *, compute: ComputeConfig) -> None:
        self.scale = nnx.Param(zeros((width,), compute))
        self.bias = nnx.Param(zeros((width,), compute))

    def __call__(self, x: Array) -> Array:
        """Return x normalised over its last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        lead = (None,) * (x.ndim - 1)
        return (
            centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * self.scale[...][lead]
            + self.bias[...][lead]
        )


def rows_or_nan(index: Array, table: Array) -> Array:
    """Return the rows of a table at whole numbers; NaN outside the table, which a silent clamp
    would hide.
    """
    # A negative number would count from the end.
    index = jnp.where(index >= 0, index, table.shape[0])
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


def zeros(shape: tuple[int, ...], compute: ComputeConfig) -> Array:
    """Return a place for a weight, to be filled from canonical arrays; made by NumPy, which
    compiles nothing.
    """
    return jnp.asarray(np.zeros(shape, compute.array_dtype))


def fill_parameters(
    module: nnx.Module, items: tuple[Parameter, ...], seed: Any, rngs: nnx.Rngs | None
) -> None:
    """Put initial values into a module, in place.

    Args:
        module: its encodings were made with the same seed or rngs.
        items: its parameters, by canonical name.
        seed: draws by these names, so that two encodings of one kind start apart.
        rngs: the stream `params` draws the values where there is no seed; encodings keep theirs.

    Raises:
        UserTypeError: neither seed nor rngs.
    """
    if seed is not None:
        put_arrays(module, draw(items, seed))
        return
    variables = canonical_variables(module)
    for item in items:
        if item.name.split(".")[0] != "encodings":
            variable, transposed = variables[item.name]
            value = _initial_value(item, None, rngs, variable.dtype)
            variable[...] = value.T if transposed else value


def initial_parameter(
    item: Parameter,
    seed: Any,
    rngs: nnx.Rngs | None,
    compute: ComputeConfig | None,
) -> nnx.Param:
    """Return a parameter drawn from its initial law; float32 where there is no compute."""
    dtype = (compute or ComputeConfig()).array_dtype
    return nnx.Param(_initial_value(item, seed, rngs, dtype))


def _initial_value(item: Parameter, seed: Any, rngs: nnx.Rngs | None, dtype: Any) -> Array:
    """Return the values of a parameter, drawn from its initial law.

    Args:
        item: name, shape and law.
        seed: the same values in both backends.
        rngs: the stream `params` draws the values where there is no seed.
        dtype: of the values.

    Raises:
        UserTypeError: neither seed nor rngs, or a law that needs a seed.
    """
    if seed is not None:
        return jnp.asarray(draw((item,), seed)[item.name].astype(dtype))
    if rngs is None:
        raise UserTypeError(
            f"parameter {item.name!r} needs random numbers; pass rngs=nnx.Rngs(0) or seed=0"
        )
    match item.law:
        case Normal(std):
            value = std * jax.random.normal(rngs.params(), item.shape, dtype)
        case Uniform(low, high):
            value = jax.random.uniform(rngs.params(), item.shape, dtype, low, high)
        case XavierUniform():
            bound = math.sqrt(6.0 / sum(item.shape))
            value = jax.random.uniform(rngs.params(), item.shape, dtype, -bound, bound)
        case Constant(constant):
            value = jnp.full(item.shape, constant, dtype)
        case Values(values):
            value = jnp.asarray(np.array(values, dtype).reshape(item.shape))
        case _:
            raise UserTypeError(
                f"the law {item.law!r} of parameter {item.name!r} draws from a seed; pass seed=0"
            )
    return value
