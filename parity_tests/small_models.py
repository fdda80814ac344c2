"""The small models in three columns: the reference, torch and Flax."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import BACKENDS, CONFIGS, perturbed_arrays
from pe_core.model.config import Precision
from pe_parity import BUDGETS, distance
from pe_parity.reference import forward

COLUMNS = ("reference", *BACKENDS)
PRECISION: dict[str, Precision] = {"reference": "float64", "torch": "float32", "flax": "float32"}
WITHOUT_DROPOUT = [name for name, config in CONFIGS.items() if config.dropout == 0.0]

in_each_column = pytest.mark.parametrize("column", COLUMNS)
in_each_backend = pytest.mark.parametrize("label", BACKENDS)


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    return perturbed_arrays(CONFIGS[name])


@functools.cache
def model(label: str, name: str) -> Any:
    return BACKENDS[label].classifier(CONFIGS[name], weights(name))


def steps_and_logits(
    column: str, name: str, x: np.ndarray, **arguments: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the last layer gives for each step of x, and the logits."""
    config = CONFIGS[name]
    taps: dict[str, Any] = {}
    if column == "reference":
        logits = forward(config, weights(name), x, taps=taps, **arguments)
    else:
        logits = BACKENDS[column].call(model(column, name), x, taps=taps, **arguments)
    steps = taps["norm" if config.norm == "pre" else f"layers.{config.num_layers - 1}.output"]
    return steps[:, steps.shape[1] - x.shape[1] :], logits


def near(a: np.ndarray, b: np.ndarray, column: str, quantity: Any = "tap") -> bool:
    return distance(a, b, b) <= BUDGETS[quantity, PRECISION[column]].bound


def assert_near(found: Any, exact: Any, kind: Any = "tap", precision: Any = "float32") -> None:
    """Hold arrays of any framework against each other within the budget of a kind of quantity."""
    one, other = (
        np.asarray(item.detach().double() if hasattr(item, "detach") else item)
        for item in (found, exact)
    )
    assert distance(one, other, other) <= BUDGETS[kind, precision].bound
