"""Which steps are real, and where they stand; see `pe_core/model/positions.py`."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor


def real_steps(mask: Tensor | None, segment_ids: Tensor | None) -> Tensor | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    if segment_ids is None:
        return mask
    return segment_ids > 0 if mask is None else mask & (segment_ids > 0)


def count_positions(real: Bool[Tensor, "batch length"], segment_ids: Tensor | None) -> Tensor:
    """Return the count of real steps before each step, per segment, and 0 for padded steps, (batch,
    length).
    """
    before = real.cumsum(dim=1) - real.long()
    if segment_ids is not None:
        starts = segment_ids.diff(dim=1, prepend=segment_ids[:, :1]) != 0
        before = before - (before * starts).cummax(dim=1).values
    return before * real
