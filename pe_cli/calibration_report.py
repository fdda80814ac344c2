"""The measured noise and fairness as sections of the page of evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pe_cli.reporting import Bar, console
from pe_core.model.config import PRECISIONS
from pe_core.training.backends import versions
from pe_core.training.engine import EngineType
from pe_parity.budgets import BUDGETS, LOOSE, quantity
from pe_parity.calibrate import CASES, Calibration, calibrate
from pe_parity.evidence import Section, write_sections
from pe_parity.report import TITLES

# Nobody's error against the referee is to be more than this many times the other's.
FAIR: Final = 2.0


def run_calibration(engine_types: Mapping[str, EngineType], cases: int, folder: Path | None) -> int:
    """Measure the noise, print what would change in the table, and return 1 where a bound does not
    fit the noise.
    """
    with Bar("random models", cases) as bar:
        found = calibrate(engine_types, cases, progress=bar)
    rows, proposals, passed = _calibrated(found)
    columns = [
        "quantity",
        "precision",
        "names",
        "left out",
        "noise",
        "worst name",
        "in the table",
        "fault",
        "bound",
        "bound / noise",
        "",
    ]
    _print(columns, rows)
    for line in proposals or ["Nothing would change in pe_parity/budgets.py."]:
        console.print(line)
    if folder is not None:
        frameworks = " and ".join(engine_types)
        text = [
            (
                f"The largest distance, to the referee and between the frameworks ({frameworks}), "
                f"over {cases} random models, weights,"
            ),
            (
                "batches and runs. The bound must lie above the noise, at most ten times above it, "
                "and below the smallest planted fault that"
            ),
            (
                "the precision can show. Gradients and moments are a share of their own norm or of "
                "an average weight's of their size,"
            ),
            (
                "whichever is larger. Models with max pooling or ReLU, where rounding chooses "
                "between two gradients, are compared up to the"
            ),
            (
                "loss and up to the gradient, the latter unless a unit fell on the other side of "
                "its "
                "kink. Adam divides a gradient by its own"
            ),
            (
                "size: where that is smaller than what the budget allows a gradient to be off, the "
                "step is rounding. Steps of Adam and trained"
            ),
            "weights are compared without such elements, which are counted.",
        ]
        command = f"pe parity --calibrate {cases} --report"
        sections = [
            Section(
                "calibration",
                "Budgets and the noise they come from",
                command,
                text,
                columns,
                rows,
                versions(),
            )
        ]
        if len(engine_types) > 1:
            sections.append(_fairness(found, command))
        console.print(f"\nWritten to {write_sections(folder, sections)}")
    return 0 if passed else 1


def _calibrated(found: Calibration) -> tuple[list[list[Any]], list[str], bool]:
    rows: list[list[Any]] = []
    proposals, passed = [], True
    for precision in PRECISIONS:
        for kind in TITLES:
            noise = found.noise.get((kind, precision))
            if noise is None or (kind, precision) not in BUDGETS:
                continue
            entry = BUDGETS[kind, precision]  # type: ignore[index]
            verdict = "ok"
            if noise.largest > entry.bound:
                verdict, passed = "too tight", False
            elif entry.bound > LOOSE * noise.largest:
                # A few models have less noise than many.
                verdict, passed = "loose", passed and found.cases < CASES
            if noise.largest > entry.noise:
                proposals.append(
                    f"{kind}, {precision}: noise {entry.noise:.1e} -> {noise.largest:.1e} (case "
                    f"{noise.case}, {noise.name})"
                )
            ratio = entry.bound / noise.largest if noise.largest else "no noise"
            skipped = (
                f"{noise.left_out:,} of {noise.elements:,} elements"
                if noise.left_out
                else "nothing"
            )
            rows.append([
                TITLES[kind], precision, noise.count, skipped, noise.largest, noise.name, entry.noise, entry.fault, entry.bound, ratio,
                verdict,
            ])  # fmt: skip
    return rows, proposals, passed


def _fairness(found: Calibration, command: str) -> Section:
    rows: list[list[Any]] = []
    for kind, errors in found.medians().items():
        if quantity(kind) not in ("tap", "loss", "gradient"):
            continue
        (_, a), (_, b) = errors.items()
        ratio = max(a, b) / min(a, b)
        rows.append(
            [
                f"`{kind}`",
                a,
                b,
                ratio,
                "fair" if ratio <= FAIR else f"{max(errors, key=errors.__getitem__)} is worse",
            ]
        )
    unfair = [row[0] for row in rows if row[3] > FAIR]
    text = [
        (
            "The median error of each framework against the float64 referee in float32, over the "
            f"same {found.cases} models, for each kind"
        ),
        (
            "of name (a star is any layer). Neither is to be more than twice the other's. The "
            "distance between the frameworks is at most the"
        ),
        "sum of both errors, by the triangle inequality.",
        (
            f"Beyond that: {', '.join(unfair)}; elementwise functions (exp, erf) and the order of "
            "sums are the frameworks' own."
        )
        if unfair
        else "None is.",
    ]
    names = list(next(iter(found.errors.values())))
    return Section(
        "fairness", "Fairness", command, text, ["name", *names, "ratio", ""], rows, versions()
    )


def _print(columns: list[str], rows: list[list[Any]]) -> None:
    table = [
        columns,
        *(
            [f"{value:.1e}" if isinstance(value, float) else str(value) for value in row]
            for row in rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        console.print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
