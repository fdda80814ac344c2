"""Find what is wrong with a trace, one mistake after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pe_parity.budgets import budget
from pe_parity.compare import compare
from pe_parity.padding import without_padding
from pe_parity.perturbed_reference import PerturbedReference
from pe_parity.resemblance import resemblances
from pe_parity.search import Search
from pe_parity.shown import Shown
from pe_parity.trace import Trace
from pe_parity.trace_file import Given

# Enough sequences to distinguish mistakes; the formulas in NumPy are slow.
ROWS: Final = 8
MOST_FAULTS: Final = 6


@dataclass(frozen=True)
class Finding:
    """What is wrong at one name.

    Args:
        name: where it shows first.
        text: what it looks like, as a sentence without its stop.
        explained: whether it accounts for the difference there, to within the bound.
    """

    name: str
    text: str
    explained: bool = True


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a trace.

    Args:
        findings: in the order in which they show.
        checked: number of names that are right or that the findings together explain; None where
            the search did not follow the whole model.
        total: number of names that the model has.
    """

    findings: tuple[Finding, ...]
    checked: int | None = None
    total: int = 0


def diagnose(baseline: Trace, actual: Trace, given: Given | None, precision: str) -> Diagnosis:
    """Explain the differences of a trace from a baseline.

    Mistakes in the model are tried by computing the whole model with each of them, in float64; what
    explains the first name out of bounds, and the most names after it, is kept, and the search goes
    on from there. Without the inputs of the model, or where no mistake of this kind fits, the two
    arrays at that name are compared by themselves.

    Args:
        baseline: the trace that the other should equal.
        actual: the one that does not.
        given: what went into both; None where nobody knows.
        precision: of the comparison; chooses the bounds.
    """
    # A mistake may overflow, in the trace and in what is computed with it.
    with np.errstate(all="ignore"):
        return _diagnosed(baseline, actual, given, precision)


def _diagnosed(baseline: Trace, actual: Trace, given: Given | None, precision: str) -> Diagnosis:
    if given is not None:
        baseline = without_padding(baseline, given.mask)
        actual = without_padding(actual, given.mask)
    names = [name for name in baseline if name in actual]
    failing = _first_failure(baseline, actual, names, precision)
    if failing is None:
        return Diagnosis(())
    alone = Diagnosis((_alone(failing, baseline[failing], actual[failing], given, precision),))
    if given is None:
        return alone
    # The first rows of the baseline can be computed only where the reference has the name, and
    # agrees.
    variant = PerturbedReference.of(given, ROWS)
    exact = variant.trace()
    followed = [name for name in names if name in exact]
    if failing not in followed:
        return alone
    until = followed[: followed.index(failing) + 1]
    expected = {name: variant.of_batch(name, baseline[name]) for name in until}
    there = {name: variant.of_batch(name, actual[name]) for name in followed}
    shown = Shown(there, followed, precision, variant.sensitivity())
    if _first_failure(expected, exact, until, precision) is not None:
        if _first_failure(exact, shown.trace, until, precision) is not None:
            return alone
        text = "the reference agrees with the second trace, not with the first: that one is off"
        return Diagnosis((Finding(failing, text),))
    return _followed(variant, shown)


def _followed(variant: PerturbedReference, shown: Shown) -> Diagnosis:
    """Find one mistake after the other, each on top of those before."""
    findings: list[Finding] = []
    failing = shown.first_failure(variant)
    while failing is not None and len(findings) < MOST_FAULTS:
        found = Search(variant, shown, failing).best()
        if found is None:
            expected, actual = variant.trace(failing)[failing], shown.trace[failing]
            findings.append(_alone(failing, expected, actual, variant, shown.precision))
            return Diagnosis(tuple(findings))
        variant = found.variant
        findings += [Finding(failing, text) for text in found.texts]
        if not found.followed:
            return Diagnosis(tuple(findings))
        failing = shown.first_failure(variant)
    total = len(shown.names)
    return Diagnosis(
        tuple(findings), total if failing is None else shown.names.index(failing), total
    )


def _alone(
    name: str,
    expected: np.ndarray,
    actual: np.ndarray,
    given: Given | PerturbedReference | None,
    precision: str,
) -> Finding:
    """Compare two arrays without the model behind them."""
    config = None if given is None else given.config
    found = next(resemblances(name, expected, actual, budget(name, precision).bound, config), None)
    if found is not None:
        return Finding(name, found.text)
    place = np.unravel_index(
        int(np.nanargmax(np.abs(np.asarray(actual, np.float64) - expected))), expected.shape
    )
    where = f"[{', '.join(map(str, place))}]" if place else ""
    figures = (
        f"the largest difference is at {name}{where}: {float(expected[place]):.6g} "
        f"expected, {float(actual[place]):.6g} found"
    )
    return Finding(name, f"nothing known accounts for it; {figures}", explained=False)


def _first_failure(expected: Trace, actual: Trace, names: list[str], precision: str) -> str | None:
    there = {name: expected[name] for name in names if name in expected}
    row = compare(there, {"": {name: actual[name] for name in there}}, precision).first_failure
    return None if row is None else row.name
