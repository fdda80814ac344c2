"""The scripts in examples/ run and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each prints last: a model cannot have learned this without positions, and the two runs end
# with one loss.
ACCURACY = r"validation accuracy (0\.9\d\d|1\.000)"
LEARNED = rf"learned: {ACCURACY}\nrotary: {ACCURACY}"
ENDS = {
    "own_model_torch": LEARNED,
    "own_model_flax": LEARNED,
    "hand_over": r"    4 +(0\.\d{4})\d+ +\1\d+",
}


def test_every_example_is_run() -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == set(ENDS)


@pytest.mark.parametrize("name", list(ENDS))
def test_example_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{ENDS[name]}\n$", done.stdout), done.stdout
