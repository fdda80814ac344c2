"""Every planted fault is caught, and caught where it was planted; without one, nothing is."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import CONFIGS, ENGINES, perturbed_arrays, small_batch
from parity_tests.evidence import write_section
from parity_tests.faults import FAULTS, Fault
from parity_tests.faults.fault import BOTH
from pe_core import ComputeConfig, TrainConfig
from pe_core.model.config import PRECISIONS, Precision
from pe_core.training.engine import Engine
from pe_core.training.run_directory import state_shapes
from pe_parity import BUDGETS, Comparison, Trace, compare, moved_arrays, reference_trace, trace
from pe_parity.budgets import budget, quantity

AREAS = {
    "layers", "masks", "positions", "encodings", "initial laws", "optimizer", "schedule",
    "clipping", "loss weighting", "data order", "random numbers", "dtype", "file layout",
}  # fmt: skip


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant nothing."""


def clean(fault: Fault) -> Fault:
    """The setting of a fault, without the fault: many share it."""
    place = "forward/" if fault.depth == "forward" else fault.place.split("/")[0] + "/"
    return replace(fault, area="none", name="nothing", place=place, patch=nothing, precisions=BOTH)


@cache
def expected(setting: Fault) -> Trace:
    return setting.expected()


def compared(fault: Fault, precision: Precision) -> Comparison:
    right = expected(clean(fault))
    moved = (
        moved_arrays(right, perturbed_arrays(CONFIGS[fault.config]))
        if fault.depth == "run"
        else None
    )
    return compare(right, {fault.backend: fault.seen(precision)}, precision, moved=moved)


# Flax compiles anew for every fault, so only the precision with the wider bounds is tried there.
CASES = [
    (fault, precision)
    for fault in FAULTS
    for precision in (fault.precisions if fault.backend == "torch" else fault.precisions[-1:])
]


def label(fault: Fault, precision: Precision) -> str:
    return f"{fault.backend}-{fault.area}-{fault.name}-{precision}".replace(" ", "-")


@pytest.mark.parametrize(("fault", "precision"), CASES, ids=[label(*case) for case in CASES])
def test_fault_is_caught_where_it_was_planted(
    fault: Fault, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected(clean(fault))
    fault.patch(monkeypatch)
    failure = compared(fault, precision).first_failure
    assert failure is not None, f"{fault.name} was not caught"
    assert failure.name == fault.place
    if quantity(fault.place) != "exact":
        assert failure.worst >= budget(fault.place, precision).fault


# A third of the settings; two hundred clean runs are evidence.
SETTINGS = list(dict.fromkeys((clean(fault), precision) for fault, precision in CASES))[::3]


@pytest.mark.parametrize(
    ("setting", "precision"),
    SETTINGS,
    ids=[f"{one.backend}-{number}" for number, (one, _) in enumerate(SETTINGS)],
)
def test_no_false_alarm(setting: Fault, precision: Precision) -> None:
    assert compared(setting, precision).first_failure is None


# A fault of each quantity that shows in the noise of bfloat16.
IN_BFLOAT16 = {
    "tap": "in the first layer only",
    "loss": "filler rows in the loss",
    "gradient": "negated",
    "moment": "each weight apart",
    "update": "learning rate one percent off",
    "weights": "climbs",
}


@pytest.mark.parametrize("kind", IN_BFLOAT16)
def test_bfloat16_does_not_hide_everything(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = next(
        fault for fault in FAULTS if fault.name == IN_BFLOAT16[kind] and fault.backend == "torch"
    )
    if fault.name == "climbs":
        # It is caught at the moments; here the parameters after the run must show it.
        fault = replace(fault, place=f"{kind}/", steps=4)
    expected(clean(fault))
    fault.patch(monkeypatch)
    rows = [row for row in compared(fault, "bfloat16").rows if quantity(row.name) == kind]
    worst = max(rows, key=lambda row: row.worst)
    assert not worst.passed
    assert worst.worst >= budget(worst.name, "bfloat16").fault


def test_faults_are_planted_in_every_area() -> None:
    assert {fault.area for fault in FAULTS} >= AREAS
    assert len({(fault.area, fault.name) for fault in FAULTS}) >= 30


# --- The long evidence ---


@pytest.mark.evidence
def test_the_table_of_faults() -> None:
    """The size of every fault's effect in every precision, and where it was caught if not where it
    was planted.
    """
    rows: list[list[Any]] = []
    smallest: dict[tuple[Any, str], float] = {}
    for fault in FAULTS:
        every = PRECISIONS if fault.backend == "torch" and fault.observe is None else BOTH
        cells = dict.fromkeys(("float64", "float32", "bfloat16"), "")
        for precision in every:
            expected(clean(fault))
            with pytest.MonkeyPatch.context() as monkeypatch:
                fault.patch(monkeypatch)
                found = compared(fault, precision)
            effect = next(row.worst for row in found.rows if row.name == fault.place)
            caught = found.first_failure
            cells[precision] = f"{effect:.1e}"
            if caught is None:
                cells[precision] += ", below the noise"
            elif caught.name != fault.place:
                cells[precision] += f", `{caught.name}`"
            if precision in fault.precisions:
                assert caught is not None
                assert caught.name == fault.place
                key: tuple[Any, str] = (quantity(fault.place), precision)
                smallest[key] = min(smallest.get(key, math.inf), effect)
        rows.append([fault.area, fault.name, fault.backend, f"`{fault.place}`", *cells.values()])
    columns = [
        "area", "fault", "backend", "planted at", "effect in float64", "in float32", "in bfloat16",
    ]  # fmt: skip
    write_section("faults", columns, rows)
    for key, effect in smallest.items():
        if key[0] != "exact":
            assert BUDGETS[key].fault <= effect


CLEAN_RUNS = 100


@pytest.mark.evidence
def test_no_false_alarm_in_two_hundred_clean_runs() -> None:
    """The same engines, other parameters and other batches every time."""
    rows: list[list[Any]] = []
    exactly = ComputeConfig(precision="float64")
    for backend in ENGINES:
        kept: dict[str, Engine] = {}
        alarms, closest = 0, 0.0
        for number in range(CLEAN_RUNS):
            name = list(CONFIGS)[number % len(CONFIGS)]
            config, arrays = CONFIGS[name], perturbed_arrays(CONFIGS[name], seed=number)
            batch = small_batch(config, masked=True, seed=number)
            right = trace(ENGINES["torch"], config, arrays, [batch], compute=exactly)
            right |= reference_trace(config, arrays, batch)
            if name not in kept:
                kept[name] = ENGINES[backend](config, arrays, TrainConfig(), ComputeConfig(), 1)
            engine = kept[name]
            state = {
                key: np.zeros(shape, np.float32)
                for key, shape in state_shapes(config).items()
                if key.startswith("adam/")
            }
            engine.restore({f"param/{key}": array for key, array in arrays.items()} | state)
            found = trace(lambda *_, made=engine: made, config, arrays, [batch])
            comparison = compare(right, {backend: found}, "float32")
            alarms += comparison.first_failure is not None
            closest = max(closest, *(row.worst / row.bound for row in comparison.rows))
        rows.append([backend, CLEAN_RUNS, alarms, closest])
    columns = ["backend", "clean runs", "alarms", "nearest to a bound, as a share of it"]
    write_section("false_alarms", columns, rows)
    assert [row[2] for row in rows] == [0, 0]
