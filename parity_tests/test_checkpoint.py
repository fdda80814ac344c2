"""Checkpoints: whole or not at all, every damage refused by name, and the newest that holds is
found.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import pe_core.storage.checkpoint
from pe_core.storage.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    checkpoint_folders,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pe_core.storage.files import SIGNATURE, DamagedError, signed_json

SHAPES: dict[str, tuple[int, ...]] = {
    "param/a": (3, 5),
    "adam/m/a": (3, 5),
    "adam/count": (),
    "epoch/metrics": (0, 4),
}
RECORD = {"epoch": 2, "note": "ü"}


def expected(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if record != RECORD:
        raise ValueError(f"record is {record}")
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


def rewrite(
    path: Path,
    change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any] | bytes, bytes]],
    *,
    sign: bool,
) -> None:
    """Change header and payload of the state, and give it a manifest that vouches for the new bytes
    when signed.
    """
    content = (path / STATE_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, payload = change(json.loads(content[8 : 8 + length]), content[8 + length :])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + payload
    (path / STATE_FILE).write_bytes(content)
    if sign:
        edit(path, header=hashlib.sha256(text).hexdigest())


def edit(path: Path, **changes: Any) -> None:
    """Change fields of the manifest, and sign it anew."""
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    del manifest[SIGNATURE]
    (path / MANIFEST_FILE).write_bytes(signed_json(manifest | changes))


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
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        "step-000000011",
        "step-000000009",
        "step-000000002",
    ]
    # Step 10 went when the run had gone back and came to 9: its checkpoint was one that had been
    # passed over.


def test_falls_back_and_says_why(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "step-000000003" / STATE_FILE).write_bytes(b"")
    (tmp_path / "step-000000002" / MANIFEST_FILE).unlink()
    found, passed_over = newest_checkpoint(tmp_path, expected)
    assert found is not None
    assert found.step == 1
    assert [
        "step-000000003" in passed_over[0],
        "step-000000002" in passed_over[1],
        len(passed_over),
    ] == [True, True, 2]
    assert newest_checkpoint(tmp_path / "nothing", expected) == (None, [])


@pytest.mark.parametrize(
    "point", ["before the state", "before the manifest", "before the rename", "after the rename"]
)
def test_a_fault_inside_the_save_leaves_the_last_one(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))

    def full(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pe_core.storage.checkpoint, "fault_point", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(2))
    found, passed_over = newest_checkpoint(tmp_path, expected)
    assert found is not None
    assert found.step == (2 if point == "after the rename" else 1)
    assert passed_over == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


CALLS = ("open", "mkdir", "rename", "fsync", "fdatasync", "unlink", "rmdir")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_every_call_of_a_save_may_fail(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth save, which writes over the oldest; each call to the system fails once, and the
    error names the checkpoint.
    """
    failed = 0
    while True:
        folder = tmp_path / str(failed)
        for step in (1, 2, 3):
            save_checkpoint(folder, checkpoint(step))
        left = [failed + 1]

        def failing(call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(code, os.strerror(code))
                return call(*arguments, **options)

            return called

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name)))
            named: list[object] = []
            try:
                save_checkpoint(folder, checkpoint(4))
            except OSError as error:
                named = [error.errno, error.filename]
        assert named in ([], [code, str(folder / "step-000000004")])
        found, passed_over = newest_checkpoint(folder, expected)
        assert found is not None
        assert (found.step in (3, 4), passed_over) == (True, [])
        save_checkpoint(folder, checkpoint(4))
        assert load_checkpoint(folder / "step-000000004", expected).step == 4
        if left[0] > 0:
            break
        failed += 1
    assert failed >= len(
        (
            "rename",
            "open",
            "fdatasync",
            "open",
            "fdatasync",
            "open",
            "fsync",
            "rename",
            "open",
            "fsync",
        )
    )


def header_change(**entry: Any) -> Callable[[Path], None]:
    """Change one tensor's description, with the manifest vouching for the new bytes."""
    return lambda path: rewrite(
        path,
        lambda header, payload: (header | {"adam/m/a": header["adam/m/a"] | entry}, payload),
        sign=True,
    )


def _twice(header: dict[str, Any], payload: bytes) -> tuple[bytes, bytes]:
    text = json.dumps(header)
    return (
        text[:-1] + ', "param/a"' + text.split('"param/a"')[1].split("}")[0] + "}}"
    ).encode(), payload


def _pickled(path: Path) -> None:
    (path / STATE_FILE).write_bytes(pickle.dumps({"param/a": [1.0]}))


def again(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Save other arrays under the same name, all digests in order."""

    def damage(path: Path) -> None:
        other = checkpoint()
        change(other.arrays)
        save_checkpoint(path.parent, other)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (lambda path: (path / STATE_FILE).unlink(), "state.safetensors is missing"),
    "no manifest": (lambda path: (path / MANIFEST_FILE).unlink(), "manifest.json is missing"),
    "empty state": (
        lambda path: (path / STATE_FILE).write_bytes(b""),
        "0 bytes are no safetensors file",
    ),
    "empty manifest": (lambda path: (path / MANIFEST_FILE).write_bytes(b""), "is not valid JSON"),
    "manifest is a list": (
        lambda path: (path / MANIFEST_FILE).write_text("[]"),
        "format is \\[\\]",
    ),
    "older format": (lambda path: edit(path, format=0), "format is 0, this version reads 1"),
    "unknown field": (lambda path: edit(path, extra=1), "fields are"),
    "another step": (
        lambda path: edit(path, step=8),
        "step is 8, but the folder is step-000000007",
    ),
    "step is a text": (lambda path: edit(path, step="../../x"), r"step is \.\./\.\./x"),
    "record of another run": (lambda path: edit(path, record=[]), "record is not an object"),
    "header digest of another": (
        lambda path: edit(path, header="0" * 64),
        "SHA-256 does not hold for its header",
    ),
    "tensor digests of others": (lambda path: edit(path, tensors={}), "tensors are not those"),
    "NaN in the manifest": (
        lambda path: (path / MANIFEST_FILE).write_text('{"format": NaN}'),
        "holds NaN",
    ),
    "key twice in the manifest": (
        lambda path: (path / MANIFEST_FILE).write_text('{"format": 1, "format": 1}'),
        "'format' stands twice",
    ),
    "deep nesting": (
        lambda path: (path / MANIFEST_FILE).write_text("[" * 200_000),
        "is not valid JSON",
    ),
    "wrong shape": (header_change(shape=[5, 3]), r"adam/m/a has shape \[5, 3\], not \[3, 5\]"),
    "huge shape": (
        header_change(shape=[1 << 40, 1 << 40]),
        "adam/m/a takes 120 bytes, but F64 of shape",
    ),
    "wrong dtype": (header_change(dtype="BF16"), "adam/m/a has dtype BF16"),
    "dtype is a list": (header_change(dtype=["F64"]), "adam/m/a has dtype"),
    "narrow dtype": (header_change(dtype="F32"), "adam/m/a takes 120 bytes, but F32"),
    "offsets beyond": (header_change(data_offsets=[1 << 60, (1 << 60) + 120]), "begins at byte"),
    "negative offsets": (header_change(data_offsets=[-120, 0]), "adam/m/a has data_offsets"),
    "offsets are texts": (header_change(data_offsets=["0", "120"]), "adam/m/a has data_offsets"),
    "another key": (header_change(code="os.system"), "adam/m/a is not described by"),
    "tensor missing": (
        again(lambda arrays: arrays.pop("param/a")),
        r"missing tensors \['param/a'\]",
    ),
    "tensor too many": (
        again(lambda arrays: arrays.update({"../x": arrays["param/a"]})),
        r"unexpected tensors \['\.\./x'\]",
    ),
    "bytes without a tensor": (
        lambda path: rewrite(
            path,
            lambda header, payload: ({k: v for k, v in header.items() if k != "param/a"}, payload),
            sign=True,
        ),
        r"is \d+ bytes, not \d+",
    ),
    "two tensors in one place": (
        lambda path: rewrite(
            path, lambda header, payload: (header | {"../x": header["param/a"]}, payload), sign=True
        ),
        r"\.\./x begins at byte",
    ),
    "tensor twice": (lambda path: rewrite(path, _twice, sign=True), "'param/a' stands twice"),
    "trailing bytes": (
        lambda path: rewrite(path, lambda header, payload: (header, payload + b"x"), sign=True),
        r"is \d+ bytes, not \d+",
    ),
    "huge header": (
        lambda path: (path / STATE_FILE).write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
        "it claims a header of",
    ),
    "a pickle": (_pickled, "it claims a header of"),
    "NaN in a tensor": (
        again(lambda arrays: arrays["adam/m/a"].fill(np.nan)),
        "adam/m/a holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint())
    damage, message = DAMAGES[name]
    damage(path)
    with pytest.raises(DamagedError, match=message) as caught:
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
        with pytest.raises(DamagedError, match=file):
            load_checkpoint(path, expected)
    for length in random.integers(0, len(content) - 1, 50).tolist():
        (path / file).write_bytes(content[:length])
        with pytest.raises(DamagedError):
            load_checkpoint(path, expected)


def test_links_are_not_followed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "real", checkpoint())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-000000007").symlink_to(tmp_path / "real" / "step-000000007")
    assert checkpoint_folders(tmp_path / "run") == []


def test_other_readers_of_the_format_agree(tmp_path: Path) -> None:
    found = safetensors.numpy.load_file(save_checkpoint(tmp_path, checkpoint()) / STATE_FILE)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in checkpoint().arrays.items()
    }


def test_what_a_stopped_save_left_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what it left is a link: it is not written through, and neither is a file that a
    copy of the run shares.
    """
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "run", checkpoint(step))
    oldest = tmp_path / "run" / "step-000000002" / STATE_FILE
    os.link(oldest, tmp_path / "shared")
    (tmp_path / "run" / ".step-000000004").mkdir()
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run" / ".step-000000004" / STATE_FILE).symlink_to(tmp_path / "precious")
    (tmp_path / "run" / ".step-000000009").mkdir()
    before = oldest.read_bytes()
    for step in (4, 5, 6):
        save_checkpoint(tmp_path / "run", checkpoint(step))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        f"step-{step:09d}" for step in (4, 5, 6)
    ]
    assert ((tmp_path / "precious").read_text(), (tmp_path / "shared").read_bytes()) == (
        "text",
        before,
    )
    assert all(
        load_checkpoint(path, expected).step for path in checkpoint_folders(tmp_path / "run")
    )
