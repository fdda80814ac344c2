"""Which steps of Adam have a meaning: those of weights whose gradient stands above its own
rounding.

Adam divides a gradient by its own size, so a gradient that is nothing but rounding, or so small
that epsilon and rounding decide, becomes a step of any size and sign. One such element among
thousands then outweighs all others. Right implementations differ there; what they add is compared
without those elements, and how many these are is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pe_parity.budgets import budget

Signals = dict[str, np.ndarray]


def signals(
    second_moments: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray] | None = None
) -> Signals:
    """Return for each element the least that the root of its second moment has been, as a share of
    an average one.

    Average is that of its own weight or of all, whichever is larger, as gradients are compared.
    Where there never was a gradient, no step depends on it: infinite.

    Args:
        second_moments: of Adam, under the names of the weights.
        before: the signals of the steps before.
    """
    squares = {name: np.asarray(array, np.float64) for name, array in second_moments.items()}
    average = sum(float(array.sum()) for array in squares.values()) / max(
        sum(array.size for array in squares.values()), 1
    )
    found: Signals = {}
    for name, array in squares.items():
        size = math.sqrt(max(float(array.mean()), average))
        share = np.full(array.shape, np.inf)
        np.divide(np.sqrt(array), size, out=share, where=array > 0.0)
        found[name] = share if before is None else np.minimum(share, before[name])
    return found


def above_noise(signal: np.ndarray, precision: str) -> np.ndarray:
    """Return where the second moment always stood for a gradient larger than what its budget allows
    it to be off.

    Args:
        signal: of a weight.
        precision: of the runs that are compared.
    """
    return np.asarray(signal > budget("gradient/", precision).bound)
