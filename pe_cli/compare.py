"""`pe compare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np

from pe_cli.options import FILE, FLAT
from pe_cli.reporting import check_json, console, write_json
from pe_core.errors import UserValueError, nearest
from pe_core.model.config import Precision
from pe_parity.budgets import budget
from pe_parity.compare import Comparison, Row, compare
from pe_parity.diagnose import Diagnosis, diagnose
from pe_parity.padding import without_padding
from pe_parity.report import table, to_json, to_lines
from pe_parity.trace import Trace
from pe_parity.trace_file import COMPARED, Given, TraceFile, read_trace

# Around the first failure; --json FILE has all.
SHOWN_BEFORE: Final = 20
SHOWN_AFTER: Final = 4
NAMES_SHOWN: Final = 3


@dataclass(frozen=True)
class CompareOptions:
    """Options of `pe compare`.

    Args:
        a: the trace of the model that is right.
        b: the trace in question.
        reference: a third trace, to which both are compared.
        precision: chooses the bounds; the coarser of the two traces' own when not given.
        json: write every figure to this file.
    """

    a: Annotated[str, FILE]
    b: Annotated[str, FILE]
    _: KW_ONLY
    reference: Annotated[str | None, FILE] = None
    precision: Precision | None = None
    json: Annotated[str | None, FILE] = None


def run(options: Annotated[CompareOptions, FLAT]) -> int:
    """Find where two traces diverge, and say what the difference looks like."""
    check_json(options.json)
    files = {
        path: read_trace(Path(path))
        for path in dict.fromkeys((options.reference or options.a, options.a, options.b))
    }
    first, *others = files.values()
    if not others:
        raise UserValueError(f"{options.a} and {options.b} are one file; compare two traces")
    _check_same_model(list(files.values()))
    names = _common_names(list(files.values()))
    given = next((file.given for file in files.values() if file.given is not None), None)
    mask = None if given is None else given.mask
    reference, *traces = [
        without_padding({name: file.trace[name] for name in names}, mask) for file in files.values()
    ]
    labelled = {str(file.path): one for file, one in zip(others, traces, strict=True)}
    precision = options.precision or _coarsest(
        others if options.reference else list(files.values())
    )
    # Infinities are at an infinite distance; NumPy need not say so.
    with np.errstate(all="ignore"):
        comparison = compare(reference, labelled, precision)
        found = _diagnoses(comparison, reference, labelled, given, precision)
    for line in _lines(comparison, list(files.values()), found):
        console.print(line)
    write_json(
        options.json,
        to_json(comparison) | {"reference": str(first.path), "diagnoses": _records(found)},
    )
    return 0 if comparison.first_failure is None else 1


def _diagnoses(
    comparison: Comparison,
    reference: Trace,
    traces: dict[str, Trace],
    given: Given | None,
    precision: str,
) -> dict[str, Diagnosis]:
    if comparison.first_failure is None:
        return {}
    with console.status("holding the difference against known mistakes"):
        found = {path: diagnose(reference, one, given, precision) for path, one in traces.items()}
    return {path: diagnosis for path, diagnosis in found.items() if diagnosis.findings}


def _lines(
    comparison: Comparison, files: list[TraceFile], found: dict[str, Diagnosis]
) -> Iterator[str]:
    first, *others = files
    yield f"Distance to {first.path}, relative; bounds of {comparison.precision}"
    for file in files:
        apart = [name for name in file.trace if any(name not in other.trace for other in files)]
        if apart:
            yield (
                f"{file.path} alone has {_first_names(apart)}: not compared"
                if len(files) == 2
                else f"not in all files: {_first_names(apart)}"
            )
    if any(file.given is None for file in files):
        unknown = ", ".join(str(file.path) for file in files if file.given is None)
        yield (
            f"{unknown} does not say what went in: whether it is the same model, weights and "
            "inputs cannot be checked"
        )
    yield ""
    failure = comparison.first_failure
    if failure is None:
        yield from to_lines(comparison)
        yield f"\nThe traces agree: {_count(len(comparison.rows), 'name')} within bounds."
        return
    yield from _window(comparison, failure)
    for path, diagnosis in found.items():
        yield (
            f"\nWhat is wrong in {path}, as it looks"
            if len(others) > 1
            else "\nWhat the difference looks like"
        )
        yield from _explanation(diagnosis)


def _window(comparison: Comparison, failure: Row) -> Iterator[str]:
    """Yield the table around the first failure."""
    rows = list(comparison.rows)
    at = rows.index(failure)
    start, end = max(0, at - SHOWN_BEFORE), min(len(rows), at + 1 + SHOWN_AFTER)
    several = len(failure.errors) > 1
    labels = [*failure.errors, "between"] if several else ["distance"]
    lines = [["name", *labels, "bound", ""]]
    for row in rows[start:end]:
        figures = [*row.errors.values(), row.mutual] if several else list(row.errors.values())
        verdict = "ok" if row.passed else "FAILED, the first" if row is failure else "FAILED"
        lines.append(
            [row.name, *(f"{value:.1e}" for value in figures), f"{row.bound:.1e}", verdict]
        )
    heading, *body = table(lines, (0, len(lines[0]) - 1))
    yield heading
    if start:
        yield f"({_count(start, 'name')} before, all within bounds)"
    yield from body
    if end < len(rows):
        failed = sum(not row.passed for row in rows[end:])
        yield (
            f"({_count(len(rows) - end, 'name')} after, {failed} out of bounds; --json FILE "
            "writes all)"
        )


def _explanation(diagnosis: Diagnosis) -> Iterator[str]:
    for finding in diagnosis.findings:
        yield f"  {finding.name}: {finding.text}."
    if not diagnosis.findings[-1].explained:
        # Random numbers are nobody's to repeat.
        yield "  Dropout left on cannot be named: compare two traces of the port; they differ then."
    if diagnosis.checked is None:
        return
    faults = (
        "this mistake"
        if len(diagnosis.findings) == 1
        else f"these {len(diagnosis.findings)} mistakes"
    )
    if diagnosis.checked == diagnosis.total:
        yield (
            f"The reference with {faults} gives the same {_count(diagnosis.total, 'name')} to "
            "within bounds: there is nothing else."
        )
    else:
        yield (
            f"The reference with {faults} gives the same first {diagnosis.checked} of "
            f"{_count(diagnosis.total, 'name')}: there is more."
        )


def _check_same_model(files: list[TraceFile]) -> None:
    """Raise one clear line where two traces are not of the same model, weights and inputs."""
    known = [file for file in files if file.given is not None]
    for one, other in pairwise(known):
        assert one.given is not None
        assert other.given is not None
        left, right = one.given.config.to_json(), other.given.config.to_json()
        for name, value in left.items():
            if right[name] != value:
                found = f"{name} is {value} and {right[name]}"
                raise UserValueError(
                    f"{one.path} and {other.path} are traces of different models: {found}; trace "
                    "both with one --config"
                )
        masks = [
            np.zeros(0) if given.mask is None else given.mask for given in (one.given, other.given)
        ]
        pairs = {"inputs": (one.given.inputs, other.given.inputs), "masks": (masks[0], masks[1])}
        pairs["weights"] = (_joined(one.given), _joined(other.given))
        for what, (a, b) in pairs.items():
            if not np.array_equal(a, b):
                seeds = [file.about.get("seed") for file in (one, other)]
                hint = (
                    f"the seeds are {seeds[0]} and {seeds[1]}"
                    if seeds[0] != seeds[1]
                    else "the seed is the same"
                )
                remedy = "trace both with the same --seed, --masked and --model"
                raise UserValueError(
                    f"{one.path} and {other.path} were made with different {what}, {hint}; {remedy}"
                )


def _joined(given: Given) -> np.ndarray:
    return np.concatenate([given.weights[name].ravel() for name in sorted(given.weights)])


def _common_names(files: list[TraceFile]) -> list[str]:
    names = [name for name in files[0].trace if all(name in file.trace for file in files)]
    if not names:
        mine, theirs = next(iter(files[1].trace)), files[0].trace
        raise UserValueError(
            f"{files[0].path} and {files[1].path} have no name in common; {mine!r}: "
            f"{nearest(mine, list(theirs)[:NAMES_SHOWN])}"
        )
    return names


def _coarsest(files: list[TraceFile]) -> str:
    found = [file.precision or "float32" for file in files]
    for file, precision in zip(files, found, strict=True):
        if precision not in COMPARED:
            known = ", ".join(COMPARED)
            raise UserValueError(
                f"{file.path}: there are no bounds for precision {precision!r}; choose one with "
                f"--precision: {known}"
            )
    return max(found, key=lambda precision: budget("", precision).bound)


def _records(found: dict[str, Diagnosis]) -> dict[str, Any]:
    return {
        path: {
            "findings": [
                {"name": one.name, "text": one.text, "explained": one.explained}
                for one in diagnosis.findings
            ],
            "names_accounted_for": diagnosis.checked,
        }
        for path, diagnosis in found.items()
    }


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
