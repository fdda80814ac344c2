"""Steps of Adam that are rounding: which elements a comparison leaves out, that it counts them, and
that it leaves out no others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_tests.cases import ENGINES
from pe_parity import BUDGETS, Comparison, Row, Trace, compare, moved_arrays
from pe_parity.adam_noise import signals
from pe_parity.budgets import LEFT_OUT, above_noise
from pe_parity.calibrate import STEPS, random_case, run_case
from pe_parity.report import failure_line, to_json, to_lines

# Random models of the calibration in which single gradients are near Adam's epsilon, or a unit of
# GELU is nearly dead.
NEAR_EPSILON = (31, 97, 128)


def test_a_signal_is_a_share_of_an_average_gradient() -> None:
    found = signals({"large": np.array([64.0, 16.0]), "small": np.array([4.0, 0.0, 12.0, 0.0])})
    # Of its own for the large one, 40 on average; of all for the small one, 16.
    assert np.array_equal(found["large"], np.array([8.0, 4.0]) / np.sqrt(40.0))
    assert np.array_equal(found["small"], [2.0 / 4.0, np.inf, np.sqrt(12.0) / 4.0, np.inf])


def test_a_signal_is_the_least_of_all_steps() -> None:
    first = signals({"one": np.array([4.0, 1.0, 0.0])})
    both = signals({"one": np.array([4.0, 9.0, 1.0])}, first)
    later = signals({"one": np.array([4.0, 9.0, 1.0])})
    assert np.array_equal(both["one"], np.minimum(first["one"], later["one"]))
    assert np.isfinite(both["one"]).all()


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_the_bound_of_gradients_divides_noise_from_signal(precision: str) -> None:
    bound = BUDGETS["gradient", precision].bound
    assert np.array_equal(
        above_noise(np.array([0.9 * bound, 1.1 * bound, np.inf]), precision), [False, True, True]
    )


def planted(place: int, *, signal: bool = True) -> Comparison:
    """An update of which one element has the wrong sign; the second has hardly a gradient."""
    right: Trace = {"update/one": np.array([1.0, 1.0, -1.0, 1.0])}
    wrong = {"update/one": right["update/one"].copy()}
    wrong["update/one"][place] *= -1.0
    if signal:
        right["signal/update/one"] = np.array([1.0, 1e-9, 0.5, 0.1])
    return compare(right, {"torch": wrong}, "float32")


def test_an_element_without_a_meaning_is_left_out_and_counted() -> None:
    (row,) = planted(1).rows
    assert row.passed
    assert row.worst == 0.0
    assert (row.size, row.left_out) == (4, 1)
    assert to_lines(planted(1))[-1] == "left out for a gradient below its bound: 1 of 4 in one step"
    assert to_json(planted(1))["rows"][0]["left_out"] == 1


def test_the_length_of_a_run_is_named_where_only_its_end_leaves_the_budget() -> None:
    row = Row("weights/one", {"torch": 0.3}, 0.3, 0.1)
    assert "fewer --steps" in failure_line(row)
    assert "fewer --steps" not in failure_line(replace(row, name="update/one"))


def test_everything_else_is_compared() -> None:
    for place in (0, 2, 3):
        (row,) = planted(place).rows
        assert not row.passed
        assert row.worst == 2.0 / np.sqrt(3.0)
    (row,) = planted(1, signal=False).rows
    assert (row.passed, row.left_out) == (False, 0)
    right = {"update/one": np.ones(4), "signal/update/one": np.array([1.0, 1e-9, 0.5, 0.1])}
    (row,) = compare(right, {"torch": {"update/one": np.ones(3)}}, "float32").rows
    assert row.worst == np.inf


def test_what_leaves_the_budget_of_models_near_epsilon_is_what_is_left_out() -> None:
    beyond = 0
    for number in NEAR_EPSILON:
        case = random_case(number, STEPS)
        exact, found = (
            run_case({"torch": ENGINES["torch"]}, case, precision)
            for precision in ("float64", "float32")
        )
        moved = moved_arrays(exact["torch"], case.arrays)
        comparison = compare(exact["torch"], found, "float32", moved=moved)
        assert comparison.first_failure is None
        trained = [row for row in comparison.rows if row.name.startswith(("update/", "weights/"))]
        # In a dead unit every element is without a gradient; elsewhere it is one or two.
        left_out = sum(row.left_out for row in trained)
        assert 0 < left_out < LEFT_OUT * sum(row.size for row in trained)
        whole = {name: exact["torch"][name] for name in exact["torch"] if "signal/" not in name}
        beyond += compare(whole, found, "float32", moved=moved).first_failure is not None
    assert beyond
