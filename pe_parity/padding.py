"""Clear padded steps in traces: their values reach no result, and ports may differ in them."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from pe_parity.trace import Trace

# The axes of each tap that run along the steps. Attention weights keep their keys: a weight on a
# padded step is a fault.
STEP_AXES: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("input", "encoding", "norm1", "norm2", "norm", "output"), (1,)),
    **dict.fromkeys(("attention.output", "feed_forward.hidden", "feed_forward.output"), (1,)),
    **dict.fromkeys(
        (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.weights",
            "attention.mixed",
        ),
        (2,),
    ),
    "attention.logits": (2, 3),
}


def part(name: str) -> str:
    """Return the name of a tap, or of a weight, within its layer."""
    return re.sub(r"^layers\.\d+\.", "", name)


def without_padding(trace: Trace, mask: np.ndarray | None) -> Trace:
    """Return a trace with zeros at the padded steps of every tap whose shape is the model's."""
    return (
        trace
        if mask is None
        else {name: _cleared(name, array, mask) for name, array in trace.items()}
    )


def _cleared(name: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    for axis in STEP_AXES.get(part(name), ()):
        if array.ndim <= axis or len(array) != len(mask):
            return array
        # A trained step in front is always real.
        real = np.pad(
            mask, ((0, 0), (max(0, array.shape[axis] - mask.shape[1]), 0)), constant_values=True
        )
        if real.shape[1] != array.shape[axis]:
            return array
        shape = [len(mask), *(1 for _ in array.shape[1:])]
        shape[axis] = real.shape[1]
        array = np.where(real.reshape(shape), array, 0)
    return array
