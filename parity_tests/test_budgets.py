"""The rules of equality: every bound lies between noise and fault, near the noise, and no tolerance
stands in a test.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pe_parity.budgets import BUDGETS, LOOSE, RULES, budget

TESTS = Path(__file__).parent
PRECISIONS = ("float32", "float64", "bfloat16")
# Numbers from here up, such as a half, are no tolerances.
LARGE = 1 / 50
# Functions and arguments that bring a tolerance of their own.
CLOSE = {"allclose", "isclose", "approx", "assert_allclose", "assert_close"}
CLOSE |= {"assert_almost_equal", "assert_array_almost_equal"}
WITHIN = {"rtol", "atol", "abs", "rel", "rel_tol", "abs_tol", "tolerance"}
# Options of an optimizer that its gradients are compared with.
OPTIONS = {"CLIP", "EPS"}
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


@pytest.mark.parametrize("key", BUDGETS, ids="-".join)
def test_a_bound_lies_between_noise_and_fault_and_near_the_noise(key: tuple[str, str]) -> None:
    entry = BUDGETS[key]  # type: ignore[index]
    assert 0.0 < entry.noise < entry.bound < entry.fault
    assert entry.bound <= LOOSE * entry.noise


def test_every_quantity_has_a_budget_in_every_precision() -> None:
    # No stock optimizer runs in bfloat16 to compare ours with.
    missing = {key for kind in RULES for key in [(kind, one) for one in PRECISIONS]} - set(BUDGETS)
    judged = {key for key in missing if key[0] not in ("gauge", "exact")}
    assert judged == {("adam", "bfloat16")}
    assert budget("exact/initial/input.weight", "float32").bound == 0.0
    assert budget("gauge/weights/layers.0.attention.qkv.bias", "float32").bound == np.inf


def number(node: ast.AST, names: dict[str, float]) -> float | None:
    """The value of an expression of numbers, machine epsilons and constants of the tests."""
    match node:
        case ast.Constant(value=float() | int() as value):
            return value
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(attr="eps"):
            return float(np.finfo(np.float32).eps)
        case ast.Call(func=ast.Name(id="float"), args=[inner]):
            return number(inner, names)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            positive = number(inner, names)
            return None if positive is None else -positive
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            a, b = number(left, names), number(right, names)
            if a is not None and b is not None:
                with suppress(ArithmeticError):
                    return float(ARITHMETIC[type(op)](a, b))
    return None


def constants(source: str, names: dict[str, float]) -> dict[str, float]:
    """The names that a test module gives to numbers."""
    found: dict[str, float] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, expression in pairs:
                value = number(expression, names | found)
                if isinstance(name, ast.Name) and name.id.isupper() and value is not None:
                    found[name.id] = value
    return {name: value for name, value in found.items() if name not in OPTIONS}


def tolerances(source: str, shared: dict[str, float] | None = None) -> Iterator[str]:
    """The small numbers that a test compares with, by value or by name, and the calls that bring a
    tolerance of their own.
    """
    names = (shared or {}) | constants(source, shared or {})
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func).rpartition(".")[2]
            given = WITHIN & {keyword.arg for keyword in node.keywords}
            if function in CLOSE or given:
                yield f"line {node.lineno}: {function} {' '.join(sorted(given))}"
        if isinstance(node, ast.Compare) and any(isinstance(op, ORDERED) for op in node.ops):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            for part in parts:
                value = number(part, names)
                if isinstance(value, float) and 0.0 < value < LARGE:
                    yield f"line {node.lineno}: {ast.unparse(part)}"
                    break


def test_no_tolerance_stands_in_a_test() -> None:
    sources = {file: file.read_text(encoding="utf-8") for file in sorted(TESTS.rglob("*.py"))}
    shared: dict[str, float] = {}
    for source in sources.values():
        shared |= constants(source, {})
    found = [
        f"{file.name}, {where}"
        for file, source in sources.items()
        for where in tolerances(source, shared)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "assert error < 1e-3",
        "assert 1e-6 >= abs(a - b)",
        "assert a - b < 0.001 * b",
        "TOLERANCE = 1e-6\nassert error < TOLERANCE",
        "STEP, NEAR = 3, 2 * 10**-6.0\nassert error < NEAR * size",
        "SMALL = 30 * np.finfo(np.float32).eps\nassert error <= SMALL",
        "assert near(a, b, rtol=CLOSE_ENOUGH)",
        "np.testing.assert_allclose(a, b)",
        "assert a == approx(b)",
    ],
)
def test_a_tolerance_is_found(source: str) -> None:
    assert list(tolerances(source))


def test_what_is_no_tolerance_is_left_alone() -> None:
    source = "RATE = 1e-3\nassert accuracy > 0.97 and count < 3 and rate == RATE"
    assert list(tolerances(source)) == []
