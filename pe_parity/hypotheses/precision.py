"""Products in shorter formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pe_parity.hypotheses.hypothesis import Hypothesis, Places, edit
from pe_parity.perturbed_reference import Change, Edit
from pe_parity.rounding import FORMATS


def precisions(at: Places) -> Iterator[Hypothesis]:
    """Yield dense products with operands in each shorter format."""
    for label, change in FORMATS.items():
        product = Edit("", partial(_rounded, change), step="linear")
        text = f"dense products take their operands in {label}"
        yield replace(edit(text, product), followed=False)


def _rounded(change: Change, run: Any, usual: Any, name: str, x: np.ndarray) -> Any:
    product = change(x) @ change(run.arrays[f"{name}.weight"]).T
    return product + run.arrays.get(f"{name}.bias", 0.0)
