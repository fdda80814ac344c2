"""Damaged and hostile files: each is refused in one line that names the file and the fault, nothing
is executed, memory is bounded. Models and runs of this version and of the one before are treated
alike.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parity_tests.saved_folders import (
    FILES,
    FLIPS,
    READERS,
    VERSIONS,
    Digests,
    Marking,
    contents,
    find,
    make_all,
    make_run,
    read_model,
    refusal,
    state_folder,
)
from pe_cli.main import main
from pe_core.storage.checkpoint import MANIFEST_FILE, STATE_FILE
from pe_core.storage.model_directory import CONFIG_FILE, WEIGHTS_FILE


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good")
    make_all(path)
    return path


@pytest.mark.parametrize("version", VERSIONS, ids=["2", "1"])
@pytest.mark.parametrize(
    ("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files]
)
def test_no_damaged_file_is_read(
    kind: str, file: str, version: str, place: Path, tmp_path: Path
) -> None:
    """A config may be edited, and a seal of format 1 is not read: what is not refused there is as
    it was.
    """
    read = READERS[kind]
    shutil.copytree(place / f"{kind}{version}", tmp_path / "it")
    path = find(tmp_path / "it", file)
    good, content = read(tmp_path / "it"), path.read_bytes()
    refused, count = 0, 0
    for damaged in (
        *contents(content, tmp_path / "mark"),
        find(place / f"another {kind}", file).read_bytes(),
    ):
        path.write_bytes(damaged)
        found = refusal(read, tmp_path / "it")
        count, refused = count + 1, refused + isinstance(found, str)
        if not isinstance(found, str):
            assert file == CONFIG_FILE or (file == MANIFEST_FILE and version)
            assert found == good
    assert count - refused <= (FLIPS if file in (CONFIG_FILE, MANIFEST_FILE) else 0)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_would_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Marking(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


# Headers of tensor files, of models and checkpoints alike.


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: dict[str, Any] | str, payload: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": ({"shape": [7]}, "takes .* bytes, but F.* of shape"),
    "shape of 2^80": ({"shape": [1 << 40, 1 << 40]}, "takes .* bytes, but F"),
    "shape below zero": ({"shape": [-1, -1]}, "has shape"),
    "shape of truth values": ({"shape": [True]}, "has shape"),
    "a hundred axes": ({"shape": [1] * 100}, "has shape"),
    "unknown dtype": ({"dtype": "F16"}, "has dtype F16, known are F32, F64, I64"),
    "another width": ({"dtype": "I64", "shape": [9]}, "takes .* bytes, but I64"),
    "dtype of a class": ({"dtype": "os.mkdir"}, r"has dtype os\.mkdir"),
    "dtype of a list": ({"dtype": ["F32"]}, "has dtype"),
    "offsets beyond": ({"data_offsets": [1 << 60, 1 << 61]}, "takes .* bytes"),
    "offsets below zero": ({"data_offsets": [-4, 0]}, "has data_offsets"),
    "offsets backwards": ({"data_offsets": [8, 4]}, "takes -4 bytes"),
    "offsets of texts": ({"data_offsets": ["0", "8"]}, "has data_offsets"),
    "one offset": ({"data_offsets": [0]}, "has data_offsets"),
    "a class": ({"__class__": "os.mkdir"}, "is not described by dtype, shape and data_offsets"),
}


def twice(header: dict[str, Any], name: str) -> str:
    return json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}'


Change = Callable[[dict[str, Any], str], dict[str, Any] | str]
HEADERS: dict[str, tuple[Change, str]] = {
    "a tensor twice": (twice, "stands twice"),
    "two tensors in one place": (lambda h, name: h | {"../x": h[name]}, "begins at byte"),
    "a name with ..": (
        lambda h, name: {key.replace(name, "../x"): entry for key, entry in h.items()},
        r"unexpected.*\.\./x",
    ),
    "bytes of no tensor": (
        lambda h, name: {key: entry for key, entry in h.items() if key != name},
        "begins at byte|bytes, not",
    ),
    "bytes behind": (lambda h, name: h, "bytes, not"),
    "metadata that are no texts": (
        lambda h, name: h | {"__metadata__": {"a": ["os.mkdir"]}},
        "not texts by name",
    ),
    "no metadata": (lambda h, name: h | {"__metadata__": {}}, "SHA-256 of"),
}


@pytest.mark.parametrize("what", [*ENTRIES, *HEADERS])
@pytest.mark.parametrize("kind", READERS)
def test_a_header_that_is_wrong_is_refused(
    kind: str, what: str, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / kind, tmp_path / "it")
    path = find(tmp_path / "it", WEIGHTS_FILE if kind == "model" else STATE_FILE)
    name = "head.bias" if kind == "model" else "param/head.bias"
    header, payload = split(path)
    if what in ENTRIES:
        entry, words = ENTRIES[what]
        join(path, header | {name: header[name] | entry}, payload)
    else:
        change, words = HEADERS[what]
        join(path, change(header, name), payload + b"x" * (what == "bytes behind"))
    with pytest.raises(ValueError, match=words):
        READERS[kind](tmp_path / "it")


@cache
def whole_run(folder: Path) -> Digests:
    make_run(folder, "--stop-at=15")
    return read_model(folder / "model")


@pytest.mark.parametrize("file", [MANIFEST_FILE, STATE_FILE])
def test_a_run_goes_back_to_the_checkpoint_before(
    file: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "it"
    shutil.copytree(place / "run", run)
    assert main(["resume", str(run), "--stop-at=9"]) == 0
    newest = state_folder(run)
    newest.joinpath(file).write_bytes(b"\x80\x04N.")
    assert main(["resume", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "passed over a checkpoint: " in said
    assert str(newest / file) in said
    assert read_model(run / "model") == whole_run(place / "whole run")
