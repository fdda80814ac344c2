"""`pe trace` and `pe compare` as a user runs them: models of any make, bad input, hostile files."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pe_parity.trace_file
from parity_tests.cases import CONFIGS
from parity_tests.test_cli import Pe, pe, strict
from pe_core.model.initial import initial_arrays
from pe_core.model.parameters import parameters
from pe_core.storage.archive import read_archive, write_archive
from pe_core.storage.model_directory import SavedModel, save_model
from pe_parity.probe_inputs import probe_arrays
from pe_parity.trace_file import read_trace

__all__ = ["pe"]

# A port in a stranger's module: the model itself, seen from outside, with what each function says
# done to its intermediates.
PORT = """
import torch
import pe_torch
from pe_core import ModelConfig

def taps(config, weights, inputs, mask):
    found = {}
    model = pe_torch.from_arrays(ModelConfig.from_json(config), weights).eval()
    model(torch.from_numpy(inputs), mask=None if mask is None else torch.from_numpy(mask), taps=found)
    return found

def bfloat16(*arguments):
    return {name: value.bfloat16() for name, value in taps(*arguments).items()}

def few(*arguments):
    return {name: value for name, value in taps(*arguments).items() if name in ("encoding", "head")}

def doubled(*arguments):
    found = taps(*arguments)
    return found | {"head": 2 * found["head"]}

def without_position(config, weights, inputs, mask):
    return taps(config, weights | {"encodings.0.table": 0 * weights["encodings.0.table"]}, inputs, mask)

def in_place(config, weights, inputs, mask):
    found = taps(config, weights, inputs, mask)
    inputs[:] = 0
    weights["head.bias"][:] = 7
    return found

def other_names(*arguments):
    return {"layers.0.attention.logit": [1.0]}

def infinite(*arguments):
    return {name: value / 0 for name, value in taps(*arguments).items()}

def fails(*arguments):
    return {}["missing"]

def nothing(*arguments):
    return None

def empty(*arguments):
    return {}

def text(*arguments):
    return {"head": "text"}

def reserved(*arguments):
    return {"given/inputs": [1.0]}

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the port, a config, and the trace of the reference."""
    (tmp_path / "stranger.py").write_text(PORT)
    (tmp_path / "broken.py").write_text("def taps(:\n")
    (tmp_path / "needy.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["default"].to_json()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("stranger", "broken", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def right(pe: Pe, here: Path) -> str:
    pe("trace", "--impl=reference", "--config=config.json", "--out=right.npz")
    return "right.npz"


def traced(pe: Pe, impl: str, *options: str) -> str:
    pe("trace", f"--impl={impl}", "--config=config.json", "--out=other.npz", *options)
    return "other.npz"


@pytest.mark.parametrize("impl", ["torch", "flax", "stranger"])
def test_models_that_are_right_agree(pe: Pe, right: str, impl: str) -> None:
    text = pe("compare", right, traced(pe, impl))
    assert "FAILED" not in text
    assert re.search(r"The traces agree: \d\d names within bounds\.", text)


def test_a_trace_is_the_engines_own(pe: Pe, right: str) -> None:
    file = read_trace(Path(traced(pe, "torch", "--depth=step", "--precision=float64")))
    assert file.given is not None
    assert file.given.mask is not None
    assert file.precision == "float64"
    config = CONFIGS["default"]
    assert file.given.config == config
    assert {f"update/{item.name}" for item in parameters(config)} <= set(file.trace)
    assert sorted(set(file.given.mask.sum(axis=1))) == list(
        range(1, file.given.inputs.shape[1] + 1)
    )
    for name, array in probe_arrays(config, 0).items():
        np.testing.assert_array_equal(file.given.weights[name], array)
        assert (array != initial_arrays(config)[name]).all()
    text = pe("compare", right, "other.npz")
    assert re.search(
        r"other\.npz alone has gradient/input\.weight, .* and \d+ more: not compared", text
    )


def test_a_trace_of_a_saved_model(pe: Pe, here: Path) -> None:
    arrays = probe_arrays(CONFIGS["default"], 5)
    save_model(here / "model", SavedModel(CONFIGS["default"], arrays))
    for impl in ("reference", "torch"):
        pe("trace", f"--impl={impl}", "--model=model", f"--out={impl}.npz", "--masked=false")
    file = read_trace(here / "torch.npz")
    assert file.given is not None
    assert file.given.mask is None
    np.testing.assert_array_equal(file.given.weights["head.weight"], arrays["head.weight"])
    assert "agree" in pe("compare", "reference.npz", "torch.npz")
    other = pe(
        "trace", "--impl=torch", "--model=model", "--config=config.json", "--out=x.npz", code=2
    )
    assert (
        other
        == "--model model has its own config, got --config config.json too; leave one of them out"
    )


def test_the_same_trace_is_the_same_bytes(pe: Pe, right: str, here: Path) -> None:
    first = (here / right).read_bytes()
    pe("trace", "--impl=reference", "--config=config.json", "--out=again.npz")
    assert (here / "again.npz").read_bytes() == first


def test_a_fault_is_told(pe: Pe, right: str) -> None:
    text = pe("compare", right, traced(pe, "stranger:doubled"), "--json=found.json", code=1)
    assert re.search(r"^head +1\.0e\+00  2\.0e-06  FAILED, the first$", text, re.MULTILINE)
    assert "  head: it is multiplied by 2.\n" in text
    assert text.endswith("gives the same 29 names to within bounds: there is nothing else.\n")
    record = strict(Path("found.json").read_text())
    assert not record["passed"]
    assert record["diagnoses"]["other.npz"]["findings"] == [
        {"name": "head", "text": "it is multiplied by 2", "explained": True}
    ]


def test_names_that_the_port_lacks_are_told(pe: Pe, right: str) -> None:
    text = pe("compare", right, traced(pe, "stranger:few"))
    assert (
        "right.npz alone has input, layers.0.norm1, layers.0.attention.query and 25 more: not "
        "compared"
    ) in text
    assert "The traces agree: 2 names within bounds." in text


def test_no_positions(pe: Pe, right: str) -> None:
    text = pe("compare", right, traced(pe, "stranger:without_position"), code=1)
    assert "encoding: no positional encoding is added." in text


def test_lower_precision(pe: Pe, right: str) -> None:
    text = pe("compare", right, traced(pe, "stranger:bfloat16"), code=1)
    assert "input: every number is a bfloat16 number: 8 significant bits of 24." in text


def test_infinite_numbers(pe: Pe, right: str) -> None:
    text = pe("compare", right, traced(pe, "stranger:infinite"), "--json=found.json", code=1)
    assert "nothing known accounts for it" in text
    assert strict(Path("found.json").read_text())["rows"][0]["errors"] == {"other.npz": None}


def test_a_port_cannot_change_what_it_was_given(pe: Pe, right: str) -> None:
    assert "agree" in pe("compare", right, traced(pe, "stranger:in_place"))


def test_a_referee(pe: Pe, right: str, here: Path) -> None:
    traced(pe, "torch")
    (here / "other.npz").rename(here / "torch.npz")
    text = pe("compare", "torch.npz", traced(pe, "stranger:doubled"), "--reference", right, code=1)
    assert re.search(r"^name +torch\.npz +other\.npz +between +bound$", text, re.MULTILINE)
    assert "What is wrong in other.npz" in text
    assert "What is wrong in torch.npz" not in text


def test_a_file_of_numpy_is_compared_by_its_names(pe: Pe, right: str, here: Path) -> None:
    trace = read_trace(here / right).trace
    np.savez(
        here / "plain.npz",
        **{name: array.astype(np.float32) for name, array in trace.items()},  # type: ignore[arg-type]
    )
    text = pe("compare", right, "plain.npz")
    assert "plain.npz does not say what went in" in text
    assert "agree" in text


def test_precision_chooses_the_bounds(pe: Pe, right: str) -> None:
    traced(pe, "torch")
    pe("compare", right, "other.npz")
    text = pe("compare", right, "other.npz", "--precision=float64", code=1)
    assert "input       " in text
    assert pe("compare", right, "other.npz", "--precision=half", code=2).startswith(
        "unknown precision 'half'"
    )


BAD_TRACES = {
    "--impl=stranger:fails": (
        "--impl stranger:fails: KeyError: 'missing' (stranger.py:38); correct it"
    ),
    "--impl=stranger:nothing": (
        "--impl stranger:nothing: must return a dictionary of named arrays, got NoneType"
    ),
    "--impl=stranger:empty": (
        "--impl stranger:empty: must return a dictionary of named arrays, "
        "got a dictionary without names, {}"
    ),
    "--impl=stranger:text": (
        "--impl stranger:text: head must hold real numbers, got str of dtype <U4"
    ),
    "--impl=stranger:reserved": "--impl stranger:reserved: 'given/inputs' cannot be the name of "
    "an array; take one such as "
    "layers.0.attention.logits",
    "--impl=stranger:number": "--impl stranger:number: number is no function; it needs def "
    "taps(config, weights, inputs, mask), which "
    "returns a dictionary of named arrays",
    "--impl=stranger:absent": "--impl stranger:absent: stranger has no absent; it needs def "
    "taps(config, weights, inputs, mask), which "
    "returns a dictionary of named arrays",
    "--impl=stranger.py": (
        "--impl stranger.py: give the name of the module, not its file; for example stranger"
    ),
    "--impl=broken": (
        "--impl broken: cannot be imported, SyntaxError: invalid syntax (broken.py, "
        "line 1); correct it"
    ),
    "--impl=needy": (
        "--impl needy: ModuleNotFoundError: No module named 'nothing_of_that_name' "
        "(needy.py:1); install what it needs"
    ),
    "--impl=nosuch.port": (
        "--impl nosuch.port: no module of that name here or among the installed; check the name"
    ),
    "--impl=troch": (
        "--impl troch: no module of that name here or among the installed; did you mean 'torch'?"
    ),
    "--impl=": (
        "--impl '' is no name of a module; write torch, flax, reference, MODULE or MODULE:FUNCTION"
    ),
    "--impl=reference --depth=step": (
        "--depth step needs --impl torch or flax, got --impl reference; take --depth forward"
    ),
    "--impl=torch --depth=deep": "unknown depth 'deep'; did you mean 'step'?",
    "--impl=torch --seed=-1": "seed must lie in 0 .. 9223372036854775807, got -1",
    "--impl=torch --out=": "--out needs the name of a file, got ''; for example trace.npz",
    "--impl=torch --out=none/x.npz": "the folder of --out none/x.npz does not exist; make it first",
    "--impl=torch --config=none.json": "none.json does not exist; check the path",
    "--impl=torch --model=none": (
        "none is not a model directory, config.json is missing; pass a "
        "directory that save() or `pe train` wrote"
    ),
}


@pytest.mark.parametrize("line", BAD_TRACES)
def test_a_bad_trace_is_one_clear_line_and_no_file(pe: Pe, here: Path, line: str) -> None:
    before = sorted(here.rglob("*.npz"))
    assert pe("trace", "--out=x.npz", *line.split(), code=2) == BAD_TRACES[line]
    assert sorted(here.rglob("*.npz")) == before


def member(content: bytes, name: str = "head.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=pickled)
    return stream.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (pytest.fail, ("it was unpickled",))


def promising(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + b"few"


HEAD = npy(np.ones(3))
HOSTILE = {
    "nothing": (b"", "not an .npz archive"),
    "text": (b"head: 1", "not an .npz archive"),
    "cut": (member(HEAD)[:-30], "not an .npz archive"),
    "pickled": (
        member(npy(np.array([Bomb()], object), pickled=True)),
        "array head holds Python objects and is not unpickled",
    ),
    "promising": (
        member(promising((1 << 40,))),
        "array head is damaged, its header says 8,796,093,022,208 bytes, 3 are there",
    ),
    "no array": (member(b"abc"), "array head is damaged"),
    "text array": (member(npy(np.array(["a"]))), "head must hold real numbers, got dtype <U1"),
    "complex": (
        member(npy(np.ones(2, complex))),
        "head must hold real numbers, got dtype complex128",
    ),
    "empty": (member(HEAD, "given/inputs.npy"), "holds no named arrays"),
    "about": (member(npy(np.zeros(3, np.uint8)), "__about__.npy"), "holds no named arrays"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_clear_line(pe: Pe, right: str, here: Path, kind: str) -> None:
    content, text = HOSTILE[kind]
    (here / "bad.npz").write_bytes(content)
    for line in ((right, "bad.npz"), ("bad.npz", right)):
        assert pe("compare", *line, code=2).startswith(f"bad.npz: {text}")


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
    pe: Pe, right: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(here / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.npy", npy(np.zeros(1 << 20)))
    monkeypatch.setattr(pe_parity.trace_file, "MAX_BYTES", 1 << 22)
    assert (here / "bad.npz").stat().st_size < 1 << 16
    assert pe("compare", right, "bad.npz", code=2).startswith(
        "bad.npz: would unpack to 0.0 GiB, more than 0.0"
    )


def about(**changes: object) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        record = json.loads(arrays["__about__"].tobytes()) | changes
        return arrays | {"__about__": np.frombuffer(json.dumps(record).encode(), np.uint8)}

    return change


ALTERED: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "format": (
        about(format=2),
        "bad.npz: __about__ has format 2, this version reads format 1; trace it again",
    ),
    "no JSON": (
        lambda arrays: arrays | {"__about__": np.zeros(2, np.uint8)},
        "bad.npz: __about__ has format 'no JSON'",
    ),
    "a list": (
        lambda arrays: arrays | {"__about__": np.frombuffer(b"[1]", np.uint8)},
        "bad.npz: __about__ has format 'no JSON'",
    ),
    "model": (about(model=[]), "bad.npz: ModelConfig must be a JSON object"),
    "another model": (
        about(model=replace(CONFIGS["default"], activation="relu").to_json()),
        (
            "right.npz and bad.npz are traces of different models: activation is gelu and relu; "
            "trace both with one --config"
        ),
    ),
    "precision": (
        about(precision="int4"),
        "bad.npz: there are no bounds for precision 'int4'; choose one with --precision: ",
    ),
    "weight": (
        lambda arrays: arrays | {"given/weights/head.bias": np.zeros(5)},
        "bad.npz: the weights does not fit the config; misshapen",
    ),
    "kind": (
        lambda arrays: arrays | {"given/weights/head.bias": np.zeros(4, int)},
        "bad.npz: the weight head.bias holds no floating",
    ),
    "inputs": (
        lambda arrays: arrays | {"given/inputs": np.zeros(5)},
        "bad.npz: x must have the three axes",
    ),
    "no inputs": (
        lambda arrays: {n: a for n, a in arrays.items() if n != "given/inputs"},
        "bad.npz: given/inputs are missing",
    ),
    "mask": (
        lambda arrays: arrays | {"given/mask": np.zeros((2, 2), bool)},
        "bad.npz: mask must have shape",
    ),
    "too long": (
        lambda arrays: (
            arrays | {"given/inputs": np.zeros((2, 30, 3)), "given/mask": np.ones((2, 30), bool)}
        ),
        "bad.npz: a sequence of length 30 does not fit the learned table",
    ),
    "other inputs": (
        lambda arrays: arrays | {"given/inputs": 2 * arrays["given/inputs"]},
        "right.npz and bad.npz were made with different "
        "inputs, the seed is the same; trace both with the same --seed, --masked and --model",
    ),
    "other names": (
        lambda arrays: {"heda": arrays["head"]},
        "right.npz and bad.npz have no name in common; 'heda': ",
    ),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_file_is_one_clear_line(pe: Pe, right: str, here: Path, kind: str) -> None:
    change, text = ALTERED[kind]
    write_archive(here / "bad.npz", change(read_archive(here / right)))
    assert pe("compare", right, "bad.npz", code=2).startswith(text)


def test_other_seeds_are_told(pe: Pe, right: str) -> None:
    found = pe("compare", right, traced(pe, "torch", "--seed=1"), code=2)
    assert found.startswith(
        "right.npz and other.npz were made with different inputs, the seeds are 0 and 1; trace both"
    )
    assert (
        pe("compare", right, right, code=2)
        == "right.npz and right.npz are one file; compare two traces"
    )
    assert pe("compare", right, "none.npz", code=2) == "none.npz: no such file; check the path"


def test_an_archive_keeps_names_shapes_and_order(tmp_path: Path) -> None:
    arrays = {"file": np.array(1.5), "b/a": np.ones((2, 3)).T, "a": np.arange(3)}
    write_archive(tmp_path / "x.npz", arrays)
    found = read_archive(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert sorted(np.load(tmp_path / "x.npz", allow_pickle=False).files) == sorted(arrays)
