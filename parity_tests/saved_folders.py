"""Good folders of models and runs, how they are read, and what can be put in place of a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.cases import small_config
from pe_cli.main import main
from pe_core import ModelConfig
from pe_core.errors import UserError
from pe_core.model.initial import initial_arrays
from pe_core.storage.checkpoint import MANIFEST_FILE, STATE_FILE, checkpoint_folders
from pe_core.storage.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedModel,
    load_model,
    save_model,
)
from pe_core.storage.tensors import tensor_digest
from pe_core.training.run_directory import CHECKPOINTS_FOLDER, METRICS_FILE, RunDirectory

PINNED = Path(__file__).parent / "pinned"
CONFIG = small_config(num_layers=1)
DETAILS = {
    "class_names": ["a", "b", "c", "d"],
    "standardisation": {"mean": [0.1, 0.2, 0.3], "scale": [1.5, 1.25, 1e-6]},
    "seed": 3,
}
FLIPS, CUTS, OTHERS = 40, 12, 12
# What Python takes to read a header and to say what is wrong; beyond it, a refusal takes the files
# twice at most.
OVERHEAD = 1 << 20
Digests = dict[str, str]


def make_run(folder: Path, *words: str) -> None:
    """A run that stops in its second epoch, with one checkpoint."""
    options = "--data=order --d-model=8 --num-heads=2 --num-layers=1 --d-ff=12 --epochs=3"
    more = ("--batch-size=200", "--checkpoint-every=100", "--stop-at=7", f"--out={folder}")
    assert main(["train", "--framework=torch", *options.split(), *more, *words]) == 0


def make_all(path: Path) -> None:
    """Make good folders, and others of the same kind."""
    for name, seed in (("model", 0), ("another model", 1)):
        save_model(path / name, SavedModel(CONFIG, initial_arrays(CONFIG, seed), DETAILS))
    make_run(path / "run")
    make_run(path / "another run", "--seed=1")
    for name in ("model", "run"):
        shutil.copytree(PINNED / f"{name}_v1", path / f"{name} of format 1")


def digests(arrays: dict[str, np.ndarray]) -> Digests:
    return {name: tensor_digest(array) for name, array in arrays.items()}


def read_model(folder: Path) -> Digests:
    return digests(load_model(folder).arrays)


def read_state(folder: Path) -> Digests:
    """Read what `pe resume` reads of a run after its config."""
    record = RunDirectory(folder).config()
    identity = {name: record[name] for name in ("model", "train", "compute", "data", "data_sha256")}
    config = ModelConfig.from_json(record["model"])
    arrays, progress, _ = RunDirectory(folder).restore(config, identity)
    assert arrays is not None
    rest = json.dumps([progress.step, [vars(item) for item in progress.records]])
    return digests(arrays) | {"rows": tensor_digest(progress.rows), "rest": rest}


def state_folder(folder: Path) -> Path:
    return checkpoint_folders(folder / CHECKPOINTS_FOLDER)[0]


def find(folder: Path, file: str) -> Path:
    """Return where a file of a model or run is."""
    return next(folder.rglob(file))


READERS: dict[str, Callable[[Path], Digests]] = {"model": read_model, "run": read_state}
FILES = {
    "model": (CONFIG_FILE, WEIGHTS_FILE),
    "run": (METRICS_FILE, MANIFEST_FILE, STATE_FILE),
}
VERSIONS = ("", " of format 1")


def refusal(read: Callable[[Path], Digests], folder: Path) -> str | Digests:
    """Return what was read, or why it was refused; memory is bounded."""
    reason = ""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tracemalloc.start()
    try:
        return read(folder)
    except UserError as error:
        reason = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2 * size + OVERHEAD
    assert str(folder) in reason
    assert "\n" not in reason
    return reason


class Marking:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def contents(content: bytes, mark: Path) -> Iterator[bytes]:
    """Single bits flipped, the file as far as it goes, and something else under the name."""
    random = np.random.default_rng(0)
    for place in random.integers(0, 8 * len(content), FLIPS).tolist():
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)
    for number in range(CUTS):
        yield content[: number * (len(content) - 1) // (CUTS - 1)]
    yield pickle.dumps(Marking(mark))
    yield struct.pack("<Q", 8) + pickle.dumps(Marking(mark))
    yield struct.pack("<Q", 1 << 62) + b"{}"
    yield b"hello\n"
    yield b"[1]\n"
    yield b"null\n"
    yield b"[" * 100_000
    yield b'{"format": ' + b"9" * 10_000 + b"}"
    yield b'{"format": 1e999}'
    yield b'{"format": NaN}'
    yield b'{"format": 1, "format": 1}'
    yield b'{"format": "\xff"}'
