"""Checkpoints: whole or not at all, every damage refused by name, and the newest that holds is found."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pe_core.checkpoint
from pe_core.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

SHAPES: dict[str, tuple[int, ...]] = {"param/a": (3, 5), "adam/m/a": (3, 5), "adam/count": (), "epoch/metrics": (0, 4)}
RECORD = {"epoch": 2, "note": "ü"}


def expected(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    assert record == RECORD
    return SHAPES


def checkpoint(step: int = 7) -> Checkpoint:
    random = np.random.default_rng(step)
    arrays: dict[str, np.ndarray] = {
        "param/a": random.normal(size=(5, 3)).astype(np.float32).T,
        "adam/m/a": random.normal(size=(3, 5)),
        "adam/count": np.array(step, np.int64),
        "epoch/metrics": np.zeros((0, 4)),
    }
    return Checkpoint(step, arrays, RECORD)


def rewrite(path: Path, change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any] | bytes, bytes]], *, sign: bool) -> None:
    """Change header and payload of the state, and give it a manifest that vouches for the new bytes when signed."""
    content = (path / STATE_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, payload = change(json.loads(content[8 : 8 + length]), content[8 + length :])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + payload
    (path / STATE_FILE).write_bytes(content)
    if sign:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        manifest["files"][STATE_FILE] = hashlib.sha256(content).hexdigest()
        (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def edit(path: Path, **changes: Any) -> None:
    """Change fields of the manifest."""
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    (path / MANIFEST_FILE).write_text(json.dumps(manifest | changes))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = checkpoint()
    found = load_checkpoint(save_checkpoint(tmp_path, saved), expected)
    assert (found.step, found.record) == (7, RECORD)
    assert {name: (array.dtype, array.tobytes()) for name, array in found.arrays.items()} == {
        name: (array.dtype, array.tobytes()) for name, array in saved.arrays.items()
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9, 11):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-000000011", "step-000000010", "step-000000009"]


def test_falls_back_and_says_why(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "step-000000003" / STATE_FILE).write_bytes(b"")
    (tmp_path / "step-000000002" / MANIFEST_FILE).unlink()
    found, passed_over = newest_checkpoint(tmp_path, expected)
    assert found is not None
    assert found.step == 1
    assert ["step-000000003" in passed_over[0], "step-000000002" in passed_over[1], len(passed_over)] == [True, True, 2]
    assert newest_checkpoint(tmp_path / "nothing", expected) == (None, [])


@pytest.mark.parametrize("point", ["before the state", "before the manifest", "before the rename", "after the rename"])
def test_a_fault_inside_the_save_leaves_the_last_one(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1))

    def full(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pe_core.checkpoint, "fault_point", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(2))
    found, passed_over = newest_checkpoint(tmp_path, expected)
    assert found is not None
    assert found.step == (2 if point == "after the rename" else 1)
    assert passed_over == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def header_change(**entry: Any) -> Callable[[Path], None]:
    """Change one tensor's description, with the manifest vouching for the new bytes."""
    return lambda path: rewrite(path, lambda header, payload: (header | {"adam/m/a": header["adam/m/a"] | entry}, payload), sign=True)


def _twice(header: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
    text = json.dumps(header)
    return (text[:-1] + ', "param/a"' + text.split('"param/a"')[1].split("}")[0] + "}}").encode(), payload


def _pickled(path: Path) -> None:
    (path / STATE_FILE).write_bytes(pickle.dumps({"param/a": [1.0]}))


def _nan(path: Path) -> None:
    rewrite(path, lambda header, payload: (header, payload[:-8] + struct.pack("<d", float("nan"))), sign=True)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (lambda path: (path / STATE_FILE).unlink(), "state.safetensors: is missing"),
    "no manifest": (lambda path: (path / MANIFEST_FILE).unlink(), "manifest.json: is missing"),
    "empty state": (lambda path: (path / STATE_FILE).write_bytes(b""), "is 0 bytes"),
    "empty manifest": (lambda path: (path / MANIFEST_FILE).write_bytes(b""), "is not valid JSON"),
    "manifest is a list": (lambda path: (path / MANIFEST_FILE).write_text("[]"), "is not an object"),
    "older format": (lambda path: edit(path, format=0), "format is 0, this version reads 1"),
    "unknown field": (lambda path: edit(path, extra=1), "fields are"),
    "another step": (lambda path: edit(path, step=8), "step is 8, but the folder is step-000000007"),
    "step is a text": (lambda path: edit(path, step="../../x"), r"step is \.\./\.\./x"),
    "record of another run": (lambda path: edit(path, record=[]), "record is not an object"),
    "file digest gone": (lambda path: edit(path, files={}), "SHA-256 does not hold for its header"),
    "tensor digests of others": (lambda path: edit(path, tensors={}), "tensors are not those"),
    "NaN in the manifest": (lambda path: (path / MANIFEST_FILE).write_text('{"format": NaN}'), "holds NaN"),
    "key twice in the manifest": (lambda path: (path / MANIFEST_FILE).write_text('{"format": 1, "format": 1}'), "'format' stands twice"),
    "deep nesting": (lambda path: (path / MANIFEST_FILE).write_text("[" * 200_000), "is not valid JSON"),
    "wrong shape": (header_change(shape=[5, 3]), r"adam/m/a has shape \[5, 3\], not \[3, 5\]"),
    "huge shape": (header_change(shape=[1 << 40, 1 << 40]), "adam/m/a has shape"),
    "wrong dtype": (header_change(dtype="BF16"), "adam/m/a has dtype BF16"),
    "dtype is a list": (header_change(dtype=["F64"]), "adam/m/a has dtype"),
    "narrow dtype": (header_change(dtype="F32"), "adam/m/a takes 120 bytes, not 60"),
    "offsets beyond": (header_change(data_offsets=[1 << 60, (1 << 60) + 120]), "begins at byte"),
    "negative offsets": (header_change(data_offsets=[-120, 0]), "adam/m/a has data_offsets"),
    "offsets are texts": (header_change(data_offsets=["0", "120"]), "adam/m/a has data_offsets"),
    "another key": (header_change(code="os.system"), "adam/m/a is not described by"),
    "tensor missing": (
        lambda path: rewrite(path, lambda header, payload: ({k: v for k, v in header.items() if k != "param/a"}, payload), sign=True),
        r"missing tensors \['param/a'\]",
    ),
    "tensor too many": (
        lambda path: rewrite(path, lambda header, payload: (header | {"../x": header["param/a"]}, payload), sign=True),
        r"unexpected tensors \['\.\./x'\]",
    ),
    "tensor twice": (lambda path: rewrite(path, _twice, sign=True), "'param/a' stands twice"),
    "trailing bytes": (lambda path: rewrite(path, lambda header, payload: (header, payload + b"x"), sign=True), r"is \d+ bytes, not \d+"),
    "huge header": (lambda path: (path / STATE_FILE).write_bytes(struct.pack("<Q", 1 << 62) + b"{}"), "claims a header of"),
    "a pickle": (_pickled, "claims a header of"),
    "NaN in a tensor": (_nan, "SHA-256 of|holds NaN"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint())
    damage, message = DAMAGES[name]
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, expected)
    assert "\n" not in str(caught.value)
    assert newest_checkpoint(tmp_path, expected) == (None, [str(caught.value)])


@pytest.mark.parametrize("file", [STATE_FILE, MANIFEST_FILE])
def test_every_flipped_bit_and_every_cut_is_refused(file: str, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint())
    content = (path / file).read_bytes()
    random = np.random.default_rng(0)
    places = random.integers(0, 8 * len(content), 150).tolist()
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        (path / file).write_bytes(bytes(flipped))
        if file == MANIFEST_FILE:
            # A bit of the record is not of the state; the run's own check compares it, here `expected`.
            with pytest.raises((CheckpointError, AssertionError)):
                load_checkpoint(path, expected)
        else:
            with pytest.raises(CheckpointError, match=STATE_FILE):
                load_checkpoint(path, expected)
    for length in random.integers(0, len(content) - 1, 50).tolist():
        (path / file).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path, expected)


def test_links_are_not_followed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "real", checkpoint())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-000000007").symlink_to(tmp_path / "real" / "step-000000007")
    assert checkpoint_folders(tmp_path / "run") == []
