"""Every planted fault is caught, and caught where it was planted; without one, nothing is."""

from __future__ import annotations

from functools import cache

import pytest

from parity_tests.cases import CONFIGS, ENGINES, perturbed_arrays, small_batch
from parity_tests.faults import FAULTS, Fault
from pe_core.config import ComputeConfig, Precision
from pe_core.parity import Comparison, Trace, compare, reference_trace, trace
from pe_core.parity.trace import Depth


@cache
def referee(name: str, masked: bool, dropout: bool, depth: Depth) -> Trace:
    config = CONFIGS[name]
    arrays, batch = perturbed_arrays(config), small_batch(config, masked=masked)
    exact = ComputeConfig(precision="float64")
    found = trace(ENGINES["torch"], config, arrays, [batch], depth=depth, compute=exact, dropout=dropout)
    # The reference comes last and takes the place of every tap; the order of names is the trace's own.
    return found | reference_trace(config, arrays, batch, dropout=dropout)


def compared(fault: Fault, precision: Precision) -> Comparison:
    config = CONFIGS[fault.config]
    arrays, batch = perturbed_arrays(config), small_batch(config, masked=fault.masked)
    expected = referee(fault.config, fault.masked, fault.dropout, fault.depth)
    compute = ComputeConfig(precision=precision)
    found = trace(ENGINES[fault.wing], config, arrays, [batch], depth=fault.depth, compute=compute, dropout=fault.dropout)
    return compare(expected, {fault.wing: found}, precision)


# Flax compiles anew for every fault, so only the precision with the wider bounds is tried there.
CASES = [(fault, precision) for fault in FAULTS for precision in ("float32", "float64") if fault.wing == "torch" or precision == "float32"]


@pytest.mark.parametrize(
    ("fault", "precision"), CASES, ids=[f"{fault.wing}-{fault.name}-{precision}".replace(" ", "-") for fault, precision in CASES]
)
def test_fault_is_caught_where_it_was_planted(fault: Fault, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    referee(fault.config, fault.masked, fault.dropout, fault.depth)
    fault.patch(monkeypatch)
    failure = compared(fault, precision).first_failure
    assert failure is not None, f"{fault.name} was not caught"
    assert failure.name == fault.place


@pytest.mark.parametrize(("wing", "precision"), [("torch", "float32"), ("torch", "float64"), ("flax", "float32")])
@pytest.mark.parametrize(
    ("config", "masked", "dropout"), sorted({(fault.config, fault.masked, fault.dropout) for fault in FAULTS}), ids=str
)
def test_no_false_alarm(config: str, masked: bool, dropout: bool, wing: str, precision: Precision) -> None:
    clean = Fault("none", wing, "update/", lambda monkeypatch: None, config, masked, dropout)
    assert compared(clean, precision).first_failure is None
