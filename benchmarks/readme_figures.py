"""Run the demonstration and the parity study and put what they print into README.md.

Run it with `python -m benchmarks.readme_figures`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pe_core.training.backends import engine_type, versions
from pe_parity.budgets import quantity
from pe_parity.check import ParityCheck, check_parity, default_model
from pe_parity.report import TITLES, count, left_out, summary

README = Path(__file__).parents[1] / "README.md"


def demo() -> str:
    """Return what `pe demo` prints."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pe_cli", "demo"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return f"```\n{done.stdout.strip()}\n```"


def table(studies: dict[str, ParityCheck]) -> str:
    """Return the figures of a study as a Markdown table."""
    lines = [
        (
            "| precision | compared | names | torch to reference | Flax to reference | "
            "between them | bound |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for precision, one in studies.items():
        for row in summary(one.comparison):
            kind = quantity(row.name)
            figures = " | ".join(
                f"{value:.1e}"
                for value in (row.errors["torch"], row.errors["flax"], row.mutual, row.bound)
            )
            lines.append(
                f"| {precision} | {TITLES[kind]} | {count(one.comparison, kind)} | {figures} |"
            )
    exact, found = studies["float64"], versions()
    lines += [
        "",
        (
            f"After five epochs in float64, rounded to float32: {exact.equal:,} of {exact.total:,} "
            "weights are the same bits."
        ),
    ]
    lines += [
        f"Elements of {precision} {told}."
        for precision, one in studies.items()
        if (told := left_out(one.comparison))
    ]
    names = ", ".join(
        f"{name} {found[name]}" for name in ("torch", "jax", "flax", "optax", "numpy")
    )
    lines += [
        (
            f"Made by `python -m benchmarks.readme_figures` with {names} on {found['cores']} cores "
            f"({found['machine']})."
        )
    ]
    return "\n".join(lines)


def replaced(text: str, name: str, content: str) -> str:
    """Put content between the marks of a name."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(
            f"README.md has no marks for {name!r}; put <!-- {name}:begin --> and <!-- {name}:end "
            "--> where it belongs"
        )
    return pattern.sub(lambda match: f"{match.group(1)}{content}\n{match.group(2)}", text)


def main() -> None:
    """Write README.md anew."""
    studies = check_parity(
        {name: engine_type(name) for name in ("torch", "flax")},
        default_model(),
        ("float64", "float32"),
    )
    text = README.read_text(encoding="utf-8")
    text = replaced(replaced(text, "parity", table(studies)), "demo", demo())
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
