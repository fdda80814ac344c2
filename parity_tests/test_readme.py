"""The code in README.md and docs/ runs, and the figures keep their bounds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{page.name}-{number}": block
    for page in PAGES
    for number, block in enumerate(PYTHON.findall(page.read_text(encoding="utf-8")))
}


def test_example_comes_early() -> None:
    first = README.splitlines().index("```python")
    assert first < 10
    block = BLOCKS["README.md-0"]
    assert len(block.splitlines()) <= 13
    assert README[: README.index(block)].count("\n") + len(block.splitlines()) <= 25


@pytest.mark.parametrize("name", list(BLOCKS))
def test_code_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", BLOCKS[name]], cwd=tmp_path, env=environment, check=True)


def test_figures_keep_their_bounds() -> None:
    rows = re.findall(
        r"^\| [a-zA-Z ]+ \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", README, re.MULTILINE
    )
    figures = [list(map(float, row)) for row in rows if row[0] != "float64"]
    assert len(figures) == 6
    for double, double_bound, single, single_bound in figures:
        assert double <= double_bound
        assert single <= single_bound
    equal = re.search(r"(\d[\d,]*) of (\d[\d,]*) weights, rounded to float32, are the same", README)
    assert equal is not None
    assert equal.group(1) == equal.group(2)
