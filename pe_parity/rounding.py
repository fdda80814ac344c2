"""Round to bfloat16 and TF32, which NumPy does not have."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from pe_parity.perturbed_reference import Change

# Significant bits, the hidden one included.
BFLOAT16: Final = 8
TF32: Final = 11


def rounded(x: np.ndarray, bits: int, *, down: bool = False) -> np.ndarray:
    """Round numbers to the nearest with so many significant bits, ties to even.

    Args:
        x: the numbers.
        bits: number of significant bits.
        down: truncate instead, as a GPU does whose operands were not converted.
    """
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    scaled = np.ldexp(mantissa, bits)
    return np.asarray(np.ldexp(np.trunc(scaled) if down else np.rint(scaled), exponent - bits))


# float16 has the digits of TF32 and differs in its range alone.
FORMATS: Final[dict[str, Change]] = {
    "bfloat16": partial(rounded, bits=BFLOAT16),
    "TF32 or float16": partial(rounded, bits=TF32),
    "TF32, cut off": partial(rounded, bits=TF32, down=True),
    "bfloat16, cut off": partial(rounded, bits=BFLOAT16, down=True),
}
