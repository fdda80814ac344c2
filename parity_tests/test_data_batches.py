"""Each example comes exactly once an epoch, in batches of one shape, each a function of (seed,
epoch, step).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.refusals import each_refusal, refused
from pe_core.data import Sequences, batch_at, batches, epoch_order, steps_per_epoch
from pe_core.model.random import ORDER, derive, permutation


def numbered(count: int, *, masked: bool = True, labelled: bool = True) -> Sequences:
    """Examples whose inputs are their own number, from 1."""
    inputs = np.broadcast_to(np.arange(1.0, count + 1)[:, None, None], (count, 3, 2))
    mask = np.arange(3) < 1 + np.arange(count)[:, None] % 3 if masked else None
    labels = np.arange(count) % 2 if labelled else None
    return Sequences(inputs, labels, mask, ("a", "b"))


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
)
def test_each_example_comes_exactly_once(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    data, order = numbered(count), epoch_order(seed, epoch, count)
    epoch_batches = list(batches(data, batch_size, order))
    assert len(epoch_batches) == steps_per_epoch(count, batch_size)
    seen = []
    for batch in epoch_batches:
        assert batch.mask is not None
        assert batch.inputs.shape == (batch_size, 3, 2)
        arrays = (batch.inputs, batch.labels, batch.weights, batch.mask)
        assert [array.dtype.name for array in arrays] == ["float32", "int32", "float32", "bool"]
        real = batch.weights == 1.0
        assert not any(array[~real].any() for array in arrays)
        numbers = batch.inputs[real, 0, 0].astype(int) - 1
        assert np.array_equal(batch.labels[real], numbers % 2)
        assert np.array_equal(batch.mask[real].sum(axis=1), 1 + numbers % 3)
        seen.extend(numbers.tolist())
    assert seen == order.tolist()
    assert sorted(seen) == list(range(count))
    assert all((batch.weights == 1.0).all() for batch in epoch_batches[:-1])


@given(count=st.integers(1, 20), batch_size=st.integers(1, 8), start=st.integers(0, 20))
def test_resuming_goes_on_with_the_same_batches(count: int, batch_size: int, start: int) -> None:
    data, order = numbered(count), epoch_order(5, 2, count)
    start = min(start, steps_per_epoch(count, batch_size))
    whole = list(batches(data, batch_size, order))
    resumed = list(batches(data, batch_size, order, start))
    assert len(resumed) == len(whole) - start
    for step, batch in enumerate(resumed, start):
        for other in (whole[step], batch_at(data, order, step, batch_size)):
            assert np.array_equal(batch.inputs, other.inputs)
            assert np.array_equal(batch.labels, other.labels)
            assert np.array_equal(batch.weights, other.weights)


def test_without_an_order_mask_or_labels() -> None:
    first, second = batches(numbered(3, masked=False, labelled=False), 2)
    assert first.inputs[:, 0, 0].tolist() == [1.0, 2.0]
    assert second.inputs[:, 0, 0].tolist() == [3.0, 0.0]
    assert (first.mask, second.mask) == (None, None)
    assert second.labels.tolist() == [0, 0]
    assert second.labels.dtype == np.int32
    tokens = next(batches(Sequences(np.array([[4, 5]])), 2))
    assert (tokens.inputs.dtype.name, tokens.inputs.tolist()) == ("int32", [[4, 5], [0, 0]])


def test_a_batch_may_be_written_to() -> None:
    data = numbered(2)
    next(batches(data, 2)).inputs[:] = 7.0
    assert data.inputs[0, 0, 0] == 1.0


def test_an_order_may_be_a_share() -> None:
    share = epoch_order(0, 0, 10)[1::2]
    taken = batches(numbered(10), 2, share)
    seen = np.concatenate([batch.inputs[batch.weights > 0, 0, 0] for batch in taken])
    assert (seen - 1).tolist() == share.tolist()


def test_the_order_of_an_epoch_is_pinned() -> None:
    assert np.array_equal(epoch_order(9, 4, 100), permutation(derive(9, ORDER, 4), 100))
    assert epoch_order(0, 0, 10).tolist() == [6, 1, 2, 9, 5, 0, 8, 4, 7, 3]
    assert epoch_order(0, 1, 10).tolist() == [5, 6, 1, 9, 4, 2, 8, 7, 3, 0]


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(1, 1, 1), (10, 5, 2), (11, 5, 3), (3, 100, 1)]
)
def test_steps_per_epoch(count: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(count, batch_size) == steps


DATA, ROWS = numbered(5), np.arange(5)


@each_refusal(
    {
        ValueError: {
            "batch_size must be at least 1, got 0; pass a positive": partial(steps_per_epoch, 5, 0),
            "batch_size must be at least 1, got -2": partial(batches, DATA, -2),
            "count must be at least 1, got 0": partial(steps_per_epoch, 0, 5),
            "step must lie in 0 .. 2, got 3; an epoch has 3 steps of 2": partial(
                batch_at, DATA, ROWS, 3, 2
            ),
            "step must lie in 0 .. 2, got -1": partial(batch_at, DATA, ROWS, -1, 2),
            "start must lie in 0 .. 3, got 4; an epoch has 3 steps of 2": partial(
                batches, DATA, 2, ROWS, 4
            ),
            "index 5 is outside 0 .. 4; pass indices of existing": partial(
                batches, DATA, 2, np.arange(6)
            ),
            "epoch must lie in 0 .. 2**32 - 1, got -1; count": partial(epoch_order, 0, -1, 5),
        },
        TypeError: {"indices must be integers": partial(batches, DATA, 2, np.array([0.0]))},
    }
)
def test_refusals(kind: type[Exception], words: str, what: Callable[[], object]) -> None:
    with refused(kind, words):
        what()
