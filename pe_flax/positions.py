"""Which steps are real, and where they stand; see `pe_core/model/positions.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool


def real_steps(mask: Array | None, segment_ids: Array | None) -> Array | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    if segment_ids is None:
        return mask
    return segment_ids > 0 if mask is None else mask & (segment_ids > 0)


def count_positions(real: Bool[Array, "batch length"], segment_ids: Array | None) -> Array:
    """Return the count of real steps before each step, per segment, and 0 for padded steps, (batch,
    length).
    """
    steps = real.astype(jnp.int32)
    before = steps.cumsum(axis=1) - steps
    if segment_ids is not None:
        starts = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        before = before - jax.lax.cummax(jnp.where(starts, before, 0), axis=1)
    return before * steps
