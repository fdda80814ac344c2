"""The encoding that docs/own_encoding.md writes is judged, saved and found again; where it is wrong
or only half there, that is said.
"""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

import pe_flax
import pe_parity.reference
import pe_torch
from parity_tests.cases import ENGINES
from pe_cli.imports import import_module
from pe_cli.main import main
from pe_core.encodings import ENCODINGS, LogitBiasOptions, parse_encoding
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig, Features, ModelConfig
from pe_core.training.config import TrainConfig
from pe_parity.budgets import budget, distance
from pe_parity.probe_inputs import probe_arrays, probe_batches
from pe_parity.trace import reference_trace, trace

PAGE = (Path(__file__).parents[1] / "docs" / "own_encoding.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
(JUDGE,) = (line.split() for line in re.findall(r"^\$ pe (.*)$", PAGE, re.MULTILINE))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with patch.dict(ENCODINGS):
        yield tmp_path
    forget()


def forget() -> None:
    """Leave the process as one that has imported nothing of the page."""
    ENCODINGS.pop("quadratic", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "window"]:
        del sys.modules[name]


def edit(file: str, before: str, after: str) -> None:
    text = Path(file).read_text()
    assert text.count(before) == 1
    Path(file).write_text(text.replace(before, after))


def test_the_page_is_judged_and_its_model_is_found_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*JUDGE, "--depth=step", "--precision=float64"]) == 0
    assert "The frameworks agree." in capsys.readouterr().out
    runpy.run_path("use.py")
    assert capsys.readouterr().out == "torch.Size([4, 10, 12])\ntorch.Size([8, 2])\n"
    forget()
    predict = ["predict", "model", "--data=dummy"]
    assert main(predict) == 2
    line = capsys.readouterr().err
    assert line.startswith("pe: error: model/config.json: unknown encoding 'quadratic'; known: ")
    assert line.endswith("(for one of your own, give --import MODULE or call register first)\n")
    assert main([*predict, "--import=window"]) == 0
    forget()
    train = ["train", "--framework=torch", "--data=dummy", "--encoding=quadratic", "--epochs=1"]
    assert main([*train, "--stop-at=1", "--out=run", "--import=window"]) == 0
    forget()
    assert main(["resume", "run"]) == 2
    assert capsys.readouterr().err.startswith("pe: error: unknown encoding 'quadratic'; known: ")
    assert main(["resume", "run", "--import=window"]) == 0


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("window/torch_layer.py", "- self.centre", "+ self.centre"),
        ("window/flax_layer.py", "return -strength", "return strength"),
        ("window/formula.py", "offset, arrays", "-offset, arrays"),
    ],
)
def test_a_wrong_sign_is_caught(
    capsys: pytest.CaptureFixture[str], file: str, before: str, after: str
) -> None:
    edit(file, before, after)
    assert main([*JUDGE, "--depth=forward", "--precision=float64"]) == 1
    assert "first out of budget: layers.0.attention.logits" in capsys.readouterr().out


def test_masks_a_step_in_front_and_blocks_need_no_line_of_the_page() -> None:
    import_module("window", "--import window")
    encoding = parse_encoding("quadratic:per_layer=false", max_length=10)
    assert encoding is not None
    config = ModelConfig(
        inputs=Features(16), num_classes=2, d_model=32, pooling="cls", encodings=(encoding,)
    )
    arrays, train = probe_arrays(config), TrainConfig()
    batches = probe_batches(config, train, 1, masked=True)
    expected = reference_trace(config, arrays, batches[0])["head"]
    for engine in ENGINES.values():
        for rows in (None, 1, 3):
            compute = ComputeConfig(precision="float64", rows_per_block=rows)
            found = trace(engine, config, arrays, batches, depth="forward", compute=compute)["head"]
            assert distance(found, expected, expected) <= budget("head", "float64").bound


HALF = "encoding 'quadratic' has no {}; call {}.register(Quadratic, {}) where the encoding is "
ERRORS = {
    "pe_torch.register(Quadratic, torch_layer.QuadraticEncoding)->": HALF.format(
        "layer in PyTorch", "pe_torch", "LAYER"
    ),
    "pe_flax.register(Quadratic, flax_layer.QuadraticEncoding)->": HALF.format(
        "layer in Flax", "pe_flax", "LAYER"
    ),
    "pe_parity.reference.register(Quadratic, formula.QuadraticFormula())->": HALF.format(
        "formula", "pe_parity.reference", "FORMULA"
    ),
    "import pe_flax, pe_parity.reference, pe_torch->import nothing_of_that_name": (
        "--import window: ModuleNotFoundError: No module named 'nothing_of_that_name' "
        "(__init__.py:1); install what it needs"
    ),
    "pe_torch.register(Quadratic, torch_layer.QuadraticEncoding)->1 / 0": (
        "--import window: cannot be imported, ZeroDivisionError: division by zero "
        "(__init__.py:5); correct it"
    ),
}


def test_an_error_in_the_code_of_the_page_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    edit("window/formula.py", 'arrays["centre"]', 'arrays["center"]')
    assert main([*JUDGE, "--depth=forward", "--precision=float64"]) == 2
    line = "pe: error: --import window: KeyError: 'center' (formula.py:7); correct it\n"
    assert capsys.readouterr().err == line


def test_a_file_of_options_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("options.yaml").write_text("import: window")
    words = ["--config=options.yaml", "--framework=torch", "--data=dummy"]
    assert main(["train", *words]) == 2
    line = "pe: error: --config options.yaml: pe train has no option 'import'; "
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(("change", "line"), ERRORS.items())
def test_what_is_missing_or_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], change: str, line: str
) -> None:
    edit("window/__init__.py", *change.split("->"))
    assert main([*JUDGE, "--depth=forward", "--precision=float64"]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"pe: error: {line}")
    assert found.count("\n") == 1


OPTIONS = {
    "frozen=True->frozen=False": "options must be frozen, got Quadratic; use frozen=True",
    '= "quadratic"->= "shaw"': (
        "the name 'shaw' is taken by pe_core.encodings.contextual.Shaw; choose another name"
    ),
    '= "quadratic"->= "a b"': (
        "Quadratic.name must be a word such as 'mine', other than 'none', got 'a b'"
    ),
}


@pytest.mark.parametrize(("change", "line"), OPTIONS.items())
def test_options_that_cannot_be_registered(
    capsys: pytest.CaptureFixture[str], change: str, line: str
) -> None:
    edit("window/options.py", *change.split("->"))
    assert main(["list", "--import=window"]) == 2
    assert capsys.readouterr().err.startswith(f"pe: error: --import window: {line}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--import windw",
            "--import windw: no module of that name here or among the installed; check the name",
        ),
        (
            "--import window --import window,nosuch",
            "--import nosuch: no module of that name here or among the installed; check the name",
        ),
        (
            "--import window/options.py",
            "--import window/options.py: give the name of the module, not its file; for example "
            "window.options",
        ),
        ("--import=", "--import '' is no name of a module; write MODULE or PACKAGE.MODULE"),
    ],
)
def test_modules_that_are_not_there(
    capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    assert main(["list", *words.split()]) == 2
    assert capsys.readouterr().err == f"pe: error: {line}\n"


def test_what_does_not_belong_together_is_not_registered() -> None:
    import_module("window", "--import window")
    kind = ENCODINGS["quadratic"]
    own = {name: sys.modules[f"window.{name}"] for name in ("torch_layer", "flax_layer", "formula")}
    for register, options, layer, line in (
        (pe_torch.register, kind, own["flax_layer"].QuadraticEncoding, "the layer of Quadratic "),
        (pe_flax.register, kind, pe_flax.T5BiasEncoding, "T5BiasEncoding.options_type must be "),
        (pe_parity.reference.register, kind, own["formula"].QuadraticFormula, "the formula of "),
        (pe_torch.register, LogitBiasOptions, pe_torch.T5BiasEncoding, "options must be a data"),
    ):
        # The hook that checks types in the tests would speak first.
        with pytest.raises(UserTypeError, match=f"^{line}"):
            inspect.unwrap(register)(options, layer)


def test_an_options_class_may_be_defined_anew_as_in_a_notebook() -> None:
    import_module("window", "--import window")
    before = ENCODINGS["quadratic"]
    for name in [name for name in sys.modules if name.startswith("window")]:
        del sys.modules[name]
    import_module("window", "--import window")
    assert ENCODINGS["quadratic"] is not before
