"""`pe compare` refuses files that are damaged, hostile or of other models, in one clear line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pe_parity.trace_file
from parity_tests.cases import CONFIGS
from parity_tests.cli import Pe, pe
from pe_core.storage.archive import read_archive, write_archive

__all__ = ["pe"]

Arrays = dict[str, np.ndarray]


@pytest.fixture
def here(pe: Pe, tmp_path: Path) -> Path:
    """A folder with the trace of the reference, right.npz."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["default"].to_json()))
    pe("trace", "--impl=reference", "--config=config.json", "--out=right.npz")
    return tmp_path


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


def test_a_hostile_file_is_one_clear_line(pe: Pe, here: Path) -> None:
    for kind, (content, text) in HOSTILE.items():
        (here / "bad.npz").write_bytes(content)
        for line in (("right.npz", "bad.npz"), ("bad.npz", "right.npz")):
            assert pe("compare", *line, code=2).startswith(f"bad.npz: {text}"), kind


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
    pe: Pe, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(here / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.npy", npy(np.zeros(1 << 20)))
    monkeypatch.setattr(pe_parity.trace_file, "MAX_BYTES", 1 << 22)
    assert (here / "bad.npz").stat().st_size < 1 << 16
    assert pe("compare", "right.npz", "bad.npz", code=2).startswith(
        "bad.npz: would unpack to 0.0 GiB, more than 0.0"
    )


def about(**changes: object) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        record = json.loads(arrays["__about__"].tobytes()) | changes
        return arrays | {"__about__": np.frombuffer(json.dumps(record).encode(), np.uint8)}

    return change


def put(**changes: np.ndarray) -> Callable[[Arrays], Arrays]:
    given = {f"given/{name}": value for name, value in changes.items()}
    return lambda arrays: arrays | given


def bias(value: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {"given/weights/head.bias": value}


def record(content: bytes) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {"__about__": np.frombuffer(content, np.uint8)}


RELU = replace(CONFIGS["default"], activation="relu").to_json()
LONG = put(inputs=np.zeros((2, 30, 3)), mask=np.ones((2, 30), bool))
# What is changed in the trace, and what is then said about bad.npz.
ALTERED: list[tuple[Callable[[Arrays], Arrays], str]] = [
    (about(format=2), "__about__ has format 2, this version reads format 1; trace it again"),
    (record(b"\0\0"), "__about__ has format 'no JSON'"),
    (record(b"[1]"), "__about__ has format 'no JSON'"),
    (about(model=[]), "ModelConfig must be a JSON object"),
    (about(precision="int4"), "there are no bounds for precision 'int4'; choose one with "),
    (bias(np.zeros(5)), "the weights does not fit the config; misshapen"),
    (bias(np.zeros(4, int)), "the weight head.bias holds no floating"),
    (put(inputs=np.zeros(5)), "x must have the three axes"),
    (lambda arrays: {n: arrays[n] for n in arrays if n != "given/inputs"}, "given/inputs are miss"),
    (put(mask=np.zeros((2, 2), bool)), "mask must have shape"),
    (LONG, "a sequence of length 30 does not fit the learned table"),
]
# What is changed, and what is said about right.npz and bad.npz together.
DIFFERENT: list[tuple[Callable[[Arrays], Arrays], str]] = [
    (
        about(model=RELU),
        "are traces of different models: activation is gelu and relu; trace both with one --config",
    ),
    (
        lambda arrays: arrays | {"given/inputs": 2 * arrays["given/inputs"]},
        "were made with different inputs, the seed is the same; trace both with the same --seed, "
        "--masked and --model",
    ),
    (lambda arrays: {"heda": arrays["head"]}, "have no name in common; 'heda': "),
]


def test_an_altered_file_is_one_clear_line(pe: Pe, here: Path) -> None:
    right = read_archive(here / "right.npz")
    table = [(change, f"bad.npz: {text}") for change, text in ALTERED]
    table += [(change, f"right.npz and bad.npz {text}") for change, text in DIFFERENT]
    for change, text in table:
        write_archive(here / "bad.npz", change(right))
        assert pe("compare", "right.npz", "bad.npz", code=2).startswith(text)


def test_an_archive_keeps_names_shapes_and_order(tmp_path: Path) -> None:
    arrays = {"file": np.array(1.5), "b/a": np.ones((2, 3)).T, "a": np.arange(3)}
    write_archive(tmp_path / "x.npz", arrays)
    found = read_archive(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert sorted(np.load(tmp_path / "x.npz", allow_pickle=False).files) == sorted(arrays)
