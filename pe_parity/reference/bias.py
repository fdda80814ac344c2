"""Encodings that add a bias to the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from pe_core.encodings import T5Bias
from pe_parity.reference.kinds import Arrays, LogitBias


def t5_bucket(options: T5Bias, offset: np.ndarray) -> np.ndarray:
    """Return the bucket of an offset, key minus query.

    With h half of the buckets, e = floor(h / 2) and n = |offset|: n for n < e, else
    e + floor(log(n / e) / log(max_distance / e) (h - e)), at most h - 1; h more for offsets > 0.

    Source: Raffel et al. 2020, "Exploring the limits of transfer learning", section 2.1; the rule
    is that of the released code, `_relative_position_bucket` with bidirectional=True.
    Departs: a fractional distance is rounded down.
    """
    half = options.num_buckets // 2
    exact = half // 2
    # All that is farther has one bucket; int64 does not hold every difference of floating point.
    distance = np.floor(np.minimum(np.abs(offset), options.max_distance)).astype(np.int64)
    share = np.log(np.maximum(distance, exact) / exact) / np.log(options.max_distance / exact)
    # The logarithm of a distance at a boundary may round to just below the boundary.
    far = exact + np.floor(share * (half - exact) + 1e-9).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return bucket + half * (offset > 0)


class T5BiasFormula(LogitBias):
    """The bias of the bucket of an offset.

    Source: as `t5_bucket`.
    Departs: logits keep the scale 1/sqrt(d_head), which T5 folds into its initial law.
    """

    def of(self, options: Any, arrays: Arrays, offset: np.ndarray) -> np.ndarray:
        """Return the bias of each offset, (heads, *offset.shape)."""
        return arrays["table"][:, t5_bucket(options, offset)]
