"""Which steps are real and where they stand, found once per call and cut by query rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional

from pe_core.model.values import require_finite_position, require_segment_fits
from pe_torch.layout import as_int64


def can_read(x: Tensor) -> bool:
    """Return whether the values of x may be looked at: not while torch compiles, exports, traces or
    transforms the call, and not where a tensor has no values, on the meta device or fake.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or x.is_meta
        or isinstance(x, FakeTensor)
        # Levels of torch.func, such as vmap and grad, and modes such as those of make_fx.
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or torch._is_functional_tensor(x)
        or get_proxy_mode() is not None
        or is_captured(x)
    )


def can_look(x: Tensor) -> bool:
    """Return whether the values of x may be looked at without waiting for a device."""
    return x.device.type == "cpu" and can_read(x)


def is_captured(x: Tensor) -> bool:
    """Return whether a CUDA graph records the call, during which the host cannot wait."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class Rows(NamedTuple):
    """A block of query rows."""

    start: int
    size: int

    def of(self, x: Tensor, axis: int) -> Tensor:
        """Return these rows of x along an axis."""
        return x.narrow(axis, self.start, self.size)


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

    values: Tensor
    placed: Tensor | None = None
    segments: Tensor | None = None
    counted: bool = False
    bound: int | None = None

    def rows(self, rows: Rows) -> Positions:
        """Return the positions of a block of query rows."""
        placed, segments = (
            None if item is None else rows.of(item, -1) for item in (self.placed, self.segments)
        )
        return Positions(rows.of(self.values, -1), placed, segments, bound=self.bound)

    def behind(self, front: int) -> Positions:
        """Return the positions with so many steps in front, which have none."""
        placed = self.placed
        if placed is None:
            placed = torch.ones(
                1, self.values.shape[-1], dtype=torch.bool, device=self.values.device
            )
        values, placed = (functional.pad(item, (front, 0)) for item in (self.values, placed))
        return self._replace(values=values, placed=placed)

    def restore(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the new steps (batch, length, width), the old ones where there is no position."""
        return new if self.placed is None else torch.where(self.placed[..., None], new, old)


def real_steps(mask: Tensor | None, segment_ids: Tensor | None) -> Tensor | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    if segment_ids is None:
        return mask
    return segment_ids > 0 if mask is None else mask & (segment_ids > 0)


def count_positions(real: Bool[Tensor, "batch length"], segment_ids: Tensor | None) -> Tensor:
    """Return the count of real steps before each step, per segment, and 0 for padded steps,
    (batch, length).
    """
    before = real.cumsum(dim=1) - real.long()
    if segment_ids is not None:
        starts = segment_ids.diff(dim=1, prepend=segment_ids[:, :1]) != 0
        before = before - (before * starts).cummax(dim=1).values
    return before * real


def first_positions(length: int, device: torch.device) -> Positions:
    """Return the positions 0, 1, 2, ..."""
    return Positions(torch.arange(length, device=device), counted=True, bound=length)


def locate(
    x: Tensor,
    positions: Tensor | None,
    real: Tensor | None,
    segment_ids: Tensor | None,
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
        length = x.shape[1]
        if real is None:
            return first_positions(length, x.device)
        return Positions(count_positions(real, segment_ids), real, segment_ids, bound=length)
    if real is not None:
        # What padding holds never matters.
        positions = torch.where(real, positions, torch.zeros_like(positions))
    return Positions(_held(positions, by_table), real, segment_ids)


def as_positions(positions: Tensor | Positions, *, by_table: bool = False) -> Positions:
    """Return positions given as an array, (length,) or (batch, length), as `Positions`; see
    `locate`.
    """
    if isinstance(positions, Positions):
        return positions
    return Positions(_held(positions, by_table))


def _held(positions: Tensor, by_table: bool) -> Tensor:
    """Return integers as int64 and floating point as float32 or wider, each of them somewhere."""
    look = can_look(positions)
    if positions.dtype.is_floating_point:
        if look and not by_table:
            bad = positions[~(positions.abs() < 2.0**63)]
            if len(bad):
                require_finite_position(bad[0].item())
        short = positions.dtype.itemsize < 4
        return positions.float() if short else positions
    held = as_int64(positions)
    if look and positions.dtype == torch.uint64 and (held < 0).any():
        require_finite_position(held[held < 0][0].item() + (1 << 64))
    return held


def as_segments(segment_ids: Tensor | None) -> Tensor | None:
    """Return the numbers of segments as int64.

    Raises:
        UserValueError: a number beyond int32, which Flax has not.
    """
    if segment_ids is None:
        return None
    held = as_int64(segment_ids)
    if can_look(held):
        require_segment_fits(int(held.max()))
    return held


def offsets(queries: Positions, keys: Positions) -> Tensor:
    """Return key position minus query position, (queries, keys) or (batch, queries, keys). What
    int64 cannot hold is as far as int64 can say.
    """
    here, there = queries.values[..., :, None], keys.values[..., None, :]
    found = there - here
    known = queries.bound is not None and keys.bound is not None
    if known or found.dtype.is_floating_point:
        return found
    furthest = torch.iinfo(found.dtype).max
    # Two numbers of unlike signs whose difference has not the sign of the first.
    wrapped = ((there ^ here) & (there ^ found)) < 0
    return torch.where(
        wrapped, torch.where(there < 0, -furthest, furthest), found.clamp(min=-furthest)
    )


def zero_unplaced(x: Tensor, queries: Positions, keys: Positions) -> Tensor:
    """Return x (..., queries, keys), over heads, with 0 where either step has no position."""
    if queries.placed is None or keys.placed is None:
        return x
    pairs = queries.placed[..., :, None] & keys.placed[..., None, :]
    return torch.where(pairs[..., None, :, :], x, 0.0)
