"""Sines and cosines of positions times frequencies, at any position."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pe_flax.positions import Positions

# Clears the last 12 bits of a float32 significand, which leaves 12.
TWELVE_BITS: Final = np.uint32(0xFFFFF000)


def sine_cosine(positions: Positions, frequencies: np.ndarray, dtype: Any) -> tuple[Array, Array]:
    """Return sine and cosine of position times frequency, (..., length, count) each.

    Args:
        positions: where the steps stand, integer or floating point.
        frequencies: (count,) float64, in radians per step.
        dtype: float64 for results in float64; float32 for any other.
    """
    exact = jnp.float64 if dtype == jnp.float64 else jnp.float32
    values = positions.values
    if positions.bound is None:
        angles = _turns(values, frequencies / (2 * np.pi), exact) * (2 * np.pi)
        return jnp.sin(angles), jnp.cos(angles)
    # Built in float64 NumPy and cast once: a constant of the compiled program.
    known = np.arange(positions.bound)[:, None] * frequencies
    sine, cosine = jnp.asarray(np.sin(known), exact), jnp.asarray(np.cos(known), exact)
    if positions.counted and positions.placed is None:
        return sine, cosine
    return sine[values], cosine[values]


def _turns(positions: Array, turns_per_step: np.ndarray, dtype: Any) -> Array:
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
