"""Encodings that are added to the steps; formulas and sources in
`pe_parity/reference/additive.py`.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.encodings import Encoding, LearnedTable, Sinusoidal
from pe_core.model.config import ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import implicit_positions_fit, require_positions_fit
from pe_core.model.parameters import encoding_parameters

# Clears the last 12 bits of a float32 significand, which leaves 12.
TWELVE_BITS: Final = np.uint32(0xFFFFF000)


class LearnedTableEncoding(nnx.Module):
    """A trained vector per position, added to the steps.

    Args:
        options: length of the table.
        d_model: width of a step.
        seed: of the initial table.
        compute: its precision is the table's.
    """

    def __init__(
        self,
        options: LearnedTable,
        d_model: int,
        *,
        seed: int = 0,
        compute: ComputeConfig | None = None,
    ) -> None:
        self.options = options
        (table,) = draw(encoding_parameters(options, d_model), seed).values()
        self.table = nnx.Param(jnp.asarray(table.astype((compute or ComputeConfig()).array_dtype)))

    def __call__(self, x: Array, positions: Array | None = None) -> Array:
        """Return x plus the rows of the positions; the same as `add`."""
        return self.add(x, positions)

    def add(self, x: Array, positions: Array | None = None, *, implicit: bool = False) -> Array:
        """Return x (batch, length, d_model) plus the rows of the positions, (length,) or (batch,
        length); 0, 1, 2, ... when None.

        Under `jax.jit` a position outside the table cannot raise; its row is NaN.

        Args:
            x: steps.
            positions: integers, or floating point to read between two rows.
            implicit: the positions were counted from zero within these steps, so they fit when the
                steps do.

        Raises:
            ValueError: a position outside the table.
        """
        length, table = x.shape[1], self.table[...]
        if positions is None:
            if not implicit_positions_fit(self.options, length):
                require_positions_fit(self.options, 0, length - 1)
            return x + _like(table[:length], x)
        if not (implicit and implicit_positions_fit(self.options, length)):
            if not isinstance(positions, jax.core.Tracer):
                require_positions_fit(self.options, float(positions.min()), float(positions.max()))
            positions = jnp.where(
                (positions >= 0) & (positions <= self.options.max_length - 1),
                positions,
                self.options.max_length,
            )
        if not jnp.issubdtype(positions.dtype, jnp.floating):
            return x + _like(_rows(table, positions), x)
        floor = jnp.floor(positions).astype(jnp.int32)
        above = jnp.where(floor == self.options.max_length - 1, floor, floor + 1)
        share = (positions - floor.astype(positions.dtype)).astype(table.dtype)[..., None]
        low, high = _rows(table, floor), _rows(table, above)
        return x + _like(low + share * (high - low), x)


class SinusoidalEncoding(nnx.Module):
    """Sines and cosines of the position, added to the steps.

    Args:
        options: base and layout.
        d_model: width of a step.
    """

    def __init__(self, options: Sinusoidal, d_model: int) -> None:
        self.options = options
        self.d_model = d_model

    def __call__(self, x: Array, positions: Array | None = None) -> Array:
        """Return x plus the waves at the positions; the same as `add`."""
        return self.add(x, positions)

    def add(self, x: Array, positions: Array | None = None, *, implicit: bool = False) -> Array:
        """Return x (batch, length, d_model) plus the waves at the positions, (length,) or (batch,
        length); 0, 1, 2, ... when None.

        Args:
            x: steps.
            positions: integers or floating point; in float32 the angles are reduced so that they
                keep their digits at any size.
            implicit: the positions were counted from zero within these steps, so a table of rows
            serves.
        """
        if positions is None or implicit:
            # The rows of 0 .. length - 1, built in float64 NumPy and cast once: a constant of the
            # compiled program.
            angles = np.arange(x.shape[1])[:, None] * self._frequencies()
            rows = self._waves(
                jnp.asarray(np.sin(angles), x.dtype), jnp.asarray(np.cos(angles), x.dtype)
            )
            return x + _like(rows if positions is None else rows[positions], x)
        angles = _turns(positions, self._frequencies() / (2 * np.pi), x.dtype) * (2 * np.pi)
        return x + _like(self._waves(jnp.sin(angles), jnp.cos(angles)), x)

    def _frequencies(self) -> np.ndarray:
        """Frequencies in radians per step, float64."""
        width = self.d_model
        if self.options.layout == "tensor2tensor":
            count = width // 2
            exponents: np.ndarray = np.arange(count) / max(count - 1, 1)
        else:
            count = (width + 1) // 2
            exponents = np.arange(count) * (2.0 / width)
        return np.power(self.options.base, -exponents)

    def _waves(self, sine: Array, cosine: Array) -> Array:
        width = self.d_model
        if self.options.layout == "interleaved":
            return jnp.stack([sine, cosine], axis=-1).reshape(*sine.shape[:-1], -1)[..., :width]
        waves = jnp.concatenate([sine, cosine], axis=-1)[..., :width]
        return jnp.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(0, width - waves.shape[-1])])


def make_encoding(
    options: Encoding, d_model: int, *, seed: int = 0, compute: ComputeConfig | None = None
) -> LearnedTableEncoding | SinusoidalEncoding:
    """Return the layer of an encoding's options."""
    match options:
        case LearnedTable():
            return LearnedTableEncoding(options, d_model, seed=seed, compute=compute)
        case Sinusoidal():
            return SinusoidalEncoding(options, d_model)


def _like(rows: Array, x: Array) -> Array:
    """Give rows of (length, width) the batch axis of x, so that no rank is promoted."""
    return rows.astype(x.dtype) if rows.ndim == x.ndim else rows.astype(x.dtype)[None]


def _rows(table: Array, positions: Array) -> Array:
    """The rows of the positions; NaN outside the table, which a silent clamp would hide."""
    return table.at[positions].get(mode="fill", fill_value=jnp.nan)


def _turns(positions: Array, turns_per_step: np.ndarray, dtype: jnp.dtype) -> Array:
    """Return positions times frequencies in turns, less the whole turns, with an error of a float32
    ulp of one turn at any size.

    float64 is not at hand in JAX by default, and a float32 product loses its fraction as positions
    grow. So both factors are split into parts of 12 bits, whose products are exact, and whole turns
    are dropped from each product before they are summed.
    """
    frequencies = turns_per_step.reshape((1,) * positions.ndim + (-1,))
    if dtype == jnp.float64:
        product = positions.astype(dtype)[..., None] * frequencies
        return product - jnp.round(product)
    position = positions.astype(jnp.float32)[..., None]
    coarse = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(position, jnp.uint32) & TWELVE_BITS, jnp.float32
    )
    turns = jnp.zeros((1,) * frequencies.ndim, jnp.float32)
    for _ in range(2):
        part = (frequencies.astype(np.float32).view(np.uint32) & TWELVE_BITS).view(np.float32)
        for factor in (coarse, position - coarse):
            product = factor * part
            turns = turns + (product - jnp.round(product))
        frequencies = frequencies - part
    turns = turns + position * frequencies.astype(np.float32)
    return turns - jnp.round(turns)
