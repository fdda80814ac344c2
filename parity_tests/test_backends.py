"""Backends are found by entry point: a third one joins from outside, and what is not there is one
clear line.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import pe_core
import pe_flax
import pe_torch
from pe_cli.engines import engine_types
from pe_cli.main import main
from pe_core import Features, LearnedTable, ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import SavedModel, save_model
from pe_core.training.backends import backends, versions
from pe_parity.budgets import budget, distance

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ModelConfig(
    inputs=Features(16), num_classes=2, d_model=8, num_heads=2, num_layers=1, d_ff=8,
    encodings=(LearnedTable(10),),
)  # fmt: skip
# The NumPy reference as a backend that only predicts.
TOY = """
import numpy as np
from pe_parity.reference import cross_entropy, forward

class Engine:
    def __init__(self, config, arrays, train, compute, total_steps, device=None):
        self.config, self.arrays, self.seed = config, arrays, train.seed
        self.dtype = compute.array_dtype

    def predict(self, batch):
        return forward(self.config, self.arrays, batch.inputs, mask=batch.mask)

    def taps(self, batch, step=None):
        taps = {}
        logits = forward(
            self.config, self.arrays, batch.inputs,
            mask=batch.mask, taps=taps, seed=self.seed, dropout_step=step,
        )
        taps["loss"] = np.array(cross_entropy(logits, batch.labels, batch.weights))
        return {name: array.astype(self.dtype) for name, array in taps.items()}
"""
NEEDS = """\
Requires-Dist: numpy
Requires-Dist: pe-needed-always; python_version >= "3"
Requires-Dist: pe-needed-by-toy>=1; extra == "toy"
Requires-Dist: pe-needed-long-ago; python_version < "3" and extra == "toy"
Requires-Dist: pe-needed-by-another; extra == "another"
"""

Register = Callable[..., None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Write a distribution that registers the toy, as pip would leave it, where Python finds it."""

    def write(needs: str = "") -> None:
        info = tmp_path / "toy-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n{needs}")
        (info / "entry_points.txt").write_text(
            "[positional_encoding.backends]\ntoy = toy_engine:Engine\n"
        )
        (tmp_path / "toy_engine.py").write_text(TOY)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "toy_engine", raising=False)

    monkeypatch.chdir(tmp_path)
    return write


def test_a_third_backend_is_listed_predicts_and_is_compared(
    register: Register, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    assert list(backends()) == ["torch", "flax", "toy"]
    assert main(["list"]) == 0
    assert re.search(r"^  toy +toy 1\.0$", capsys.readouterr().out, re.MULTILINE)

    save_model(tmp_path / "model", SavedModel(CONFIG, initial_arrays(CONFIG), {}))
    probabilities = {}
    for name in ("torch", "toy"):
        line = ["predict", "model", "--data=dummy", f"--framework={name}", "--json=found.json"]
        assert main(line) == 0
        record = json.loads((tmp_path / "found.json").read_text())
        assert record["framework"] == name
        assert record["versions"]["toy"] == "1.0"
        probabilities[name] = np.array(record["probabilities"])
    found, exact = probabilities["torch"], probabilities["toy"]
    assert distance(found, exact, exact) <= budget("head", "float32").bound

    capsys.readouterr()
    line = ["parity", "--config=model/config.json", "--depth=forward", "--json=found.json"]
    assert main(line) == 0
    assert re.search(r"compared +torch +flax +toy +between", capsys.readouterr().out)
    studies = json.loads((tmp_path / "found.json").read_text())["studies"]["learned"]
    for row in studies["float64"]["rows"]:
        assert list(row["errors"]) == ["torch", "flax", "toy"]
        assert row["errors"]["toy"] == 0.0


def test_a_backend_that_only_predicts_is_left_out_of_training(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    assert list(engine_types()) == ["torch", "flax"]
    assert "Left out: toy, which only predicts" in capsys.readouterr().out
    assert main(["train", "--framework=toy", "--data=dummy"]) == 2
    assert capsys.readouterr().err == (
        "pe: error: framework 'toy' only predicts; take another, of: torch, flax\n"
    )


def test_what_a_backend_needs_is_read_from_its_extra(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither what is always installed, nor another extra, nor a marker that does not hold."""
    register(NEEDS)
    assert backends()["toy"].packages == ("pe-needed-by-toy",)
    assert backends()["flax"].packages == ("flax", "jax", "optax")
    assert "toy" not in versions()
    assert main(["list"]) == 0
    assert "not installed; install with: pip install 'toy[toy]'" in capsys.readouterr().out
    assert main(["train", "--framework=toy", "--data=dummy"]) == 2
    assert capsys.readouterr().err == (
        "pe: error: framework 'toy' needs pe-needed-by-toy, not installed here; install with: pip "
        "install 'toy[toy]'\n"
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("train --framework troch", "unknown framework 'troch'; did you mean 'torch'?"),
        ("train --framework zzz", "unknown framework 'zzz'; known: flax, torch"),
    ],
)
def test_an_unknown_backend_is_told_its_neighbours(
    line: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--data=dummy"]) == 2
    assert capsys.readouterr().err == f"pe: error: {found}\n"


@pytest.mark.parametrize("line", ["list", "demo", "parity", "train --framework=torch --data=dummy"])
def test_a_checkout_that_is_not_installed_says_how(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **given: ())
    assert main(line.split()) == 2
    assert capsys.readouterr().err == (
        "pe: error: no backend is registered, because this project is not installed; in its "
        "folder, run: pip install -e .\n"
    )


@pytest.mark.parametrize("package", [pe_torch, pe_flax])
def test_one_import_is_enough(package: ModuleType) -> None:
    for name in pe_core.__all__:
        assert getattr(package, name) is getattr(pe_core, name)
        assert name in package.__all__


FRAMEWORK = re.compile(r"(^|[^a-z])(pe_)?(torch|jax|jaxlib|flax|optax)($|[^a-z])", re.IGNORECASE)


def names_of_frameworks(source: str) -> list[str]:
    """The identifiers and strings of a module, but for its docstrings, that name a framework."""
    words = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
        for _, value in ast.iter_fields(node):
            words += [value] if isinstance(value, str) else []
    return [word for word in words if FRAMEWORK.search(word)]


def test_pe_core_names_no_framework() -> None:
    found = {
        str(file): names
        for file in (ROOT / "pe_core").rglob("*.py")
        if (names := names_of_frameworks(file.read_text(encoding="utf-8")))
    }
    assert found == {}
    planted = (
        '"""As in torch."""\nimport jaxtyping\nx = "flax"\ndef on_torch(): ...\nimport pe_flax'
    )
    assert names_of_frameworks(planted) == ["on_torch", "flax", "pe_flax"]
