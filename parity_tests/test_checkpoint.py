"""Checkpoints come back bit for bit, appear whole or not at all whatever fails, and the newest that
can be loaded is found.
"""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from parity_tests.system_calls import acting_at
from pe_core.storage.checkpoint import (
    KEPT,
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    checkpoint_folders,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

SHAPES: dict[str, tuple[int, ...]] = {
    "param/a": (3, 5),
    "adam/m/a": (3, 5),
    "adam/count": (),
    "epoch/metrics": (0, 4),
}
RECORD = {"epoch": 2, "note": "ü", "rate": 1e-3}


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


def bits(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype[Any], bytes]]:
    return {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also by another reader of the format."""
    saved = checkpoint()
    folder = save_checkpoint(tmp_path, saved)
    found = load_checkpoint(folder, expected)
    assert (found.step, found.record) == (7, RECORD)
    assert bits(found.arrays) == bits(saved.arrays)
    assert bits(safetensors.numpy.load_file(folder / STATE_FILE)) == bits(saved.arrays)
    assert all(array.flags.writeable for array in found.arrays.values())
    assert list(tmp_path.iterdir()) == [folder]


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a has dtype float16; convert it to float32, float64"):
        save_checkpoint(tmp_path, Checkpoint(1, {"a": np.zeros(2, np.float16)}, {}))
    assert list(tmp_path.iterdir()) == []


def test_keeps_the_newest(tmp_path: Path) -> None:
    """Step 10 went when the run had gone back and came to 9: it was one that was passed over."""
    for step in (1, 2, 10, 9, 11):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [int(path.name[5:]) for path in checkpoint_folders(tmp_path)] == [11, 9, 2]


def test_falls_back_and_says_why(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "step-000000003" / STATE_FILE).write_bytes(b"")
    (tmp_path / "step-000000002" / MANIFEST_FILE).unlink()
    found, (first, second) = newest_checkpoint(tmp_path, expected)
    assert found is not None
    assert found.step == 1
    assert "step-000000003" in first
    assert "step-000000002" in second
    assert newest_checkpoint(tmp_path / "nothing", expected) == (None, [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("last", [3, 4], ids=["the step again", "the next step"])
def test_every_call_of_a_save_may_fail(last: int, code: int, tmp_path: Path) -> None:
    """Each call to the system fails once: the error names the checkpoint, and the newest one holds.
    `test_kills` stops the process there instead.
    """

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for number in itertools.count():
        folder = tmp_path / str(number)
        for step in (1, 2, 3):
            save_checkpoint(folder, checkpoint(step))
        target = folder / f"step-{last:09d}"
        failed: list[object] = []
        with acting_at(number, fail) as calls:
            try:
                save_checkpoint(folder, checkpoint(last))
            except OSError as error:
                failed = [error.errno, error.filename]
        # A folder that is there already need not be made.
        assert failed in ([], [code, str(target)])
        assert failed or number == len(calls) or calls[number] == "mkdir"
        found, passed_over = newest_checkpoint(folder, expected)
        assert found is not None
        assert found.step in (last - 1, last)
        assert passed_over == []
        save_checkpoint(folder, checkpoint(last))
        assert load_checkpoint(target, expected).step == last
        assert len(checkpoint_folders(folder)) == KEPT
        assert len(list(folder.iterdir())) == KEPT
        if number == len(calls):
            break
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} <= set(calls)


def test_bytes_are_on_the_disk_before_their_names(tmp_path: Path) -> None:
    """The state, the manifest and their folder are synced, then the folder is renamed, and then the
    folder of checkpoints is synced.
    """
    with acting_at(-1, lambda: None) as calls:
        save_checkpoint(tmp_path, checkpoint())
    order = [call for call in calls if call in ("write", "fsync", "rename")]
    last = len(order) - order[::-1].index("write")
    assert order[last:] == ["fsync", "fsync", "fsync", "rename", "fsync"]


def test_what_a_stopped_save_left_goes(tmp_path: Path) -> None:
    """Links are not followed, neither to be read nor to be removed."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "text").write_text("text")
    run = tmp_path / "run"
    save_checkpoint(run, checkpoint(1))
    (run / "step-000000007").symlink_to(run / "step-000000001")
    (run / ".step-000000002.new").symlink_to(tmp_path / "precious")
    (run / ".step-000000009.old").mkdir()
    (run / ".step-000000009.old" / STATE_FILE).write_text("half")
    assert [path.name for path in checkpoint_folders(run)] == ["step-000000001"]
    save_checkpoint(run, checkpoint(2))
    names = [f"step-{step:09d}" for step in (1, 2, 7)]
    assert sorted(path.name for path in run.iterdir()) == names
    assert (tmp_path / "precious" / "text").read_text() == "text"
