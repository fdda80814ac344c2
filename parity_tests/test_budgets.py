"""The table of budgets: every bound lies between noise and fault, near the noise, and no other
tolerance stands anywhere in the tests.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pe_parity.budgets import BUDGETS, LOOSE, budget

TESTS = Path(__file__).parent
# Numbers from here up, such as a half, are no tolerances.
TOLERANCE = 0.02
CLOSE = (
    "allclose",
    "assert_allclose",
    "isclose",
    "approx",
    "testing.assert_close",
    "assert_array_almost_equal",
)


@pytest.mark.parametrize("key", BUDGETS, ids="-".join)
def test_a_bound_lies_between_noise_and_fault_and_near_the_noise(key: tuple[str, str]) -> None:
    entry = BUDGETS[key]  # type: ignore[index]
    assert 0.0 < entry.noise < entry.bound < entry.fault
    assert entry.bound <= LOOSE * entry.noise


def test_every_quantity_has_a_budget_in_every_precision() -> None:
    quantities = {"tap", "loss", "gradient", "moment", "update", "weights"}
    assert set(BUDGETS) >= {
        (kind, precision) for kind in quantities for precision in ("float32", "float64", "bfloat16")
    }


def test_what_is_exact_allows_nothing_and_a_gauge_everything() -> None:
    assert budget("exact/initial/input.weight", "float32").bound == 0.0
    assert budget("gauge/weights/layers.0.attention.qkv.bias", "float32").bound > max(
        entry.bound for entry in BUDGETS.values()
    )


def tolerances(source: str) -> list[str]:
    """The small numbers that a test compares with, and the calls that bring a tolerance of their
    own.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += (
                [f"line {node.lineno}: {name}"]
                if f".{name}".endswith(tuple(f".{close}" for close in CLOSE))
                else []
            )
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops
        ):
            for part in [
                item for side in (node.left, *node.comparators) for item in ast.walk(side)
            ]:
                if (
                    isinstance(part, ast.Constant)
                    and isinstance(part.value, float)
                    and 0.0 < part.value < TOLERANCE
                ):
                    found.append(f"line {node.lineno}: {part.value}")
    return found


def test_no_other_tolerance_stands_in_the_tests() -> None:
    found = [
        f"{file.name}, {where}"
        for file in sorted(TESTS.rglob("*.py"))
        for where in tolerances(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "assert error < 1e-3",
        "assert 1e-6 >= abs(a - b)",
        "assert a - b < 0.001 * b",
        "np.testing.assert_allclose(a, b)",
        "assert a == approx(b)",
    ],
)
def test_a_tolerance_is_found(source: str) -> None:
    assert tolerances(source)


def test_what_is_no_tolerance_is_left_alone() -> None:
    assert tolerances("assert accuracy > 0.97 and count < 3 and rate == 1e-3") == []
