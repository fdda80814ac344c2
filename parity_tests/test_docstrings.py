"""Every public class of a backend has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest

import pe_flax
import pe_torch
from parity_tests.cases import BACKENDS

PUBLIC = [getattr(package, name) for package in (pe_torch, pe_flax) for name in package.__all__]
# Options and configs are pe_core's.
LAYERS = [
    one for one in PUBLIC if inspect.isclass(one) and not one.__module__.startswith("pe_core")
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_the_example_runs(layer: Any) -> None:
    found = doctest.DocTestFinder(recurse=False).find(layer, layer.__name__, globs={})
    assert found[0].examples
    assert doctest.DocTestRunner().run(found[0]).failed == 0


def test_both_backends_are_looked_at() -> None:
    assert {one.__module__.split(".")[0] for one in LAYERS} == {f"pe_{name}" for name in BACKENDS}
