"""A comparison for people and for machines."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from pe_core.parity.budget import quantity
from pe_core.parity.compare import Comparison, Row

TITLES = {
    "tap": "taps",
    "loss": "loss",
    "gradient": "gradients",
    "update": "one step of Adam",
    "weights": "weights after the run",
}


def summary(comparison: Comparison) -> list[Row]:
    """Return the row that comes nearest to its bound for each quantity, in the order of the trace."""
    worst: dict[str, Row] = {}
    for row in comparison.rows:
        kind = quantity(row.name)
        if kind not in worst or row.worst / row.bound > worst[kind].worst / worst[kind].bound:
            worst[kind] = row
    return list(worst.values())


def count(comparison: Comparison, kind: str) -> int:
    """Return how many names of a quantity were compared."""
    return sum(quantity(row.name) == kind for row in comparison.rows)


def to_table(comparison: Comparison, title: str) -> Table:
    """Return a table with the worst name of each quantity."""
    frameworks = list(comparison.rows[0].errors)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("compared", "names", "worst"):
        table.add_column(heading, justify="right" if heading == "names" else "left")
    for heading in (*(f"{name} to referee" for name in frameworks), "between them", "bound", ""):
        table.add_column(heading, justify="right")
    for row in summary(comparison):
        kind = quantity(row.name)
        figures = [*(row.errors[name] for name in frameworks), row.mutual, row.bound]
        table.add_row(
            TITLES[kind], str(count(comparison, kind)), row.name, *(f"{value:.1e}" for value in figures), "ok" if row.passed else "FAILED"
        )
    return table


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
                "bound": row.bound,
                "passed": row.passed,
            }
            for row in comparison.rows
        ],
    }


def failure_line(row: Row) -> str:
    """Say which name left its budget and by how much."""
    errors = ", ".join(f"{name} {value:.1e}" for name, value in row.errors.items())
    return f"{row.name} is the first out of budget: {errors} to the referee, {row.mutual:.1e} between them, bound {row.bound:.1e}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
