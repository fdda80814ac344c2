"""Batches of one shape in a reproducible order: each is a function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Num

from pe_core.data.sequences import Sequences, checked_indices
from pe_core.errors import UserValueError
from pe_core.model.random import ORDER, derive, permutation


@dataclass(frozen=True, eq=False)
class Batch:
    """`batch_size` examples; the filler rows of a short last batch have weight 0.

    Attributes:
        inputs: float32 (batch, length, num_features), or int32 (batch, length) for tokens; 0 in
            filler rows.
        labels: int32 (batch,); 0 in filler rows, and throughout where the sequences have no labels.
        weights: float32 (batch,); 1 for an example, 0 for a filler row.
        mask: bool (batch, length), True = real step, False throughout in filler rows; None where
            the sequences have no mask.
        positions: int64 or float64 (batch, length), 0 in filler rows; None where steps are counted.
    """

    inputs: Float32[np.ndarray, "batch length features"] | Int32[np.ndarray, "batch length"]
    labels: Int32[np.ndarray, " batch"]
    weights: Float32[np.ndarray, " batch"]
    mask: Bool[np.ndarray, "batch length"] | None
    positions: Num[np.ndarray, "batch length"] | None = None


def epoch_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """Return the order of the examples in an epoch, int64 (count,), from these three numbers alone.

    Raises:
        ValueError: the epoch is outside 0 .. 2**32 - 1.
    """
    if not 0 <= epoch < 1 << 32:
        raise UserValueError(f"epoch must lie in 0 .. 2**32 - 1, got {epoch}; count epochs from 0")
    return permutation(derive(seed, ORDER, epoch), count)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Count the batches of an epoch of `count` examples, including a short last one.

    Raises:
        ValueError: the batch size or the count is less than 1.
    """
    if batch_size < 1:
        raise UserValueError(
            f"batch_size must be at least 1, got {batch_size}; pass a positive integer"
        )
    if count < 1:
        raise UserValueError(f"count must be at least 1, got {count}; pass at least one example")
    return -(-count // batch_size)


def batch_at(
    sequences: Sequences, order: Integer[np.ndarray, " taken"], step: int, batch_size: int
) -> Batch:
    """Return batch `step` of the examples listed in `order`, padded to `batch_size` rows.

    Args:
        sequences: the examples.
        order: integers (taken,), indices of examples.
        step: the batch's number within the epoch, from 0.
        batch_size: the number of rows of every batch.

    Raises:
        TypeError: the order does not consist of integers.
        ValueError: the step is outside the epoch, or the order names an example that does not
            exist.
    """
    steps = steps_per_epoch(len(order), batch_size)
    if not 0 <= step < steps:
        raise UserValueError(
            f"step must lie in 0 .. {steps - 1}, got {step}; an epoch has {steps} steps of "
            f"{batch_size}"
        )
    rows = checked_indices(order[step * batch_size : (step + 1) * batch_size], sequences.count)

    def filled(array: np.ndarray) -> np.ndarray:
        batch = np.zeros((batch_size, *array.shape[1:]), array.dtype)
        batch[: len(rows)] = array[rows]
        return batch

    return Batch(
        inputs=filled(sequences.inputs),
        labels=np.zeros(batch_size, np.int32)
        if sequences.labels is None
        else filled(sequences.labels),
        weights=(np.arange(batch_size) < len(rows)).astype(np.float32),
        mask=None if sequences.mask is None else filled(sequences.mask),
        positions=None if sequences.positions is None else filled(sequences.positions),
    )


def batches(
    sequences: Sequences,
    batch_size: int,
    order: Integer[np.ndarray, " taken"] | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """Return the batches of one epoch from step `start` on.

    Args:
        sequences: the examples.
        batch_size: the number of rows of every batch; the last one is padded to it.
        order: integers (taken,), indices of examples; None = the order of the sequences.
        start: the number of the first batch.

    Raises:
        TypeError: the order does not consist of integers.
        ValueError: the batch size is less than 1, the start is outside the epoch, or the order
            names an example that does not exist.
    """
    taken = np.arange(sequences.count) if order is None else checked_indices(order, sequences.count)
    steps = steps_per_epoch(len(taken), batch_size)
    if not 0 <= start <= steps:
        raise UserValueError(
            f"start must lie in 0 .. {steps}, got {start}; an epoch has {steps} steps of "
            f"{batch_size}"
        )
    return (batch_at(sequences, taken, step, batch_size) for step in range(start, steps))
