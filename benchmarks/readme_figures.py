"""Run the demonstration and the parity check and put their figures into README.md.

Run it with `python -m benchmarks.readme_figures`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

from pe_core.training.backends import backends, engine_type, versions
from pe_parity.budgets import quantity
from pe_parity.check import ParityCheck, check_parity, default_model
from pe_parity.report import TITLES, summary

README = Path(__file__).parents[1] / "README.md"


def demo() -> str:
    """Return the tables of the first two parts of `pe demo`, without the prose below them."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pe_cli", "demo"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    parts = [part.splitlines() for part in re.split(r"\n\n(?=\d\. )", done.stdout)[1:3]]
    tables = (takewhile(lambda line: not line[0].isupper(), part) for part in parts)
    return "```\n" + "\n\n".join("\n".join(lines) for lines in tables) + "\n```"


def table(checks: dict[str, ParityCheck]) -> str:
    """Return the worst distance of each quantity and its bound, for each precision, as a Markdown
    table.
    """
    lines = [
        "| compared | " + " | ".join(f"{precision} | bound" for precision in checks) + " |",
        "|---" * (1 + 2 * len(checks)) + "|",
    ]
    for rows in zip(*(summary(one.comparison) for one in checks.values()), strict=True):
        figures = " | ".join(f"{row.worst:.1e} | {row.bound:.1e}" for row in rows)
        lines.append(f"| {TITLES[quantity(rows[0].name)]} | {figures} |")
    exact, found = checks["float64"], versions()
    names = ", ".join(
        f"{name} {found[name]}" for name in ("torch", "jax", "flax", "optax", "numpy")
    )
    return "\n".join(
        [
            *lines,
            "",
            f"After five epochs in float64, {exact.equal:,} of {exact.total:,} weights, rounded to "
            "float32, are the same bits.",
            f"Measured by `python -m benchmarks.readme_figures` with {names} ({found['machine']}).",
        ]
    )


def replaced(text: str, name: str, content: str) -> str:
    """Put content between the marks of a name."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(
            f"README.md has no marks for {name!r}; put <!-- {name}:begin --> and "
            f"<!-- {name}:end --> where it belongs"
        )
    return pattern.sub(lambda match: f"{match.group(1)}{content}\n{match.group(2)}", text)


def main() -> None:
    """Write README.md anew."""
    checks = check_parity(
        {name: engine_type(name) for name in backends()}, default_model(), ("float64", "float32")
    )
    text = README.read_text(encoding="utf-8")
    text = replaced(replaced(text, "parity", table(checks)), "demo", demo())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
