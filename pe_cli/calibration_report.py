"""`pe parity --calibrate`: measure the noise, check the budgets against it, and write it down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pe_cli.reporting import Bar, console
from pe_core.model.config import PRECISIONS
from pe_core.training.backends import versions
from pe_core.training.engine import EngineType
from pe_parity.budgets import BUDGETS, FAIR, LOOSE, quantity
from pe_parity.calibrate import CASES, Calibration, calibrate
from pe_parity.evidence import Section, write_sections
from pe_parity.report import TITLES, table

COLUMNS: Final = [
    "quantity", "precision", "names", "left out", "noise", "worst name", "in the table", "fault",
    "bound", "bound / noise", "",
]  # fmt: skip


def run_calibration(engine_types: Mapping[str, EngineType], cases: int, folder: Path | None) -> int:
    """Measure the noise, print what would change in the table, and return 1 where a bound does not
    fit the noise.
    """
    with Bar("random models", cases) as bar:
        found = calibrate(engine_types, cases, progress=bar)
    rows, proposals, passed = _calibrated(found)
    lines = [
        [f"{value:.1e}" if isinstance(value, float) else str(value) for value in row]
        for row in [COLUMNS, *rows]
    ]
    for line in table(lines, range(len(COLUMNS))):
        console.print(line)
    for line in proposals or ["Nothing would change in pe_parity/budgets.py."]:
        console.print(line)
    if folder is not None:
        command = f"pe parity --calibrate {cases} --report"
        sections = [Section("calibration", command, COLUMNS, rows, versions())]
        if len(engine_types) > 1:
            sections.append(_fairness(found, command))
        page = write_sections(folder, sections, {"fairness": found.errors})
        console.print(f"\nWritten to {page}")
    return 0 if passed else 1


def _calibrated(found: Calibration) -> tuple[list[list[Any]], list[str], bool]:
    """Return the rows of the table, the changes to propose, and whether every bound fits."""
    rows: list[list[Any]] = []
    proposals, passed = [], True
    for (kind, precision), entry in sorted(
        BUDGETS.items(), key=lambda item: PRECISIONS.index(item[0][1])
    ):
        noise = found.noise.get((kind, precision))
        if noise is None:
            continue
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
        left_out = f"{noise.left_out:,} of {noise.elements:,}" if noise.left_out else "nothing"
        rows.append([
            TITLES[kind], precision, noise.count, left_out, noise.largest, noise.name, entry.noise,
            entry.fault, entry.bound, ratio, verdict,
        ])  # fmt: skip
    return rows, proposals, passed


def _fairness(found: Calibration, command: str) -> Section:
    """Return the median float32 error of both backends for each kind of name."""
    rows: list[list[Any]] = []
    for kind, errors in found.medians().items():
        if quantity(kind) in ("tap", "loss", "gradient"):
            a, b = errors.values()
            ratio = max(a, b) / min(a, b)
            worse = f"{max(errors, key=errors.__getitem__)} is worse"
            rows.append([f"`{kind}`", a, b, ratio, "fair" if ratio <= FAIR else worse])
    names = list(next(iter(found.errors.values())))
    return Section("fairness", command, ["name", *names, "ratio", ""], rows, versions())
