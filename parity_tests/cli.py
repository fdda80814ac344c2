"""Run the command `pe` in this process or in one of its own, and the files that its tests share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from pe_cli.main import main

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
FRAMEWORKS = ("torch", "flax")
COUNT, LENGTH, FEATURES, NAMES = 40, 6, 3, ("cat", "dog", "owl")
DUMMY = "train --framework torch --data dummy"
TINY = ("--epochs=1", "--d-model=8", "--num-heads=2", "--num-layers=1", "--d-ff=8")


class Pe(Protocol):
    """Runs the command and returns its output; a failure must be exactly one line."""

    def __call__(self, *arguments: str | Path, code: int = 0) -> str: ...


@pytest.fixture
def pe(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pe:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def run(*arguments: str | Path, code: int = 0) -> str:
        found = main([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        assert found == code, error
        if code == 0:
            assert error == ""
            return output
        if error or code != 1:
            assert re.fullmatch(r"pe: error: [^\n]+\n", error)
        return output + error.removeprefix("pe: error: ").removesuffix("\n")

    return run


def process(*arguments: str | Path, path: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m pe_core`, the former name, with folders in front of the modules' path."""
    environment = os.environ | {
        "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "error",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "pe_core", *map(str, arguments)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, env=environment, text=True, **streams)


def table(text: str) -> dict[str, str]:
    """Return `given => expected` a line; an indented line goes on with the one before."""
    lines = re.sub(r"\n +", " ", text.strip()).splitlines()
    return dict(re.split(" *=> +", line, maxsplit=1) for line in lines)


def strict(text: str) -> Any:
    """Parse JSON that holds no NaN and no infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def sample() -> dict[str, np.ndarray]:
    """Sequences of three classes with a mask and lengths, which say the same."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, LENGTH + 1, COUNT)
    return {
        "inputs": 5 + 3 * random.normal(size=(COUNT, LENGTH, FEATURES)),
        "labels": np.array(NAMES)[np.arange(COUNT) % len(NAMES)],
        "mask": np.arange(LENGTH) < lengths[:, None],
        "lengths": lengths,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data files that can be trained on or predicted: good, tokens, unlabelled and Toy."""
    folder, arrays = tmp_path_factory.mktemp("files"), sample()
    random = np.random.default_rng(1)
    inputs, labels, mask, lengths = arrays.values()
    tokens = random.integers(0, 7, (COUNT, LENGTH))
    for name in ("good", "ünï [bold]ço"):
        np.savez(folder / f"{name}.npz", inputs=inputs, labels=labels, mask=mask)
    np.savez(folder / "lengths.npz", inputs=inputs, labels=labels, lengths=lengths)
    np.savez(folder / "unlabelled.npz", inputs=inputs, mask=mask)
    np.savez(folder / "tokens.npz", inputs=tokens, labels=labels)
    for part in ("TRAIN", "TEST"):
        lines = [TS_HEADER]
        for number in range(20):
            values = random.normal(size=(2, int(random.integers(3, 8)))).round(3).astype(str)
            values[0, 1] = "?"
            lines.append(":".join([*(",".join(row) for row in values), ("up", "down")[number % 2]]))
        (folder / f"Toy_{part}.ts").write_text("\n".join(lines) + "\n")
    return folder


TS_HEADER = """\
@timeStamps false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data"""


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in each framework on the good file, with its JSON beside it."""
    folder = tmp_path_factory.mktemp("runs")
    data = ("--data", str(files / "good.npz"), "--test", str(files / "lengths.npz"))
    for name in FRAMEWORKS:
        out = ("--out", str(folder / name), "--json", str(folder / f"{name}.json"))
        line = ["train", "--framework", name, *data, *TINY, "--epochs=2", "--batch-size=16", *out]
        assert main(line) == 0
    return folder
