"""Which steps are real and where they stand, found once per call and cut by query rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from pe_core.errors import UserTypeError
from pe_core.model.values import require_finite_position, require_segment_fits


def can_read(x: Any) -> bool:
    """Return whether the values of x, if any, may be looked at: not while JAX traces the call."""
    return not isinstance(x, jax.core.Tracer)


def can_look(x: Any) -> bool:
    """Return whether the values of an array may be looked at without waiting for a device."""
    if isinstance(x, np.ndarray):
        return True
    return can_read(x) and all(device.platform == "cpu" for device in x.devices())


class Rows(NamedTuple):
    """A block of query rows; where blocks run in a loop, the start is traced."""

    start: int | Array
    size: int

    def of(self, x: Any, axis: int) -> Any:
        """Return these rows of x along an axis."""
        if self.size == x.shape[axis]:
            return x
        if isinstance(x, np.ndarray) and isinstance(self.start, int):
            return x.take(range(self.start, self.start + self.size), axis)
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis)


class Positions(NamedTuple):
    """Where the steps of a call stand.

    Args:
        values: (length,) or (batch, length), integer or floating point; 0 where a step has none. Of
            NumPy, int64 or float64, where JAX holds no type that is as wide.
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
            (np if isinstance(item, np.ndarray) else jnp).pad(
                item, [(0, 0)] * (item.ndim - 1) + [(front, 0)]
            )
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


def real_steps(mask: Any, segment_ids: Array | None) -> Array | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    mask = None if mask is None else jnp.asarray(mask)
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


def first_positions(length: Any) -> Positions:
    """Return the positions 0, 1, 2, ...; of a symbolic length (`jax.export`) no bound is known."""
    known = isinstance(length, int)
    values = jnp.arange(length, dtype=jnp.int32)
    return Positions(values, counted=known, bound=length if known else None)


def locate(
    x: Array,
    positions: Any,
    real: Array | None,
    segment_ids: Array | None,
    *,
    by_table: bool = False,
) -> Positions:
    """Return where the steps of a call stand: at the given positions, else as counted.

    Args:
        x: (batch, length, ...) steps.
        positions: (length,) or (batch, length); counted when None.
        real: (batch, length) bool; None when all are real.
        segment_ids: (batch, length) of packed sequences.
        by_table: a learned table will read the positions; it says itself what is wrong with them.

    Raises:
        UserValueError: a real step stands nowhere; where values cannot be read, it gives NaN.
    """
    if positions is None:
        steps = first_positions(x.shape[1])
        if real is None:
            return steps
        counted = count_positions(real, segment_ids)
        return Positions(counted, real, segment_ids, bound=steps.bound)
    if real is None:
        return Positions(_held(positions, by_table), real, segment_ids)
    values = positions if positions.ndim == 2 else positions[None]
    values = _held(values, by_table, placed=real)
    if isinstance(values, np.ndarray) and can_read(real):
        # Only where JAX does not hold them: a mask on a GPU would be waited for.
        values = np.where(np.asarray(real), values, values.dtype.type(0))
        values = jnp.asarray(values) if _fits(values) else values
    if not isinstance(values, np.ndarray):
        # What padding holds never matters.
        values = jnp.where(real, values, jnp.zeros_like(values))
    return Positions(values, real, segment_ids)


def as_positions(positions: Any, *, by_table: bool = False) -> Positions:
    """Return positions given as an array, (length,) or (batch, length), as `Positions`; see
    `locate`.
    """
    if isinstance(positions, Positions):
        return positions
    return Positions(_held(positions, by_table))


def _held(positions: Any, by_table: bool, placed: Any = None) -> Any:
    """Return positions in an array of JAX where one holds them exactly, as int32, float32 or wider,
    else as they are in NumPy; each of them somewhere.

    Only what lies on the CPU is looked at: a look at a GPU would wait for it.
    """
    if isinstance(positions, jax.Array) and positions.dtype.kind == "u":
        wide = jnp.int64 if jax.config.read("jax_enable_x64") else jnp.int32
        if positions.dtype.itemsize < np.dtype(wide).itemsize:
            positions = positions.astype(wide)
        elif can_read(positions):
            positions = np.asarray(positions)
        else:
            raise UserTypeError(
                f"positions of {positions.dtype} do not fit the widest integers of JAX inside a "
                f"transform; convert them to {np.dtype(wide)}"
            )
    if isinstance(positions, jax.Array):
        floating = jnp.issubdtype(positions.dtype, jnp.floating)
        if positions.dtype.itemsize < 4:
            positions = positions.astype(jnp.float32 if floating else jnp.int32)
        if floating and not by_table and can_read(placed) and can_look(positions):
            _require_somewhere(np.asarray(positions), placed)
        return positions
    if not jnp.issubdtype(positions.dtype, jnp.floating):
        if can_read(placed):
            _require_somewhere(positions, placed)
        positions = positions.astype(np.int64)
    else:
        positions = positions.astype(np.float64 if positions.dtype.itemsize > 4 else np.float32)
        if can_read(placed) and not by_table:
            _require_somewhere(positions, placed)
    return jnp.asarray(positions) if _fits(positions) else positions


def _fits(positions: np.ndarray) -> bool:
    """Return whether the type that JAX makes of an array of NumPy holds the same numbers."""
    held = jax.dtypes.canonicalize_dtype(positions.dtype)
    if held == positions.dtype:
        return True
    with np.errstate(over="ignore"):
        return np.array_equal(positions.astype(held), positions, equal_nan=held.kind == "f")


def _require_somewhere(positions: np.ndarray, placed: Any) -> None:
    if positions.dtype.kind == "f":
        bad = ~(np.abs(positions) < 2.0**63)
    else:
        bad = positions > np.iinfo(np.int64).max
    if bad.any():
        bad = bad if placed is None else bad & np.asarray(placed)
        if bad.any():
            require_finite_position(np.broadcast_to(positions, bad.shape)[bad][0].item())


def as_segments(segment_ids: Any) -> Any:
    """Return the numbers of segments as integers of 32 bits or more.

    Raises:
        UserValueError: a number beyond int32.
    """
    if isinstance(segment_ids, np.ndarray):
        require_segment_fits(int(segment_ids.max()))
        # What is below int32 is padding, as every negative number.
        segment_ids = (
            np.maximum(segment_ids, -1).astype(np.int32)
            if (segment_ids.dtype.kind == "i")
            else segment_ids.astype(np.int32)
        )
        return jnp.asarray(segment_ids)
    if segment_ids is None or segment_ids.dtype in (jnp.int32, jnp.int64):
        return segment_ids
    return segment_ids.astype(jnp.int32)


def offsets(queries: Positions, keys: Positions) -> Any:
    """Return key position minus query position, (queries, keys) or (batch, queries, keys). What
    the integers cannot hold is as far as they can say. Of positions in NumPy, an array of JAX where
    one holds the offsets exactly, else int64 or float64 of NumPy.
    """
    here, there = queries.values, keys.values
    if here.ndim != there.ndim:
        here, there = (item if item.ndim == 2 else item[None] for item in (here, there))
    of: Any = np if isinstance(here, np.ndarray) and isinstance(there, np.ndarray) else jnp
    if isinstance(here, np.ndarray) != isinstance(there, np.ndarray):
        # Only one fits into a type of JAX; in NumPy both have one of 64 bits.
        if not (can_read(here) and can_read(there)):
            raise UserTypeError(
                "positions of queries or keys need 64 bits, which JAX has not for the others, that "
                "are traced; pass both as NumPy arrays, or set jax_enable_x64"
            )
        wide = np.result_type(here.dtype, there.dtype, np.int64)
        here, there, of = np.asarray(here, wide), np.asarray(there, wide), np
    here, there = here[..., :, None], there[..., None, :]
    found = there - here
    known = queries.bound is not None and keys.bound is not None
    if not known and found.dtype.kind == "i":
        furthest = found.dtype.type(np.iinfo(found.dtype).max)
        # Two numbers of unlike signs whose difference has not the sign of the first.
        wrapped = ((there ^ here) & (there ^ found)) < 0
        far = of.where(there < 0, -furthest, furthest)
        found = of.where(wrapped, far, of.maximum(found, -furthest))
    if of is np and _fits(found):
        return jnp.asarray(found)
    return found


def zero_unplaced(x: Array, queries: Positions, keys: Positions) -> Array:
    """Return x (..., queries, keys), over heads, with 0 where either step has no position."""
    if queries.placed is None or keys.placed is None:
        return x
    pairs = queries.placed[..., :, None] & keys.placed[..., None, :]
    x = x if x.ndim == 4 else x[None]
    return jnp.where(pairs[:, None], x, jnp.zeros((), x.dtype))
