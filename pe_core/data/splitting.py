"""How examples are divided into a held-out part and the rest: by class, as a function of the seed
and the labels.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64, Integer

from pe_core.errors import UserValueError
from pe_core.model.random import SPLIT, derive, permutation


def check_fraction(validation_fraction: float) -> None:
    """Refuse a validation fraction outside [0, 1); 0 holds nothing out."""
    if not 0.0 <= validation_fraction < 1.0:
        raise UserValueError(
            f"validation_fraction must lie between 0 and 1, got {validation_fraction}; for "
            "example 0.2, or 0 to hold nothing out"
        )


def part_count(fraction: float, count: int, what: str) -> int:
    """Return how many of `count` examples a part takes: `fraction` of them, rounded, but at least
    one and not all; none where the fraction is 0.

    Raises:
        ValueError: there are fewer than two examples.
    """
    if fraction == 0.0:
        return 0
    if count < 2:
        raise UserValueError(
            f"{what} has {count} example; a training and a validation part need at least 2; add "
            "examples"
        )
    return min(max(math.floor(fraction * count + 0.5), 1), count - 1)


def split_order(seed: int, count: int) -> Int64[np.ndarray, " count"]:
    """Return the order in which examples are dealt to the parts, int64 (count,)."""
    return permutation(derive(seed, SPLIT), count)


def split_by_class(
    order: Int64[np.ndarray, " count"],
    labels: Integer[np.ndarray, " examples"],
    fraction: float,
    what: str,
) -> tuple[Int64[np.ndarray, " held_out"], Int64[np.ndarray, " rest"]]:
    """Divide examples into a held-out part and the rest, each with its share of every class.

    Shares are rounded by largest remainders. Every class keeps an example in the rest; every class
    of two or more has one in the held-out part as well, if there are as many places as such
    classes. Nothing is held out where the fraction is 0.

    Args:
        order: int64 (count,), the examples in the order in which they are dealt; both parts keep
            it.
        labels: integers (examples,), the class of each example.
        fraction: the share that is held out.
        what: the name of the data, for messages.

    Raises:
        ValueError: no class has two examples.
    """
    if fraction == 0.0:
        return order[:0], order
    classes, first, dealt = np.unique(labels[order], return_index=True, return_inverse=True)
    sizes = np.bincount(dealt)
    places = min(part_count(fraction, len(order), what), len(order) - len(classes))
    if not places:
        raise UserValueError(
            f"{what}: no class has two examples, one to train and one to validate; add examples"
        )
    # Equal remainders go to the class that was dealt first, so that the seed decides.
    counts = _shares(places, sizes, np.argsort(first))
    by_class = np.argsort(dealt, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = rank < counts[dealt]
    return order[held_out], order[~held_out]


def _shares(
    places: int, sizes: Int64[np.ndarray, " classes"], priority: Int64[np.ndarray, " classes"]
) -> Int64[np.ndarray, " classes"]:
    """Return how many places each class gets: its exact share, rounded, within what it has."""
    total, most = int(sizes.sum()), sizes - 1
    least = np.minimum(most, 1)
    if least.sum() > places:
        least = np.zeros_like(sizes)
    counts = np.clip(places * sizes // total, least, most)
    while (missing := places - int(counts.sum())) != 0:
        # In units of 1 / total, so that equal shares are equal.
        owed = np.sign(missing) * (places * sizes - counts * total)
        free = counts < most if missing > 0 else counts > least
        chosen = max(priority[free[priority]], key=lambda one: owed[one])
        counts[chosen] += np.sign(missing)
    return counts
