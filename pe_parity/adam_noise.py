"""How far each gradient stood above its own rounding, from the second moments of Adam.

Adam divides a gradient by its own size, so a gradient that is nothing but rounding, or so small
that epsilon and rounding decide, becomes a step of any size and sign. One such element among
thousands then outweighs all others. Correct implementations differ there; their steps are compared
without those elements (`pe_parity.budgets.above_noise`), and reports give their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Signals = dict[str, np.ndarray]


def signals(
    second_moments: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray] | None = None
) -> Signals:
    """Return the smallest root of the second moment of each element so far, over the average one.

    The average is that of its own parameter or of all, whichever is larger, as gradients are
    compared. Elements that never had a gradient are infinite: no step depends on them.

    Args:
        second_moments: of Adam, under the names of the parameters.
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
