"""`pe trace` and `pe compare` as a user runs them, on models of any make."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from parity_tests.cases import CONFIGS
from parity_tests.cli import Pe, pe, strict, table
from pe_core.model.initial import initial_arrays
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import SavedModel, save_model
from pe_parity.probe_inputs import probe_arrays
from pe_parity.trace_file import read_trace

__all__ = ["pe"]

# A port in a user's module: the model itself, with its intermediates changed as each function says.
PORT = """
import torch
import pe_torch
from pe_core import ModelConfig

def taps(config, weights, inputs, mask):
    found = {}
    model = pe_torch.from_arrays(ModelConfig.from_json(config), weights).eval()
    mask = None if mask is None else torch.from_numpy(mask)
    model(torch.from_numpy(inputs), mask=mask, taps=found)
    return found

def bfloat16(*arguments):
    return {name: value.bfloat16() for name, value in taps(*arguments).items()}

def few(*arguments):
    return {name: value for name, value in taps(*arguments).items() if name in ("encoding", "head")}

def doubled(*arguments):
    found = taps(*arguments)
    return found | {"head": 2 * found["head"]}

def without_position(config, weights, inputs, mask):
    table = {"encodings.0.table": 0 * weights["encodings.0.table"]}
    return taps(config, weights | table, inputs, mask)

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
def here(pe: Pe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the port, a config, and the trace of the reference, right.npz."""
    (tmp_path / "stranger.py").write_text(PORT)
    (tmp_path / "broken.py").write_text("def taps(:\n")
    (tmp_path / "needy.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["default"].to_json()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("stranger", "broken", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    pe("trace", "--impl=reference", "--config=config.json", "--out=right.npz")
    return tmp_path


def compared(pe: Pe, impl: str, *options: str, code: int = 0) -> str:
    """Trace a model to other.npz and compare it to the reference."""
    pe("trace", f"--impl={impl}", "--config=config.json", "--out=other.npz", *options)
    return pe("compare", "right.npz", "other.npz", "--json=found.json", code=code)


@pytest.mark.parametrize("impl", ["torch", "flax", "stranger", "stranger:in_place"])
def test_models_that_are_right_agree(pe: Pe, here: Path, impl: str) -> None:
    text = compared(pe, impl)
    assert "FAILED" not in text
    assert re.search(r"The traces agree: \d\d names within bounds\.", text)


def test_a_trace_is_the_engines_own(pe: Pe, here: Path) -> None:
    text = compared(pe, "torch", "--depth=step", "--precision=float64")
    assert re.search(
        r"other\.npz alone has gradient/input\.weight, .* and \d+ more: not compared", text
    )
    file, config = read_trace(here / "other.npz"), CONFIGS["default"]
    assert file.precision == "float64"
    assert file.given is not None
    assert file.given.config == config
    assert {f"update/{item.name}" for item in parameters(config)} <= set(file.trace)
    assert file.given.mask is not None
    lengths = set(file.given.mask.sum(axis=1))
    assert sorted(lengths) == list(range(1, file.given.inputs.shape[1] + 1))
    for name, array in probe_arrays(config, 0).items():
        np.testing.assert_array_equal(file.given.weights[name], array)
        assert (array != initial_arrays(config)[name]).all()


def test_a_trace_of_a_saved_model(pe: Pe, here: Path) -> None:
    arrays = probe_arrays(CONFIGS["default"], 5)
    save_model(here / "model", SavedModel(CONFIGS["default"], arrays))
    for impl, masked in (("reference", "--no-masked"), ("torch", "--masked=false")):
        pe("trace", f"--impl={impl}", "--model=model", f"--out={impl}.npz", masked)
    file = read_trace(here / "torch.npz")
    assert file.given is not None
    assert file.given.mask is None
    np.testing.assert_array_equal(file.given.weights["head.weight"], arrays["head.weight"])
    assert "agree" in pe("compare", "reference.npz", "torch.npz")


def test_the_same_trace_is_the_same_bytes(pe: Pe, here: Path) -> None:
    pe("trace", "--impl=reference", "--config=config.json", "--out=again.npz")
    assert (here / "again.npz").read_bytes() == (here / "right.npz").read_bytes()


@pytest.mark.parametrize(
    ("impl", "code", "words"),
    [
        ("few", 0, "right.npz alone has input, layers.0.norm1, layers.0.attention.query and 25"),
        ("few", 0, "The traces agree: 2 names within bounds."),
        ("without_position", 1, "encoding: no positional encoding is added."),
        ("bfloat16", 1, "input: every number is a bfloat16 number: 8 significant bits of 24."),
        ("infinite", 1, "nothing known accounts for it"),
    ],
)
def test_a_difference_is_described(pe: Pe, here: Path, impl: str, code: int, words: str) -> None:
    assert words in compared(pe, f"stranger:{impl}", code=code)
    if impl == "infinite":
        record = strict((here / "found.json").read_text())
        assert record["rows"][0]["errors"] == {"other.npz": None}


def test_a_fault_is_explained(pe: Pe, here: Path) -> None:
    text = compared(pe, "stranger:doubled", code=1)
    assert re.search(r"^head +1\.0e\+00  2\.0e-06  FAILED, the first$", text, re.MULTILINE)
    assert "  head: it is multiplied by 2.\n" in text
    assert text.endswith("gives the same 29 names to within bounds: there is nothing else.\n")
    record = strict((here / "found.json").read_text())
    assert not record["passed"]
    assert record["diagnoses"]["other.npz"]["findings"] == [
        {"name": "head", "text": "it is multiplied by 2", "explained": True}
    ]


def test_two_traces_are_compared_to_a_third(pe: Pe, here: Path) -> None:
    compared(pe, "torch")
    (here / "other.npz").rename(here / "torch.npz")
    compared(pe, "stranger:doubled", code=1)
    text = pe("compare", "torch.npz", "other.npz", "--reference=right.npz", code=1)
    assert re.search(r"^name +torch\.npz +other\.npz +between +bound$", text, re.MULTILINE)
    assert "What is wrong in other.npz" in text
    assert "What is wrong in torch.npz" not in text


def test_a_file_of_numpy_is_compared_by_its_names(pe: Pe, here: Path) -> None:
    trace = read_trace(here / "right.npz").trace
    np.savez(here / "plain.npz", **{name: array.astype("f4") for name, array in trace.items()})  # type: ignore[arg-type]
    text = pe("compare", "right.npz", "plain.npz")
    assert "plain.npz does not say what went in" in text
    assert "agree" in text


def test_precision_chooses_the_bounds(pe: Pe, here: Path) -> None:
    compared(pe, "torch")
    text = pe("compare", "right.npz", "other.npz", "--precision=float64", code=1)
    assert "input       " in text


def test_traces_of_different_inputs_are_refused(pe: Pe, here: Path) -> None:
    assert compared(pe, "torch", "--seed=1", code=2).startswith(
        "right.npz and other.npz were made with different inputs, the seeds are 0 and 1; trace both"
    )
    found = pe("compare", "right.npz", "right.npz", code=2)
    assert found == "right.npz and right.npz are one file; compare two traces"
    assert pe("compare", "right.npz", "x.npz", code=2) == "x.npz: no such file; check the path"


CONVENTION = (
    "it needs def taps(config, weights, inputs, mask), which returns a dictionary of named arrays"
)
BAD_TRACES = table(f"""
stranger:fails => --impl stranger:fails: KeyError: 'missing' (stranger.py:40); correct it
stranger:nothing => --impl stranger:nothing: must return a dictionary of named arrays, got NoneType
stranger:empty => --impl stranger:empty: must return a dictionary of named arrays, got a dictionary
    without names, {{}}
stranger:text => --impl stranger:text: head must hold real numbers, got str of dtype <U4
stranger:reserved => --impl stranger:reserved: 'given/inputs' cannot be the name of an array; take
    one such as layers.0.attention.logits
stranger:number => --impl stranger:number: number is no function; {CONVENTION}
stranger:absent => --impl stranger:absent: stranger has no absent; {CONVENTION}
stranger.py => --impl stranger.py: give the name of the module, not its file; for example stranger
broken => --impl broken: cannot be imported, SyntaxError: invalid syntax (broken.py, line 1);
    correct it
needy => --impl needy: ModuleNotFoundError: No module named 'nothing_of_that_name' (needy.py:1);
    install what it needs
nosuch.port => --impl nosuch.port: no module of that name here or among the installed; check the
    name
troch => --impl troch: no module of that name here or among the installed; did you mean 'torch'?
=> --impl '' is no name of a module; write torch, flax, reference, MODULE or MODULE:FUNCTION
reference --depth=step => --depth step needs --impl torch or flax, got --impl reference; take
    --depth forward
torch --depth=deep => --depth must be forward, gradient, step or run, got 'deep'; did you mean
    'step'?
torch --seed=-1 => seed must lie in 0 .. 9223372036854775807, got -1
torch --out= => --out needs the name of a file, got ''; for example trace.npz
torch --out=none/x.npz => the folder of --out none/x.npz does not exist; make it first
torch --config=none.json => none.json does not exist; check the path
torch --model=none => none is not a model directory, config.json is missing; pass a directory that
    save() or `pe train` wrote
torch --model=none --config=config.json => --model none has its own config, got --config config.json
    too; leave one of them out
""")


def test_a_bad_trace_is_one_clear_line_and_no_file(pe: Pe, here: Path) -> None:
    before = sorted(here.rglob("*.npz"))
    for line, message in BAD_TRACES.items():
        assert pe("trace", "--out=x.npz", *f"--impl={line}".split(" "), code=2) == message
    assert sorted(here.rglob("*.npz")) == before
