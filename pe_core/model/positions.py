"""Positions of steps in NumPy: from an explicit array, from segments, from a mask, or simply
counted.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Integer, Num


def real_steps(
    mask: Bool[np.ndarray, "batch length"] | None,
    segment_ids: Integer[np.ndarray, "batch length"] | None,
) -> Bool[np.ndarray, "batch length"] | None:
    """Return which steps are real: those of the mask that also lie in a segment; None when every
    step is.
    """
    if segment_ids is None:
        return mask
    return segment_ids > 0 if mask is None else mask & (segment_ids > 0)


def resolve_positions(
    length: int,
    positions: Num[np.ndarray, "..."] | None = None,
    mask: Bool[np.ndarray, "batch length"] | None = None,
    segment_ids: Integer[np.ndarray, "batch length"] | None = None,
) -> Num[np.ndarray, "..."]:
    """Return the positions, (length,) or (batch, length): the given ones, else the count of real
    steps before, per segment.

    A segment is a run of equal numbers; 0 is padding. Padded steps get position 0.
    """
    if positions is not None:
        return positions
    real = real_steps(mask, segment_ids)
    if real is None:
        return np.arange(length)
    before = np.cumsum(real, axis=1) - real
    if segment_ids is not None:
        starts = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
        before = before - np.maximum.accumulate(np.where(starts, before, 0), axis=1)
    return np.where(real, before, 0)


def mask_from_lengths(
    lengths: Int[np.ndarray, " batch"], length: int
) -> Bool[np.ndarray, "batch length"]:
    """Return the mask of right-padded sequences, True for real steps."""
    return np.arange(length) < np.asarray(lengths)[:, None]
