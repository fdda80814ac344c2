"""The names in the state of an engine, and the check that a state is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from pe_core.errors import UserValueError, require_integer
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import check_arrays

WEIGHTS: Final = "param"
# The moments of Adam: the average of gradients and that of their squares.
FIRST: Final = "adam/m"
SECOND: Final = "adam/v"
COUNT: Final = "adam/count"
# optax counts steps in int32.
MAX_COUNT: Final = (1 << 31) - 1


def state_parts(
    config: ModelConfig, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Return a state's weights and moments, each by canonical name, and how many steps were taken.

    Other names, such as the metrics that a checkpoint holds too, are ignored.

    Raises:
        ValueError: missing, unexpected and misshapen names of one part, reported together, or a
            count that is not one.
    """
    parts = {}
    for part in (WEIGHTS, FIRST, SECOND):
        prefix = f"{part}/"
        parts[part] = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        check_arrays(parameters(config), parts[part], f"{part} of the state")
    if COUNT not in arrays:
        raise UserValueError(
            f"the state has no {COUNT}; set it to the number of steps that were taken"
        )
    require_integer(COUNT, np.asarray(arrays[COUNT]).item(), 0, MAX_COUNT)
    return parts, int(arrays[COUNT])
