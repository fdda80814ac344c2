"""Sines and cosines of positions times frequencies, at any position."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pe_flax.positions import Positions

PI: Final = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")


class Frequencies(NamedTuple):
    """The frequencies base^(-k / divisor) for k < count.

    Args:
        radians: per step, (count,) float64.
        base: of the powers.
        divisor: of the exponents.
    """

    radians: np.ndarray
    base: float | int
    divisor: float | int

    def turns(self) -> np.ndarray:
        """Return the turns per step in 128 bits: four words of 32, the highest first, (4, count)
        uint32.
        """
        return _turns_per_step(len(self.radians), self.base, self.divisor)


def sine_cosine(positions: Positions, frequencies: Frequencies, dtype: Any) -> tuple[Any, Any]:
    """Return sine and cosine of position times frequency, (..., length, count) each.

    Args:
        positions: where the steps stand, integer or floating point.
        frequencies: in radians and in turns per step.
        dtype: float64 for results in float64; float32 for any other.
    """
    exact = jnp.float64 if dtype == jnp.float64 else jnp.float32
    values = positions.values
    if positions.bound is None:
        if isinstance(values, np.ndarray):
            with np.errstate(invalid="ignore"):
                known = _turns_in_64_bits(values, frequencies, np) * (2 * np.pi)
            return _placed(np.sin(known), positions, exact), _placed(
                np.cos(known), positions, exact
            )
        if exact == jnp.float64 or values.dtype.itemsize > 4:
            wide = jnp.float64 if jnp.issubdtype(values.dtype, jnp.floating) else jnp.int64
            turns = _turns_in_64_bits(values.astype(wide), frequencies, jnp).astype(exact)
        else:
            turns = _turns_in_32_bits(values, frequencies)
        angles = turns * (2 * np.pi)
        return jnp.sin(angles), jnp.cos(angles)
    # Built in float64 NumPy and cast once: a constant of the compiled program.
    known = np.arange(positions.bound)[:, None] * frequencies.radians
    sine, cosine = jnp.asarray(np.sin(known), exact), jnp.asarray(np.cos(known), exact)
    if positions.counted and positions.placed is None:
        return sine, cosine
    return sine[values], cosine[values]


def _placed(waves: np.ndarray, positions: Positions, dtype: Any) -> Array:
    """Return waves as an array of JAX, 0 where padding that nobody could look at may hold NaN."""
    found = jnp.asarray(waves, dtype)
    if not isinstance(positions.placed, jax.core.Tracer):
        return found
    found = found if found.ndim == 3 else found[None]
    return jnp.where(positions.placed[..., None], found, jnp.zeros((), dtype))


@lru_cache(maxsize=64)
def _turns_per_step(count: int, base: float | int, divisor: float | int) -> np.ndarray:
    with localcontext() as context:
        context.prec = 60
        powers = [Decimal(base) ** (-Decimal(k) / Decimal(divisor)) for k in range(count)]
        turns = [int(power / (2 * PI) * (1 << 128)) for power in powers]
    words = [[turn >> shift & 0xFFFFFFFF for turn in turns] for shift in (96, 64, 32, 0)]
    return np.array(words, np.uint32)


def _turns_in_64_bits(positions: Any, frequencies: Frequencies, of: Any) -> Any:
    """Return positions times frequencies in turns, less the whole turns, exact to float64: of NumPy
    arrays in NumPy, or of JAX arrays of 64 bits.

    What overflows in the product of a position and the fraction of a turn is whole turns.
    """
    lead = (1,) * positions.ndim + (-1,)
    words = frequencies.turns().astype(np.uint64)
    high = (words[0] << np.uint64(32) | words[1]).view(np.int64).reshape(lead)
    low = ((words[2] << np.uint64(32) | words[3]).astype(np.float64) * 2.0**-128).reshape(lead)
    share = None
    if positions.dtype.kind == "f":
        floor = of.floor(positions)
        share = (positions - floor)[..., None]
        # Not a number stays one in its share; NumPy warns of its cast.
        positions = of.where(of.isfinite(floor), floor, 0.0).astype(np.int64)
    positions = positions[..., None]
    turns = (positions * high).astype(np.float64) * 2.0**-64 + positions.astype(np.float64) * low
    if share is None:
        return turns
    return turns + share * (frequencies.radians / (2 * np.pi)).reshape(lead)


def _turns_in_32_bits(positions: Array, frequencies: Frequencies) -> Array:
    """Return positions times frequencies in turns, less the whole turns, with an error of a float32
    ulp of one turn at any size.

    float64 is not at hand in JAX by default, and a float32 product loses its fraction as positions
    grow. In uint32, what overflows are whole turns: a position of 32 bits is multiplied by the
    first word of a frequency so, and by the rest in float32.
    """
    lead = (1,) * positions.ndim + (-1,)
    words = frequencies.turns()
    rest = [(words[n].astype(np.float64) * 2.0 ** (-32 * (n + 1))) for n in range(4)]
    after = [sum(rest[n:], np.zeros(())).astype(np.float32).reshape(lead) for n in (1, 2)]
    first, second = (word.reshape(lead) for word in words[:2])

    def wrapped(product: Array) -> Array:
        return product.astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-32)

    if not jnp.issubdtype(positions.dtype, jnp.floating):
        low = positions[..., None]
        return wrapped(low.astype(jnp.uint32) * first) + low.astype(jnp.float32) * after[0]
    # What floating point can hold beyond 2^32 has a word of its own; beyond 2^63, NaN.
    before = positions[..., None] < 0
    # Not abs, whose slope at 0 is 0.
    size = jnp.where(before, -positions[..., None], positions[..., None])
    floor = jnp.floor(size)
    share = jnp.where(size < np.float32(2.0**63), size - floor, jnp.nan)
    upper = jnp.floor(floor * np.float32(2.0**-32))
    lower = floor - upper * np.float32(2.0**32)
    product = lower.astype(jnp.uint32) * first + upper.astype(jnp.uint32) * second
    turns = wrapped(product) + lower * after[0] + upper * (after[1] * np.float32(2.0**32))
    per_step = (frequencies.radians / (2 * np.pi)).astype(np.float32).reshape(lead)
    turns = turns + share * per_step
    return jnp.where(before, -turns, turns)
