"""What `pe` reads and cannot use, data and models, is one clear line; so is a place that it cannot
write to; and a fault of the program is none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cli import (
    COUNT,
    DUMMY,
    LENGTH,
    TINY,
    TS_HEADER,
    Pe,
    files,
    pe,
    process,
    runs,
    sample,
    table,
)
from pe_cli.main import main

__all__ = ["files", "pe", "runs"]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data files that cannot be used, or not with another."""
    folder, good = tmp_path_factory.mktemp("bad"), sample()
    five, long = np.ones((COUNT, LENGTH, 5)), np.ones((COUNT, LENGTH + 1, 3))
    arrays: dict[str, dict[str, np.ndarray]] = {
        "more-tokens": {"inputs": np.full((COUNT, LENGTH), 9)},
        "five-features": {"inputs": five + np.arange(COUNT)[:, None, None]},
        "long": {"inputs": long + np.arange(COUNT)[:, None, None]},
        "nan": {"inputs": np.where(good["inputs"] > 0, good["inputs"], np.nan)},
        "other-labels": {"labels": np.array(["yak", "emu"])[np.arange(COUNT) % 2]},
        "misspelt": {"label": good["labels"]},
        "pickled": {"labels": good["labels"].astype(object)},
    }
    for name, changes in arrays.items():
        both = {"inputs": good["inputs"], "labels": good["labels"]} | changes
        np.savez(folder / f"{name}.npz", **both)  # type: ignore[arg-type]
    whole = (folder / "five-features.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    (folder / "table.csv").write_text("1,2\n")
    (folder / "word.ts").write_text(f"{TS_HEADER}\n1,2,x:3,4,5:up\n")
    (folder / "bytes.ts").write_bytes(b"@data\xff\n")
    return folder


# That each fault in a file has its own line is a claim of test_data_files.py.
BAD_DATA = table("""
missing.npz => no such file
table.csv => has no rows below a line with the names of the columns
cut.npz => not an .npz archive, or cut short
flipped.npz => damaged
nan.npz => inputs hold nan in example
misspelt.npz => unknown array label, the known ones are inputs, labels, mask, lengths, positions,
    positions_unit (or X and y for the first two); did you mean 'labels'?
pickled.npz => Python objects
word.ts => line 7, dimension 1: 'x' is not a number
bytes.ts => has no @data line
""")


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_one_clear_line(pe: Pe, bad: Path, name: str, tmp_path: Path) -> None:
    found = pe("train", "--framework", "flax", "--data", bad / name, code=2)
    assert re.search(f"{name}.*{re.escape(BAD_DATA[name])}", found)
    assert list(tmp_path.iterdir()) == []


BAD_TESTS = table("""
five-features => has 5 features, the training file has 3 features
other-labels => label 'yak' is not among the classes cat, dog, owl
more-tokens => has tokens, the training file has 3 features
""")
BAD_PREDICTIONS = table("""
five-features => five-features.npz has 5 features, but the model takes num_features=3
long => has a sequence of 7 steps, but encoding 'learned' has max_length=6
other-labels => label 'yak' is not among the classes cat, dog, owl
nan => inputs hold nan in example 2
""")


def test_a_test_file_must_fit(pe: Pe, files: Path, bad: Path) -> None:
    line = ("train", "--framework=torch", "--data", files / "good.npz", "--test")
    for name, words in BAD_TESTS.items():
        assert re.search(rf"{name}\.npz.*{words}", pe(*line, bad / f"{name}.npz", code=2))
    for unlabelled in (("--data", files / "unlabelled.npz"), (*line[2:], files / "unlabelled.npz")):
        assert "has no labels to t" in pe("train", "--framework=torch", *unlabelled, code=2)


def test_predict_refuses_data_that_do_not_fit(pe: Pe, files: Path, bad: Path, runs: Path) -> None:
    for name, words in BAD_PREDICTIONS.items():
        assert words in pe("predict", runs / "torch", "--data", bad / f"{name}.npz", code=2)
    pe("train", "--framework=torch", "--data=dummy", "--out=labels", *TINY)
    pe("train", "--framework=torch", "--data", files / "tokens.npz", "--out=tokens", *TINY)
    for model, data, words in (
        ("labels", "order", "order has the classes a_first, b_first, the model has 0, 1"),
        ("tokens", bad / "more-tokens.npz", "more-tokens.npz: token 9 lies outside 0 .. 6"),
        ("tokens", files / "good.npz", "has 3 features, but the model takes tokens"),
    ):
        assert words in pe("predict", model, "--data", data, code=2)


def in_config(**changes: Any) -> Callable[[Path], None]:
    """Change the config.json of a model, or the config of the model in it."""

    def change(model: Path) -> None:
        record = json.loads((model / "config.json").read_text())
        for name, value in changes.items():
            (record["model"] if name in (*record["model"], "d_mdel") else record)[name] = value
        (model / "config.json").write_text(json.dumps(record))

    return change


def cut(file: str) -> Callable[[Path], None]:
    return lambda model: os.truncate(model / file, (model / file).stat().st_size - 5)


# That each fault in a model has its own line is a claim of test_weights.py.
CLASSES = "config.json: class_names must be 3 different names, got "
BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (cut("model.safetensors"), "model.safetensors is damaged"),
    "config": (cut("config.json"), "config.json is not valid JSON"),
    "field": (in_config(d_mdel=8), "unknown field 'd_mdel' (did you mean 'd_model'?)"),
    "size": (in_config(d_model=16), "misshapen: input.weight is (8, 3), not (16, 3)"),
    "few classes": (in_config(class_names=["a"]), CLASSES + "['a']"),
    "class numbers": (in_config(class_names=[1, 2, 3]), CLASSES + "[1, 2, 3]"),
    "a class name": (in_config(class_names="abc"), CLASSES + "abc"),
    "standardisation": (
        in_config(standardisation={"mean": [1.0]}),
        "config.json: a standardisation must have the keys mean and scale",
    ),
    "few means": (
        in_config(standardisation={"mean": [1.0], "scale": [1.0]}),
        "config.json: the standardisation has 1 features",
    ),
    "seed": (in_config(seed=-1), "config.json: seed must lie in 0 .."),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_one_clear_line(
    pe: Pe, files: Path, runs: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(runs / "torch" / "model", tmp_path / "model")
    change, words = BAD_MODELS[name]
    change(tmp_path / "model")
    assert words in pe("predict", "model", "--data", files / "good.npz", code=2)


def test_a_run_that_cannot_go_on_is_one_clear_line(pe: Pe, files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "good.npz", tmp_path / "mine.npz")
    line = ("train", "--framework=torch", "--data=mine.npz", *TINY, "--epochs=2", "--out=run")
    pe(*line, "--stop-at=1")
    for text, words in (
        ("{", "config.json is not valid JSON"),
        ("[]", "must hold an object"),
        ("{}", "config.json is not that of a run"),
    ):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged" / "config.json").write_text(text)
        assert words in pe("resume", "damaged", code=2)
    with np.load(files / "good.npz") as arrays:
        np.savez(tmp_path / "mine.npz", inputs=arrays["inputs"] + 1, labels=arrays["labels"])
    assert "data_sha256 is" in pe("resume", "run", code=2)
    (tmp_path / "mine.npz").unlink()
    assert "mine.npz: no such file; check the path" in pe("resume", "run", code=2)


# Places that cannot be written to.


def test_a_folder_in_use_is_refused_before_any_work(pe: Pe, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for out in ("used", "used/notes.txt"):
        found = pe(*DUMMY.split(), "--out", out, code=2)
        assert found == f"{out} already exists and is not empty; choose another --out or remove it"
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_to_is_one_clear_line(
    pe: Pe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "there")

    remedy = "choose a path that can be read and written"
    (tmp_path / "file").write_text("")
    found = pe(*DUMMY.split(), *TINY, "--out", "file/run", code=2).splitlines()[-1]
    assert found.endswith(f"file/run: not a directory; {remedy}")
    monkeypatch.setattr(Path, "mkdir", refuse)
    found = pe(*DUMMY.split(), *TINY, "--out", "run", code=2).splitlines()[-1]
    assert found.endswith(f"there: permission denied; {remedy}")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert pe(*DUMMY.split(), *TINY, "--json", "x.json", code=2) == (
        "the folder of --json x.json cannot be written to (Permission denied); choose another"
    )


# Errors that are nobody's input.


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("pe_cli.data_source.load", load)


ERRORS: list[tuple[Exception, str]] = [
    (MemoryError("Unable to allocate 3 TiB"), "out of memory (Unable to allocate 3 TiB); make "),
    (RuntimeError("can't allocate memory: you tried"), "out of memory (can't allocate memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "out of memory (RESOURCE_EXHAUSTED"),
    (OSError(28, "No space left", "x"), "x: no space left; make room there; a run that stopped"),
]


@pytest.mark.parametrize(("error", "words"), ERRORS)
def test_a_machine_that_is_too_small_is_one_clear_line(
    pe: Pe, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    fail_with(monkeypatch, error)
    assert pe(*DUMMY.split(), code=2).startswith(words)


@pytest.mark.parametrize(
    "error", [KeyError("name"), ValueError("shapes"), RuntimeError("x"), OSError("no path")]
)
def test_a_bug_is_a_traceback_and_asks_for_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_with(monkeypatch, error)
    assert main(DUMMY.split()) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert type(error).__name__ in lines[-2]
    assert lines[-1].startswith("pe: this is a bug")
    assert "report" in lines[-1]


def test_traceback_on_request(pe: Pe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown data"):
        pe("train", "--framework", "torch", "--data", "dumy")


# Frameworks that are not there.


def test_a_missing_framework_is_named_with_its_extra(
    pe: Pe, files: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pe_core.training.backends._version", lambda name: None)
    for line in (DUMMY, "parity", "demo", f"predict {runs / 'torch'} --data {files / 'good.npz'}"):
        assert pe(*line.split(), code=2) == (
            "framework 'torch' needs torch, not installed here; install with: pip install "
            "'positional-encoding[torch]'"
        )
    found = pe(*DUMMY.replace("torch", "flax").split(), code=2)
    assert "needs flax, jax, optax, not installed" in found
    assert "not installed; install with: pip install 'positional-encoding[flax]'" in pe("list")


def test_a_framework_that_cannot_be_imported_is_one_clear_line(
    pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pe_flax.engine", None)
    found = pe(*DUMMY.replace("torch", "flax").split(), code=2)
    assert found.startswith("framework 'flax' is installed but cannot be imported (")
    assert found.endswith("pip install --force-reinstall 'positional-encoding[flax]'")


BLOCKER = """
import importlib.metadata, sys
found = importlib.metadata.Distribution.from_name
def from_name(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.Distribution.from_name = from_name
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_flax_works_where_torch_is_not_installed(files: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    line = ("--data", files / "good.npz", *TINY, "--out", tmp_path / "run")
    with (
        process("train", "--framework=torch", *line, path=tmp_path) as refused,
        process("train", "--framework=flax", *line, path=tmp_path) as done,
    ):
        assert refused.communicate()[1].startswith("pe: error: framework 'torch' needs torch, not")
        assert refused.returncode == 2
        output, error = done.communicate()
        assert (done.returncode, error) == (0, "")
        assert "\x1b" not in output
        assert "\r" not in output
