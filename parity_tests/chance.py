"""Judge the scores of random numbers by `pe_parity.budgets.farthest`."""

from typing import Any

import numpy as np

from pe_parity.budgets import farthest


def verdict(scores: list[Any]) -> float:
    """Return the farthest score over what is allowed; above 1 is not chance."""
    values = np.abs(np.concatenate([np.ravel(score) for score in scores]))
    return float(values.max() / farthest(values.size))
