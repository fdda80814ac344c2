"""Which steps are real and where they stand, found once per call and cut by query rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool


class Rows(NamedTuple):
    """A block of query rows; where blocks run in a loop, the start is traced."""

    start: int | Array
    size: int

    def of(self, x: Array, axis: int) -> Array:
        """Return these rows of x along an axis."""
        if self.size == x.shape[axis]:
            return x
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis)


class Positions(NamedTuple):
    """Where the steps of a call stand.

    Args:
        values: (length,) or (batch, length), integer or floating point; 0 where a step has none.
        placed: (batch, length) or (1, length), False for a trained step in front and for padding;
            None when every step has a position.
        segments: (batch, length) of packed sequences.
        counted: the step at index i stands at i, up to one shift per segment.
        bound: the values are known to lie in 0 .. bound - 1 without looking at them.
    """

    values: Any
    placed: Any = None
    segments: Any = None
    counted: bool = False
    bound: int | None = None

    def rows(self, rows: Rows) -> Positions:
        """Return the positions of a block of query rows."""
        values, placed, segments = (
            None if item is None else rows.of(item, item.ndim - 1)
            for item in (self.values, self.placed, self.segments)
        )
        return Positions(values, placed, segments, bound=self.bound)

    def behind(self, front: int) -> Positions:
        """Return the positions with so many steps in front, which have none."""
        placed = self.placed
        if placed is None:
            placed = jnp.ones((1, self.values.shape[-1]), bool)
        values, placed = (
            jnp.pad(item, [(0, 0)] * (item.ndim - 1) + [(front, 0)])
            for item in (self.values, placed)
        )
        return self._replace(values=values, placed=placed)

    def restore(self, new: Array, old: Array) -> Array:
        """Return the new steps (batch, length, width), the old ones where there is no position."""
        return new if self.placed is None else jnp.where(self.placed[..., None], new, old)


def _flatten(positions: Positions) -> tuple[list[tuple[Any, Any]], tuple[bool, int | None]]:
    arrays = positions[:3]
    keys = [(jax.tree_util.SequenceKey(number), array) for number, array in enumerate(arrays)]
    return keys, (positions.counted, positions.bound)


def _unflatten(static: tuple[bool, int | None], arrays: Iterable[Any]) -> Positions:
    values, placed, segments = arrays
    counted, bound = static
    return Positions(values, placed, segments, counted, bound)


# What is known without looking at arrays is static. By their numbers, as in a plain tuple, because
# `nnx.tabulate` cannot show a tree with named fields among the arguments of a module's method.
jax.tree_util.register_pytree_with_keys(Positions, _flatten, _unflatten)


def real_steps(mask: Array | None, segment_ids: Array | None) -> Array | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    if segment_ids is None:
        return mask
    return segment_ids > 0 if mask is None else mask & (segment_ids > 0)


def count_positions(real: Bool[Array, "batch length"], segment_ids: Array | None) -> Array:
    """Return the count of real steps before each step, per segment, and 0 for padded steps,
    (batch, length).
    """
    steps = real.astype(jnp.int32)
    before = steps.cumsum(axis=1) - steps
    if segment_ids is not None:
        starts = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        before = before - jax.lax.cummax(jnp.where(starts, before, 0), axis=1)
    return before * steps


def locate(
    x: Array,
    positions: Array | None,
    real: Array | None,
    segment_ids: Array | None,
) -> Positions:
    """Return where the steps of a call stand: at the given positions, else as counted.

    Args:
        x: (batch, length, ...) steps.
        positions: (length,) or (batch, length); counted when None.
        real: (batch, length) bool; None when all are real.
        segment_ids: (batch, length) of packed sequences.
    """
    length = x.shape[1]
    if positions is None:
        if real is None:
            return Positions(jnp.arange(length, dtype=jnp.int32), counted=True, bound=length)
        return Positions(count_positions(real, segment_ids), real, segment_ids, bound=length)
    if real is not None:
        # What padding holds never matters.
        values = positions if positions.ndim == 2 else positions[None]
        positions = jnp.where(real, values, jnp.zeros_like(values))
    return Positions(positions, real, segment_ids)


def as_positions(positions: Any) -> Positions:
    """Return positions given as an array, (length,) or (batch, length), as `Positions`."""
    return positions if isinstance(positions, Positions) else Positions(jnp.asarray(positions))


def offsets(queries: Positions, keys: Positions) -> Array:
    """Return key position minus query position, (queries, keys) or (batch, queries, keys)."""
    here, there = queries.values, keys.values
    if here.ndim != there.ndim:
        here, there = (item if item.ndim == 2 else item[None] for item in (here, there))
    return there[..., None, :] - here[..., :, None]


def zero_unplaced(x: Array, queries: Positions, keys: Positions) -> Array:
    """Return x (..., queries, keys), over heads, with 0 where either step has no position."""
    if queries.placed is None or keys.placed is None:
        return x
    pairs = queries.placed[..., :, None] & keys.placed[..., None, :]
    x = x if x.ndim == 4 else x[None]
    return jnp.where(pairs[:, None], x, jnp.zeros((), x.dtype))
