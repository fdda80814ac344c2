"""How far from its mean a number may lie that is called chance."""

from statistics import NormalDist
from typing import Any

import numpy as np

# How often a check of perfect random numbers may fail, had its keys been chosen by chance: one in a
# million.
FALSE_ALARM = 1e-6


def farthest(comparisons: int) -> float:
    """Return how far from zero, in standard deviations, the farthest of so many scores may lie: by
    Bonferroni's inequality.
    """
    return NormalDist().inv_cdf(1.0 - FALSE_ALARM / (2 * comparisons))


def verdict(scores: list[Any]) -> float:
    """Return the farthest score over what is allowed; above 1 is not chance."""
    values = np.abs(np.concatenate([np.ravel(score) for score in scores]))
    return float(values.max() / farthest(values.size))
