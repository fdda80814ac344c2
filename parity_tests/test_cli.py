"""The command `pe`: each bad input is one clear line and an exit code, each good one gives the same
in both frameworks.
"""

from __future__ import annotations

import json
import os
import pty
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np
import pytest
import safetensors.numpy

import pe_torch.engine
from pe_cli import demo, listing
from pe_cli.main import COMMANDS, main
from pe_core import ComputeConfig, ModelConfig, TrainConfig
from pe_core.data import DATA_NAMES, load, read
from pe_core.encodings import ENCODINGS
from pe_core.storage.model_directory import load_model
from pe_core.training.backends import backends
from pe_core.training.loop import predict
from pe_parity.budgets import budget, distance
from pe_parity.check import default_model

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("torch", "flax")
COUNT, LENGTH, FEATURES, NAMES = 40, 6, 3, ("cat", "dog", "owl")
TINY = ("--epochs=1", "--d-model=8", "--num-heads=2", "--num-layers=1", "--d-ff=8")
WIDTH = 100

# Frozen: to add, rename or remove an option of the command or a field of a config is a change that
# users see.
OPTIONS = {
    "train": (
        "config framework data test encoding d-model num-heads num-layers d-ff norm activation "
        "attention-bias pooling dropout epochs "
        "batch-size learning-rate schedule warmup-steps weight-decay max-gradient-norm optimizer "
        "seed precision dropout-rng "
        "checkpoint-every stop-at out json"
    ),
    "resume": "framework checkpoint-every stop-at json",
    "predict": "data framework seed precision json",
    "parity": "config encoding depth steps precision calibrate report json",
    "trace": "impl out config model seed masked depth precision",
    "compare": "reference precision json",
    "demo": "seed out json",
    "list": "",
}
CONFIG_FIELDS = {
    ModelConfig: (
        "inputs num_classes d_model num_heads num_layers d_ff encodings norm activation "
        "attention_bias pooling dropout"
    ),
    TrainConfig: (
        "epochs batch_size learning_rate schedule warmup_steps weight_decay beta1 beta2 epsilon "
        "max_gradient_norm optimizer seed"
    ),
    ComputeConfig: "precision dropout_rng rows_per_block",
}


class Pe(Protocol):
    """Runs the command in this process and returns its standard output; a failure must be exactly
    one line.
    """

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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data files, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    inputs = 5 + 3 * random.normal(size=(COUNT, LENGTH, FEATURES))
    labels = np.array(NAMES)[np.arange(COUNT) % len(NAMES)]
    lengths = random.integers(2, LENGTH + 1, COUNT)
    mask = np.arange(LENGTH) < lengths[:, None]

    def changed(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
        copy = array.copy()
        copy[place] = value
        return copy

    arrays: dict[str, dict[str, np.ndarray]] = {
        "good": {"mask": mask},
        "lengths": {"lengths": lengths},
        "tokens": {"inputs": random.integers(0, 7, (COUNT, LENGTH))},
        "more-tokens": {"inputs": np.full((COUNT, LENGTH), 9)},
        "five-features": {"inputs": random.normal(size=(COUNT, LENGTH, 5))},
        "long": {"inputs": random.normal(size=(COUNT, LENGTH + 1, FEATURES))},
        "rank": {"inputs": inputs[..., None]},
        "complex": {"inputs": inputs.astype(complex)},
        "text": {"inputs": inputs.astype(str)},
        "nan": {"inputs": changed(inputs, (3, 0, 1), np.nan), "mask": mask},
        "empty": {"inputs": inputs[:0], "labels": labels[:0]},
        "mask-shape": {"mask": mask[:, :4]},
        "mask-type": {"mask": mask.astype(float)},
        "mask-row": {"mask": changed(mask, 4, False)},
        "length-range": {"lengths": lengths + LENGTH},
        "label-count": {"labels": labels[:5]},
        "label-type": {"labels": np.arange(COUNT) / 2},
        "other-labels": {"labels": np.array(["yak", "emu"])[np.arange(COUNT) % 2]},
        "one-class": {"labels": np.zeros(COUNT, int)},
        "one-example": {"inputs": inputs[:1], "labels": labels[:1]},
        "misspelt": {"label": labels},
        "ünï [bold]ço": {"mask": mask},
    }
    for name, changes in arrays.items():
        np.savez(folder / f"{name}.npz", **({"inputs": inputs, "labels": labels} | changes))  # type: ignore[arg-type]
    np.savez(folder / "unlabelled.npz", inputs=inputs, mask=mask)
    whole = (folder / "good.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    (folder / "nothing.npz").write_bytes(b"")
    (folder / "table.csv").write_text("1,2\n")
    header = (
        "@univariate false\n@dimensions 2\n@equalLength false\n@classLabel true up down\n@data\n"
    )
    for part in ("TRAIN", "TEST"):
        lines = []
        for number in range(20):
            values = random.normal(size=(2, int(random.integers(3, 8)))).round(3).astype(str)
            values[0, 1] = "?"
            lines.append(":".join([*(",".join(row) for row in values), ("up", "down")[number % 2]]))
        (folder / f"Toy_{part}.ts").write_text(
            "@timeStamps false\n" + header + "\n".join(lines) + "\n"
        )
    (folder / "word.ts").write_text("@timeStamps false\n" + header + "1,2,x:3,4,5:up\n")
    (folder / "class.ts").write_text("@timeStamps false\n" + header + "1,2:3,4:up\n1,2:3,4:left\n")
    return folder


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each framework on the good file, with its JSON beside it."""
    folder = tmp_path_factory.mktemp("runs")
    data = ("--data", str(files / "good.npz"), "--test", str(files / "lengths.npz"))
    for name in FRAMEWORKS:
        out = ("--out", str(folder / name), "--json", str(folder / f"{name}.json"))
        assert (
            main(
                ["train", "--framework", name, *data, *TINY, "--epochs=2", "--batch-size=16", *out]
            )
            == 0
        )
    return folder


def strict(text: str) -> Any:
    """Parse JSON that holds no NaN and no infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


# What there is.


def test_options_and_fields_are_those_that_users_know() -> None:
    found = {
        name: [option.removeprefix("--") for option in command.options.names()]
        for name, command in COMMANDS.items()
    }
    assert found == {name: options.split() for name, options in OPTIONS.items()}
    assert {kind: [field.name for field in fields(kind)] for kind in CONFIG_FIELDS} == {
        kind: names.split() for kind, names in CONFIG_FIELDS.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable(pe: Pe, command: str) -> None:
    text = pe(command, "--help")
    assert text.startswith(f"usage: pe {command}")
    assert re.findall(r"^  --([a-z-]+)", text, re.MULTILINE) == OPTIONS[command].split()
    assert not re.search(
        "type:|null,|None|<class|_",
        text.replace("null clips", "").replace("warmup_cosine", "").replace("d_model", ""),
    )
    assert max(map(len, text.splitlines())) <= WIDTH


def test_help_names_every_command_and_exit_code(pe: Pe) -> None:
    text = pe("--help")
    assert re.findall(r"^  (\w+)  ", text, re.MULTILINE) == list(COMMANDS)
    assert "130 interrupted" in text


def test_list_names_all_encodings_options_data_and_frameworks(pe: Pe) -> None:
    text = pe("list")
    assert set(DATA_NAMES) <= set(listing.DATA)
    for word in (
        *DATA_NAMES,
        *ENCODINGS,
        *(
            name
            for kind in ENCODINGS.values()
            for name in get_type_hints(kind.__init__)
            if name != "return"
        ),
        *FRAMEWORKS,
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= WIDTH


# Bad command lines.

DUMMY = "train --framework torch --data dummy"
BAD_LINES = {
    "": (
        "pe needs a command: train, resume, predict, parity, trace, compare, demo, list; see pe "
        "--help"
    ),
    "trian": "unknown command 'trian'; did you mean 'train'?",
    "--framework torch": (
        "pe has no option '--framework'; options go behind a command; see pe --help"
    ),
    "train": "pe train needs --framework and --data; see pe train --help",
    "train --data dummy": "pe train needs --framework; see pe train --help",
    "predict": "pe predict needs MODEL and --data; see pe predict --help",
    "predict x --data y z": "pe predict does not know what 'z' belongs to; see pe predict --help",
    "resume": "pe resume needs RUN; see pe resume --help",
    "resume none": (
        "none is not the folder of a run, config.json is missing; pass one that `pe train` wrote"
    ),
    f"{DUMMY} --stop-at 0": "stop_at must lie in 1 .. 2147483648, got 0",
    f"{DUMMY} --checkpoint-every -5": "checkpoint_every must lie in 1 .. 2147483648, got -5",
    "resume none --stop-at soon": "--stop-at must be a whole number or null, got 'soon'",
    "list all": "pe list does not know what 'all' belongs to; see pe list --help",
    f"{DUMMY} --epoch 3": "pe train has no option '--epoch'; did you mean '--epochs'?",
    f"{DUMMY} --bacth_size=3": (
        "pe train has no option '--bacth-size'; did you mean '--batch-size'?"
    ),
    f"{DUMMY} --epochs": "--epochs needs a value; see pe train --help",
    f"{DUMMY} --epochs two": "--epochs must be a whole number, got 'two'",
    f"{DUMMY} --epochs 1.5": "--epochs must be a whole number, got '1.5'",
    f"{DUMMY} --d-ff wide": "--d-ff must be a whole number or null, got 'wide'",
    f"{DUMMY} --learning-rate nan": "--learning-rate must be a finite number, got 'nan'",
    f"{DUMMY} --max-gradient-norm inf": (
        "--max-gradient-norm must be a finite number or null, got 'inf'"
    ),
    f"{DUMMY} --attention-bias 3": "--attention-bias must be true or false, got '3'",
    f"{DUMMY} --pooling meen": "unknown pooling 'meen'; did you mean 'mean'?",
    f"{DUMMY} --norm layer": "unknown norm 'layer'; known: post, pre",
    f"{DUMMY} --precision half": "unknown precision 'half'; known: bfloat16, float32, float64",
    f"{DUMMY} --schedule cosine": "unknown schedule 'cosine'; did you mean 'warmup_cosine'?",
    f"{DUMMY} --optimizer stck": "unknown optimizer 'stck'; did you mean 'stock'?",
    "train --framework troch --data dummy": "unknown framework 'troch'; did you mean 'torch'?",
    "train --framework torch --data dumy": "unknown data 'dumy', the names are dummy, order, "
    "digits, digits64 or a path ending in .npz or "
    ".ts; did you mean 'dummy'?",
    "train --framework torch --data ./dummy": "./dummy: a data file must end in .npz or .ts, got "
    "'no ending'; convert it, for example "
    "with numpy.savez",
    f"{DUMMY} --test dummy": (
        "a test file does not go with dummy, got dummy; leave it out, or give a training file too"
    ),
    f"{DUMMY} --encoding lerned": "unknown encoding 'lerned'; did you mean 'learned'? (for one "
    "of your own, "
    "give --import MODULE or call register first)",
    f"{DUMMY} --encoding learned:max_len=5": (
        "encoding 'learned' has no option 'max_len'; did you mean 'max_length'?"
    ),
    f"{DUMMY} --encoding learned:layers": (
        "option 'layers' of encoding 'learned' has no value; write layers=VALUE"
    ),
    f"{DUMMY} --encoding learned:max_length=x": (
        "encoding 'learned': max_length of a learned table must be an integer, got 'x'"
    ),
    f"{DUMMY} --encoding none:a=b": (
        "encoding 'none' has no options, got 'a=b'; write --encoding none"
    ),
    f"{DUMMY} --encoding sinusoidal:base=nan": (
        "base of a sinusoidal encoding must be finite and lie in [1, inf], got nan"
    ),
    f"{DUMMY} --encoding learned:max_length=5": "the train part of dummy has a sequence of 10 "
    "steps, but encoding 'learned' has "
    "max_length=5; train with the encoding learned:max_length=10 or sinusoidal, or cut the "
    "sequences",
    f"{DUMMY} --num-heads 3": (
        "d_model must be divisible by num_heads, got d_model=64 and "
        "num_heads=3; the nearest that fits is d_model=63"
    ),
    f"{DUMMY} --warmup-steps 5": (
        "warmup_steps=5 needs schedule='warmup_cosine', got schedule='constant'"
    ),
    f"{DUMMY} --schedule warmup_cosine --warmup-steps 160": (
        "warmup_steps must be fewer than the steps of the run, got 160 of 160"
    ),
    f"{DUMMY} --out=": "--out needs the name of a folder, got ''; for example runs/first",
    f"{DUMMY} --json=": "--json needs the name of a file, got ''; for example result.json",
    f"{DUMMY} --json .": (
        "--json needs the name of a file, got '.', a folder; for example result.json"
    ),
    f"{DUMMY} --json none/x.json": "the folder of --json none/x.json does not exist; make it first",
    f"{DUMMY} --config": "--config needs a value; pass a YAML or JSON file with options",
    f"{DUMMY} --config none.yaml": "--config none.yaml: no such file; check the path",
    "predict none --data dummy": (
        "none is not a model directory, config.json is missing; pass a "
        "directory that save() or `pe train` wrote"
    ),
    "parity --depth foward": "unknown depth 'foward'; did you mean 'forward'?",
    "parity --precision float16": "unknown precision 'float16'; did you mean 'bfloat16'?",
    "parity --calibrate 0": "calibrate must lie in 1 .. 2147483648, got 0",
    "parity --calibrate --encoding none": (
        "--encoding does not go with --calibrate or --report, which choose their models "
        "themselves; leave it out"
    ),
    "parity --report=": "--report needs a folder, got ''; for example --report docs",
    "parity --steps 0": "steps must lie in 1 .. 10000, got 0",
    "parity --steps 5 --depth step": (
        "--steps 5 goes with --depth run, got --depth step; leave one of them out"
    ),
    "parity --config none.json": "none.json does not exist; check the path",
    "demo --seed -1": "seed must lie in 0 .. 9223372036854775807, got -1",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_one_clear_line(pe: Pe, line: str, tmp_path: Path) -> None:
    assert pe(*line.split(), code=2) == BAD_LINES[line]
    assert list(tmp_path.iterdir()) == []


COUNTS = ("epochs", "batch_size", "d_model", "num_heads", "num_layers", "d_ff")
BAD_NUMBERS = {
    (name, value): "must lie in 1 .."
    for name in COUNTS
    for value in ("0", "-1", "99999999999999999999")
}
BAD_NUMBERS |= {
    (name, value): "must lie in 0 .."
    for name in ("seed", "warmup_steps")
    for value in ("-1", "99999999999999999999")
}
BAD_NUMBERS |= {
    (name, "-1"): r"must be finite and lie in \[0, inf\]"
    for name in ("learning_rate", "weight_decay")
}
BAD_NUMBERS |= {
    ("dropout", value): r"must be finite and lie in \[0, 1\)" for value in ("-0.1", "1.0")
}
BAD_NUMBERS |= {
    ("max_gradient_norm", value): r"must be finite and lie in \(0, inf\]" for value in ("0", "-1")
}
BAD_NUMBERS |= {("d_model", "100000000"): "", ("encoding", "learned:max_length=2000000000"): ""}


@pytest.mark.parametrize(("name", "value"), BAD_NUMBERS)
def test_a_number_out_of_range_is_one_clear_line(pe: Pe, name: str, value: str) -> None:
    found = pe(*DUMMY.split(), f"--{name}", value, code=2)
    rule = (
        f"{name} {BAD_NUMBERS[name, value]}.*, got {value}"
        if BAD_NUMBERS[name, value]
        else r"out of memory \([\d,]+ weights need .*"
    )
    assert re.match(rule, found), found


BAD_CONFIGS = {
    "epochz: 1\n": "pe train has no option 'epochz'; did you mean 'epochs'?",
    "epochs: two\n": "epochs must be a whole number, got 'two'",
    "epochs: [1]\n": "epochs must be one value, got [1]; write epochs: VALUE",
    "[1, 2]\n": "must hold options such as epochs: 5, got [1, 2]; write one NAME: VALUE a line",
    "": "must hold options such as epochs: 5, got nothing; write one NAME: VALUE a line",
    "epochs: [1\n": "not valid YAML or JSON",
    "epochs: \0\n": "not valid YAML or JSON",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_bad_file_of_options_is_one_clear_line(pe: Pe, text: str, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(text)
    assert pe(*DUMMY.split(), "--config", "options.yaml", code=2).startswith(
        f"--config options.yaml: {BAD_CONFIGS[text]}"
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_file_of_options_yields_to_the_line(
    pe: Pe, files: Path, tmp_path: Path, first: bool
) -> None:
    (tmp_path / "options.yaml").write_text(
        "epochs: 7\nbatch-size: 11\nmax_gradient_norm: null\nlearning_rate: 1e-2\nframework: "
        "torch\n"
    )
    file, line = ("--config", "options.yaml"), (*TINY, "--data", files / "good.npz", "--out", "run")
    pe("train", *(*file, *line) if first else (*line, *file))
    found = TrainConfig.from_json(strict((tmp_path / "run" / "config.json").read_text())["train"])
    assert found == TrainConfig(epochs=1, batch_size=11, max_gradient_norm=None, learning_rate=1e-2)


# Bad data.

BAD_DATA = {
    "missing.npz": "no such file",
    "table.csv": "a data file must end in .npz or .ts",
    "cut.npz": "not an .npz archive, or cut short",
    "nothing.npz": "not an .npz archive, or cut short",
    "flipped.npz": "damaged",
    "rank.npz": "inputs must have shape",
    "complex.npz": "inputs must be real numbers, got dtype complex128",
    "text.npz": "inputs must be real numbers, got dtype <U",
    "nan.npz": "inputs hold nan in example 3, step 0, feature 1",
    "empty.npz": "inputs must have shape .* none of them 0",
    "mask-shape.npz": "mask (40, 4) does not fit inputs (40, 6, 3)",
    "mask-type.npz": "mask must be a bool array",
    "mask-row.npz": "example 4 has no real step",
    "length-range.npz": "is outside 1 .. 6",
    "label-count.npz": "labels (5,) do not fit 40 examples",
    "label-type.npz": "labels must be integers or strings",
    "one-class.npz": "one class only, '0'",
    "one-example.npz": "has 1 example",
    "misspelt.npz": "unknown array label",
    "unlabelled.npz": "has no labels to train on",
    "word.ts": "line 7, dimension 1: 'x' is not a number",
    "class.ts": "line 8: label 'left' is not among the classes up, down",
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_one_clear_line(pe: Pe, files: Path, name: str, tmp_path: Path) -> None:
    found = pe("train", "--framework", "flax", "--data", files / name, code=2)
    assert re.search(re.escape(BAD_DATA[name]).replace(r"\.\*", ".*"), found), found
    assert Path(name).stem in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("five-features", "has 5 features, the training file has 3 features"),
        ("other-labels", "label 'yak' is not among the classes cat, dog, owl"),
        ("unlabelled", "has no labels to test against"),
        ("tokens", "has tokens, the training file has 3 features"),
    ],
)
def test_a_test_file_must_fit(pe: Pe, files: Path, test: str, words: str) -> None:
    found = pe(
        "train",
        "--framework",
        "torch",
        "--data",
        files / "good.npz",
        "--test",
        files / f"{test}.npz",
        code=2,
    )
    assert f"{test}.npz" in found
    assert words in found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "five-features.npz",
            "five-features.npz has 5 features, but the model takes num_features=3",
        ),
        ("long.npz", "has a sequence of 7 steps, but encoding 'learned' has max_length=6"),
        ("other-labels.npz", "label 'yak' is not among the classes cat, dog, owl"),
        ("nan.npz", "inputs hold nan in example 3"),
    ],
)
def test_predict_refuses_data_that_do_not_fit(
    pe: Pe, files: Path, runs: Path, data: str, words: str
) -> None:
    assert words in pe("predict", runs / "torch", "--data", files / data, code=2)


def test_predict_refuses_other_built_in_data_and_unknown_tokens(pe: Pe, files: Path) -> None:
    pe("train", "--framework=torch", "--data=dummy", "--out=labels", *TINY)
    assert "order has the classes a_first, b_first, the model has 0, 1" in pe(
        "predict", "labels", "--data", "order", code=2
    )
    pe("train", "--framework=torch", "--data", files / "tokens.npz", "--out=tokens", *TINY)
    assert "more-tokens.npz: token 9 lies outside 0 .. 6" in pe(
        "predict", "tokens", "--data", files / "more-tokens.npz", code=2
    )
    assert "has 3 features, but the model takes tokens" in pe(
        "predict", "tokens", "--data", files / "good.npz", code=2
    )


# Bad models.


def in_config(**changes: Any) -> Callable[[Path], None]:
    """Change the config.json of a model; a name with a dot changes the config of the model
    itself.
    """

    def change(model: Path) -> None:
        record = json.loads((model / "config.json").read_text())
        for name, value in changes.items():
            (record["model"] if name in record["model"] or name == "d_mdel" else record)[name] = (
                value
            )
        (model / "config.json").write_text(json.dumps(record))

    return change


def in_weights(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "model.safetensors"
        arrays = safetensors.numpy.load_file(path) | {
            name.replace("__", "."): value for name, value in changes.items()
        }
        safetensors.numpy.save_file(
            {name: array for name, array in arrays.items() if array is not None}, path
        )

    return change


def in_bytes(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(model: Path) -> None:
        (model / file).write_bytes(change((model / file).read_bytes()))

    return changed


ZEROS = np.zeros(3, np.float32)
BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (in_bytes("model.safetensors", lambda whole: whole[:-100]), ("model.safetensors is " "damaged")),
    "empty": (in_bytes("model.safetensors", lambda whole: b""), "model.safetensors is damaged"),
    "flipped": (in_bytes("model.safetensors", lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]), "is damaged (the SHA-256"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), ("model.safetensors is " "missing")),
    "no config": (lambda model: (model / "config.json").unlink(), "config.json is missing"),
    "not JSON": (in_bytes("config.json", lambda whole: whole[:-5]), ("config.json is not valid " "JSON")),
    "not text": (in_bytes("config.json", lambda whole: b"\xff\xfe"), ("config.json is not valid " "JSON")),
    "nested": (in_bytes("config.json", lambda whole: b"[" * 100_000), ("config.json is not valid " "JSON")),
    "a list": (in_bytes("config.json", lambda whole: b"[1]"), "config.json has format [1]"),
    "a later format": (in_config(format=9), "has format 9, this version reads formats 1 and 2"),
    "unknown field": (in_config(d_mdel=8), "unknown field 'd_mdel' (did you mean 'd_model'?)"),
    "unknown encoding": (in_config(encodings=[{"name": "lerned"}]), ("unknown encoding 'lerned'; " "did you mean 'learned'?")),
    "unknown option": (in_config(encodings=[{"name": "learned", "length": 6}]), ("encoding " "'learned' has " "no option " "'length'")),
    "another size": (in_config(d_model=16), "misshapen: input.weight is (8, 3), not (16, 3)"),
    "names": (in_weights(head__bias=None, heda__bias=ZEROS), ("missing: head.bias; unexpected: " "heda.bias; load it with")),
    "shape": (in_weights(head__bias=ZEROS[:2]), "misshapen: head.bias is (2,), not (3,)"),
    "dtype": (in_weights(head__bias=ZEROS.astype(np.int32)), "head.bias has dtype I32, known are"),
    "not finite": (in_weights(head__bias=ZEROS + np.inf), "head.bias holds NaN or infinity"),
    "too few classes": (in_config(class_names=["a"]), ("config.json: class_names must be 3 " "different names, got ['a']")),
    "class numbers": (in_config(class_names=[1, 2, 3]), "class_names must be 3 different names"),
    "a class name": (in_config(class_names="abc"), "class_names must be 3 different names"),
    "standardisation": (in_config(standardisation={"mean": [1.0]}), ("config.json: a " "standardisation must have " "the keys mean and scale")),
    "few means": (in_config(standardisation={"mean": [1.0], "scale": [1.0]}), ("config.json: the " "standardisation " "has 1 features")),
    "seed": (in_config(seed=-1), "config.json: seed must lie in 0 .."),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_one_clear_line(
    pe: Pe, files: Path, runs: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(runs / "torch" / "model", tmp_path / "model")
    change, words = BAD_MODELS[name]
    change(tmp_path / "model")
    assert words in pe("predict", "model", "--data", files / "good.npz", code=2)


# Places that cannot be written to.


def test_a_folder_in_use_is_refused_before_any_work(pe: Pe, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for out in ("used", "used/notes.txt"):
        assert (
            pe(*DUMMY.split(), "--out", out, code=2)
            == f"{out} already exists and is not empty; choose another --out or remove it"
        )
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_made_is_one_clear_line(pe: Pe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = pe(*DUMMY.split(), *TINY, "--out", "file/run", code=2).splitlines()[-1]
    assert found.endswith("file/run: not a directory; choose a path that can be read and written")


def test_a_folder_without_permission_is_one_clear_line(
    pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr(Path, "mkdir", refuse)
    found = pe(*DUMMY.split(), *TINY, "--out", "run", code=2).splitlines()[-1]
    assert found.endswith("there: permission denied; choose a path that can be read and written")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = pe(*DUMMY.split(), *TINY, "--json", "x.json", code=2)
    assert (
        found
        == "the folder of --json x.json cannot be written to (Permission denied); choose another"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_out_of_memory_is_one_clear_line(
    pe: Pe, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("pe_cli.train.load", load)
    assert (
        pe(*DUMMY.split(), code=2)
        == f"out of memory ({error}); make the model, the batch or the data smaller"
    )


def test_a_fault_of_the_program_is_not_taken_for_a_bad_input(
    pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr("pe_cli.train.load", load)
    with pytest.raises(KeyError):
        pe(*DUMMY.split())


def test_traceback_on_request(pe: Pe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown data"):
        pe("train", "--framework", "torch", "--data", "dumy")


# Good runs.


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_train_writes_what_it_says(runs: Path, name: str) -> None:
    record = strict((runs / f"{name}.json").read_text())
    figures = [
        f"{part}_{kind}"
        for part in ("train", "validation", "test")
        for kind in ("loss", "accuracy")
    ]
    assert set(record) == {
        "framework",
        "data",
        *figures,
        "seconds_per_step",
        "steps",
        "finished",
        "model",
        "versions",
    }
    assert record["framework"] == name
    assert Path(record["model"]) == runs / name / "model"
    assert {"python", "numpy", "torch", "jax", "cores"} <= set(record["versions"])
    assert sorted(path.name for path in (runs / name).iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model",
    ]
    lines = [strict(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "epoch"] * 2
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2, 3]
    assert record["steps"] == 4
    assert {
        key: lines[-1][key] for key in ("train_loss", "validation_loss", "validation_accuracy")
    } == {key: record[key] for key in ("train_loss", "validation_loss", "validation_accuracy")}
    config = strict((runs / name / "config.json").read_text())
    assert TrainConfig.from_json(config["train"]).epochs == 2
    assert ModelConfig.from_json(config["model"]).num_classes == len(NAMES)


def test_the_frameworks_train_alike(runs: Path) -> None:
    one, other = (load_model(runs / name / "model") for name in FRAMEWORKS)
    assert one.config == other.config
    assert one.details == other.details
    assert one.details["class_names"] == list(NAMES)
    a, b = (strict((runs / f"{name}.json").read_text()) for name in FRAMEWORKS)
    assert {key: a[key] for key in a if key.endswith("accuracy")} == {
        key: b[key] for key in b if key.endswith("accuracy")
    }


@pytest.mark.parametrize("trained", FRAMEWORKS)
def test_predict_gives_the_same_in_either_framework(
    pe: Pe, files: Path, runs: Path, tmp_path: Path, trained: str
) -> None:
    texts, records = {}, {}
    for name in FRAMEWORKS:
        model = runs / trained if name == trained else runs / trained / "model"
        texts[name] = pe(
            "predict",
            model,
            "--data",
            files / "good.npz",
            "--framework",
            name,
            "--json",
            f"{name}.json",
        )
        records[name] = strict((tmp_path / f"{name}.json").read_text())
    assert texts["torch"] == texts["flax"]
    assert (
        texts["torch"].splitlines()[-1]
        == f"accuracy {records['torch']['accuracy']:.3f} over {COUNT} sequences"
    )
    torch, flax = (records[name] for name in FRAMEWORKS)
    assert set(torch["predictions"]) <= set(NAMES)
    assert torch["predictions"] == flax["predictions"]
    one, other = (np.array(record["probabilities"]) for record in (torch, flax))
    assert distance(one, other, one) <= budget("head", "float32").bound


def test_predict_standardises_as_in_training(
    pe: Pe, files: Path, runs: Path, tmp_path: Path
) -> None:
    saved = load_model(runs / "torch" / "model")
    data = load(files / "good.npz", test=files / "lengths.npz")
    assert data.standardisation is not None
    assert saved.details["standardisation"] == data.standardisation.to_json()
    pe(
        "predict",
        runs / "torch",
        "--data",
        files / "unlabelled.npz",
        "--framework=torch",
        "--json=all.json",
    )
    engine = pe_torch.engine.Engine(saved.config, saved.arrays, TrainConfig(), ComputeConfig(), 0)
    assert data.test is not None
    logits = predict(engine, data.test, COUNT)  # the same sequences, standardised by `load`
    record = strict((tmp_path / "all.json").read_text())
    assert "accuracy" not in record
    assert record["predictions"] == [NAMES[index] for index in logits.argmax(axis=1)]
    raw = predict(engine, read(files / "good.npz", NAMES), COUNT)
    assert distance(raw, logits, logits) > budget("head", "float32").fault


@pytest.mark.parametrize("data", ["tokens.npz", "Toy_TRAIN.ts", "ünï [bold]ço.npz", "dummy"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_other_data(pe: Pe, files: Path, tmp_path: Path, name: str, data: str) -> None:
    given = [data if data == "dummy" else str(files / data)]
    if data.endswith(".ts"):
        given += ["--test", str(files / "Toy_TEST.ts")]
    out = f"{name}-{Path(data).stem}"
    text = pe(
        "train",
        "--framework",
        name,
        "--data",
        *given,
        *TINY,
        "--batch-size=999",
        "--out",
        out,
        "--json=figures.json",
    )
    assert f"model in {out}/model" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert ("test_accuracy" in strict((tmp_path / "figures.json").read_text())) == data.endswith(
        ".ts"
    )
    text = pe("predict", out, "--data", given[-1], "--framework", "torch")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_predict_takes_the_split_of_the_training(pe: Pe, tmp_path: Path) -> None:
    pe(
        "train",
        "--framework=torch",
        "--data=digits",
        "--seed=3",
        *TINY,
        "--out=run",
        "--json=train.json",
    )
    pe("predict", "run", "--data=digits", "--json=predict.json")
    trained, predicted = (
        strict((tmp_path / f"{name}.json").read_text()) for name in ("train", "predict")
    )
    assert predicted["accuracy"] == trained["test_accuracy"]


def test_folders_are_numbered_where_none_is_given(pe: Pe, files: Path, tmp_path: Path) -> None:
    for folder in ("good-torch", "good-torch-2"):
        assert f"model in runs/{folder}/model" in pe(
            "train", "--framework=torch", "--data", files / "good.npz", *TINY
        )


def test_underscores_are_taken_for_hyphens(pe: Pe, files: Path, tmp_path: Path) -> None:
    pe(
        "train",
        "--framework=torch",
        "--data",
        files / "good.npz",
        *TINY,
        "--batch_size",
        "7",
        "--out=run",
    )
    assert strict((tmp_path / "run" / "config.json").read_text())["train"]["batch_size"] == 7


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_number_that_is_not_finite_stops_the_run(pe: Pe, tmp_path: Path, name: str) -> None:
    text = pe(
        "train",
        "--framework",
        name,
        "--data",
        "dummy",
        *TINY,
        "--learning-rate=1e30",
        "--out=run",
        code=1,
    )
    assert re.search(
        r"step 1 \(epoch 0\): loss nan, .*the first tensor that is not finite is layers\.0\.\S+;",
        text,
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "metrics.jsonl",
    ]
    assert [
        strict(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ] == [0]


def test_an_evaluation_that_is_not_finite_stops_the_run(
    pe: Pe, files: Path, tmp_path: Path
) -> None:
    data = ("--data", files / "good.npz", "--batch-size=999")
    text = pe(
        "train", "--framework=torch", *data, *TINY, "--learning-rate=1e38", "--out=run", code=1
    )
    assert re.search(
        r"after step 0 \(epoch 0\): loss nan in evaluation; the first tensor that is not finite "
        r"is \S+;",
        text,
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "metrics.jsonl",
    ]


# Going on with a run.


def test_a_run_goes_on_in_the_other_framework(pe: Pe, files: Path, tmp_path: Path) -> None:
    line = (
        "train",
        "--framework=torch",
        "--data",
        files / "good.npz",
        *TINY,
        "--epochs=2",
        "--batch-size=16",
        "--precision=float64",
    )
    pe(*line, "--out=whole", "--json=whole.json")
    text = pe(*line, "--out=part", "--stop-at=3", "--json=part.json")
    assert (
        text.splitlines()[-1]
        == "stopped after step 3 with a checkpoint; go on with: pe resume part"
    )
    stopped = strict((tmp_path / "part.json").read_text())
    assert (stopped["steps"], stopped["finished"]) == (3, False)
    pe("resume", "part", "--framework=flax", "--json=part.json")
    whole, part = (strict((tmp_path / f"{name}.json").read_text()) for name in ("whole", "part"))
    assert (part["steps"], part["finished"], part["framework"]) == (4, True, "flax")
    assert {key: part[key] for key in part if key.endswith("accuracy")} == {
        key: whole[key] for key in whole if key.endswith("accuracy")
    }
    one, other = (load_model(tmp_path / name / "model").arrays for name in ("whole", "part"))
    for name, array in one.items():
        assert (array.astype(np.float32) == other[name].astype(np.float32)).all(), name
    assert [
        strict(text)["step"]
        for text in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()
    ] == [0, 1, 2, 2, 3, 4]
    assert (
        pe("resume", "part", code=2)
        == "part is finished, its model is in part/model; train again for another run"
    )


def test_a_run_that_cannot_go_on_is_one_clear_line(pe: Pe, files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "good.npz", tmp_path / "mine.npz")
    pe(
        "train",
        "--framework=torch",
        "--data=mine.npz",
        *TINY,
        "--epochs=2",
        "--out=run",
        "--stop-at=1",
    )
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


# Parity.


def test_parity_of_a_saved_model(pe: Pe, runs: Path, tmp_path: Path) -> None:
    text = pe(
        "parity",
        "--config",
        runs / "flax" / "model" / "config.json",
        "--steps=3",
        "--precision=float64",
        "--json=all.json",
    )
    record = strict((tmp_path / "all.json").read_text())
    assert record["passed"] is True
    assert list(record["studies"]) == ["learned"]
    exact = record["studies"]["learned"]["float64"]
    assert exact["equal_after_rounding"] == exact["weights"]
    assert {row["name"].split("/")[0] for row in exact["rows"]} >= {
        "input",
        "loss",
        "gradient",
        "update",
        "weights",
    }
    assert text.splitlines()[-1] == "The frameworks agree."
    assert max(map(len, text.splitlines())) <= WIDTH


def test_parity_of_all_encodings(
    pe: Pe, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = {"torch": backends()["torch"]}
    monkeypatch.setattr("pe_cli.engines.backends", lambda: torch)
    line = (
        "parity",
        "--config",
        runs / "torch" / "config.json",
        "--depth=forward",
        "--json=all.json",
    )
    pe(*line, "--encoding=all")
    studies = strict((tmp_path / "all.json").read_text())["studies"]
    assert {name: list(one) for name, one in studies.items()} == dict.fromkeys(
        ["none", *ENCODINGS], ["float64", "float32"]
    )
    pe(*line, "--encoding=learned:max_length=4", "--precision=float32")
    studies = strict((tmp_path / "all.json").read_text())["studies"]
    assert {name: list(one) for name, one in studies.items()} == {
        "learned:max_length=4": ["float32"]
    }


def test_parity_fails_where_a_fault_is_planted(
    pe: Pe, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = pe_torch.engine.Engine.taps
    share = budget("input", "float32").fault

    def faulty(self: Any, *arguments: Any) -> dict[str, np.ndarray]:
        return {
            name: array * (1 + share) if name == "layers.0.norm1" else array
            for name, array in taps(self, *arguments).items()
        }

    monkeypatch.setattr(pe_torch.engine.Engine, "taps", faulty)
    line = (
        "parity",
        "--config",
        runs / "torch" / "config.json",
        "--depth=forward",
        "--precision=float32",
        "--json=all.json",
    )
    text = pe(*line, code=1)
    assert f"first out of budget: layers.0.norm1\ntorch {share:.1e}" in text
    assert "FAILED" in text
    assert text.splitlines()[-1] == "The frameworks do not agree."
    assert max(map(len, text.splitlines())) <= WIDTH
    assert strict((tmp_path / "all.json").read_text())["passed"] is False


def test_parity_fails_where_float64_ends_on_other_bits(
    pe: Pe, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pe_parity.check.same_bits", lambda arrays: arrays[0].size - 1)
    # torch in both places, which compiles nothing.
    monkeypatch.setattr("pe_cli.engines.forward_type", lambda name: pe_torch.engine.Engine)
    text = pe(
        "parity",
        "--config",
        runs / "torch" / "config.json",
        "--steps=2",
        "--precision=float64",
        code=1,
    )
    assert "FAILED: a run in float64 must end on the same bits" in text


def test_demo_in_small(pe: Pe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = TrainConfig(epochs=1, batch_size=500)
    small = ModelConfig(
        **(default_model().__dict__ | {"d_model": 8, "num_heads": 2, "num_layers": 1, "d_ff": 8})
    )
    # Its texts and its files are tested here; that both frameworks run it, `make demo` shows.
    monkeypatch.setattr("pe_cli.engines.forward_type", lambda name: pe_torch.engine.Engine)
    monkeypatch.setattr(demo, "ORDER_TRAINING", short)
    monkeypatch.setattr(
        demo, "TrainConfig", lambda **changes: TrainConfig(**(short.to_json() | changes))
    )
    monkeypatch.setattr(demo, "default_model", lambda: small)
    monkeypatch.setattr(
        demo,
        "ModelConfig",
        lambda **changes: ModelConfig(**(small.__dict__ | {"encodings": changes["encodings"]})),
    )
    text = pe("demo", "--out=demo", "--json=demo.json")
    assert max(map(len, text.splitlines())) <= WIDTH
    record = strict((tmp_path / "demo.json").read_text())
    assert record["order"]["none"] == dict.fromkeys(FRAMEWORKS, 0.5)
    assert set(record["parity"]) == {"float64", "float32"}
    pe("predict", "demo/torch", "--data=dummy", "--framework=flax")


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
    assert "needs flax, jax, optax, not installed" in pe(
        *DUMMY.replace("torch", "flax").split(), code=2
    )
    assert "not installed; install with: pip install 'positional-encoding[flax]'" in pe("list")


def test_a_framework_that_cannot_be_imported_is_one_clear_line(
    pe: Pe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pe_flax.engine", None)
    found = pe(*DUMMY.replace("torch", "flax").split(), code=2)
    assert found.startswith("framework 'flax' is installed but cannot be imported (")
    assert found.endswith("pip install --force-reinstall 'positional-encoding[flax]'")


# The command as a process.

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


def process(*arguments: str | Path, path: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "error",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "pe_core", *map(str, arguments)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, env=environment, text=True, **streams)


def test_flax_works_where_torch_is_not_installed(files: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    line = ("--data", files / "good.npz", *TINY, "--out", tmp_path / "run")
    with (
        process("train", "--framework=torch", *line, path=tmp_path) as refused,
        process("train", "--framework=flax", *line, path=tmp_path) as done,
    ):
        assert refused.communicate()[1] == (
            "pe: error: framework 'torch' needs torch, not installed here; install with: pip "
            "install 'positional-encoding[torch]'\n"
        )
        assert refused.returncode == 2
        output, error = done.communicate()
        assert (done.returncode, error) == (0, "")
        assert "\x1b" not in output
        assert "\r" not in output


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_interrupt_ends_the_run_between_two_steps(tmp_path: Path, name: str) -> None:
    with process(
        "train",
        "--framework",
        name,
        "--data",
        "dummy",
        *TINY,
        "--epochs=100000",
        "--out",
        tmp_path / "run",
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "1/100000" in line:
                break
        running.send_signal(signal.SIGINT)
        try:
            error = running.communicate(timeout=120)[1]
        finally:
            running.kill()
    assert (running.returncode, error) == (
        130,
        "pe: error: interrupted; what was written so far is kept\n",
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
    ]
    lines = [strict(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(len(steps)))


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    with process("list") as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
        assert running.wait() == 141


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(files: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    line = (
        "train",
        "--framework=torch",
        "--data",
        files / "good.npz",
        *TINY,
        "--out",
        tmp_path / "run",
    )
    with process(*line, stdout=theirs, cwd=tmp_path) as running:
        os.close(theirs)
        text = "".join(pieces(ours))
        assert (running.wait(), running.communicate()[1]) == (0, "")
    os.close(ours)
    assert "\x1b" in text
    assert "training" in text
    assert "1/1" in text


def pieces(handle: int) -> Iterator[str]:
    """What a terminal shows until the other side is closed, which Linux reports as an error."""
    while True:
        try:
            found = os.read(handle, 1 << 16)
        except OSError:
            return
        yield found.decode()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("train_torch", "--data=dumy"), ("train_flax", "--data=dumy"), ("check_parity", "--steps=0")],
)
def test_scripts_are_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, arguments: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script, arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith(
        "pe: error: unknown data 'dumy'" if "data" in arguments else "pe: error: steps must lie"
    )
