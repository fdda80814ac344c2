"""What padded steps hold. They reach no result of a right model and ports differ in them, so traces
are compared without them; a model that reads them by mistake shows what its own hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

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


@dataclass(frozen=True)
class Padding:
    """What the padded steps of a port hold.

    Args:
        inputs: whether the padded inputs reach the first product; else they are zero.
        place: their position: their column, none but 0, or that of the last real step before.
        cleared: the taps, by their names within a layer, after which padded steps are zero.
        queries: the sum of the attention weights of a padded query, all alike, where the mask cuts
            queries too: 1 with a large negative logit, 0 with none; None where they see what
            others see.
    """

    inputs: bool = True
    place: Literal["column", "zero", "count"] = "column"
    cleared: tuple[str, ...] = ()
    queries: float | None = None

    def positions(self, real: np.ndarray) -> np.ndarray:
        """Return the positions of padded steps, (batch, length)."""
        if self.place == "column":
            return np.broadcast_to(np.arange(real.shape[1]), real.shape)
        if self.place == "zero":
            return np.zeros(real.shape, np.int64)
        return np.maximum(np.cumsum(real, axis=1) - 1, 0)


# The usual ones, the most usual first; None is what the reference has: no inputs, position 0, no
# offset to any step.
USUAL: Final = (
    Padding(),
    None,
    Padding(inputs=False),
    Padding(inputs=False, queries=1.0),
    Padding(cleared=("output",)),
)
RARE: Final = (
    Padding(place="zero"),
    Padding(place="count"),
    Padding(inputs=False, place="count"),
    Padding(inputs=False, place="zero"),
    Padding(cleared=("encoding",)),
    Padding(cleared=("encoding", "output")),
    Padding(cleared=("norm",)),
    Padding(queries=1.0),
    Padding(queries=0.0),
    Padding(inputs=False, queries=0.0),
)


@cache
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
        real = mask
        if array.shape[axis] > mask.shape[1]:
            # A trained step in front is always real.
            ahead = array.shape[axis] - mask.shape[1]
            real = np.pad(mask, ((0, 0), (ahead, 0)), constant_values=True)
        if real.shape[1] != array.shape[axis]:
            return array
        shape = [len(mask), *(1 for _ in array.shape[1:])]
        shape[axis] = real.shape[1]
        array = np.where(real.reshape(shape), array, 0)
    return array
