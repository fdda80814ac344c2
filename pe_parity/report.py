"""Comparisons as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from pe_parity.budgets import quantity
from pe_parity.compare import Comparison, Row

TITLES = {
    "tap": "taps",
    "loss": "loss",
    "gradient": "gradients",
    "moment": "moments of Adam",
    "update": "one step of Adam",
    "weights": "weights after the run",
    "gauge": "key biases, without effect",
}


def summary(comparison: Comparison) -> list[Row]:
    """Return the row nearest to its bound of each quantity, in the order of the trace."""
    worst: dict[str, Row] = {}
    for row in comparison.rows:
        kind = quantity(row.name)
        if kind not in worst or row.worst / row.bound > worst[kind].worst / worst[kind].bound:
            worst[kind] = row
    return list(worst.values())


def count(comparison: Comparison, kind: str) -> int:
    """Return the number of names of a quantity."""
    return sum(quantity(row.name) == kind for row in comparison.rows)


def to_lines(comparison: Comparison) -> list[str]:
    """Return the lines of a table with the name nearest to its bound of each quantity, and a line
    on what was left out.
    """
    frameworks = list(comparison.rows[0].errors)
    # One trace alone is compared with the baseline only.
    between = ["between"] if len(frameworks) > 1 else []
    lines = [["     compared", *frameworks, *between, "bound", "", "worst name"]]
    for row in summary(comparison):
        kind = quantity(row.name)
        mutual = [row.mutual] if between else []
        figures = [
            f"{value:.1e}" for value in (*(row.errors[name] for name in frameworks), *mutual)
        ]
        figures.append(f"{row.bound:.1e}" if math.isfinite(row.bound) else "none")
        verdict, name = "ok" if row.passed else "FAILED", row.name.removeprefix(f"{kind}/")
        lines.append([f"{count(comparison, kind):4d} {TITLES[kind]}", *figures, verdict, name])
    return [
        *table(lines, (0, len(lines[0]) - 2, len(lines[0]) - 1)),
        *([line] if (line := left_out(comparison)) else []),
    ]


def left_out(comparison: Comparison) -> str:
    """Return how many elements were not compared, in words; empty where all were."""
    found = []
    for kind, place in {"update": "one step", "weights": "the run"}.items():
        rows = [row for row in comparison.rows if quantity(row.name) == kind]
        if number := sum(row.left_out for row in rows):
            found.append(f"{number:,} of {sum(row.size for row in rows):,} in {place}")
    return f"left out for a gradient below its bound: {', '.join(found)}" if found else ""


def table(lines: Sequence[Sequence[str]], texts: Collection[int]) -> list[str]:
    """Return the lines of a table; the columns in `texts` are aligned left, all others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(widths[at]) if at in texts else cell.rjust(widths[at])
            for at, cell in enumerate(row)
        ]
        return "  ".join(cells).rstrip()

    return [line(row) for row in lines]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return every row as a dictionary for JSON; distances that are not finite become null."""
    return {
        "precision": comparison.precision,
        "passed": comparison.first_failure is None,
        "rows": [
            {
                "name": row.name,
                "errors": {name: _finite(value) for name, value in row.errors.items()},
                "mutual": _finite(row.mutual),
                "bound": _finite(row.bound),
                "elements": row.size,
                "left_out": row.left_out,
                "passed": row.passed,
            }
            for row in comparison.rows
        ],
    }


def failure_line(row: Row) -> str:
    """Describe the first name out of its budget, in two lines, and in two more where the length of
    the run may be the reason.
    """
    errors = ", ".join(f"{name} {value:.1e}" for name, value in row.errors.items())
    text = (
        f"first out of budget: {row.name}\n{errors} from the baseline, {row.mutual:.1e} between "
        f"them, bound {row.bound:.1e}"
    )
    if quantity(row.name) == "weights":
        text += (
            "\nEverything up to the first step agrees. In long runs rounding grows until training "
            "is chaotic:\nif a run with fewer --steps agrees, that is the reason."
        )
    return text


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
