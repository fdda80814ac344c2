"""Damaged and hostile files: each is refused in one line that names the file and the fault, nothing
is executed, memory is bounded.
"""

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
import pytest

from parity_tests.cases import FEATURES, LENGTH, small_config
from pe_cli import resume, train
from pe_core import ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.model.random import derive, normal
from pe_core.storage.checkpoint import MANIFEST_FILE, STATE_FILE, load_checkpoint
from pe_core.storage.files import SIGNATURE, signed_json
from pe_core.storage.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedModel,
    digest,
    load_model,
    save_model,
)
from pe_core.training.run_directory import (
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    RunDirectory,
    checkpoint_shapes,
)

CONFIG = small_config(num_layers=1)
DETAILS = {
    "class_names": ["a", "b", "c", "d"],
    "standardisation": {"mean": [0.1, 0.2, 0.3], "scale": [1.5, 1.25, 1e-6]},
    "seed": 3,
}
FLIPS, CUTS = 40, 12
VARIANTS = 300
# What Python takes to read a header and to say what is wrong; beyond it, a refusal takes the files
# twice at most.
OVERHEAD = 1 << 20
CLASS_NAMES = (
    "__class__",
    "_target_",
    "py/object",
    "py/reduce",
    "$type",
    "@class",
    "!!python/object/apply:os.mkdir",
)
Damage = Callable[[Path], object]
Change = Callable[[dict[str, Any]], object]


class Marking:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


# Ways to spoil a file of any kind.


def flips(file: str) -> Iterator[tuple[str, Damage]]:
    """Single bits, spread over the file by a seed."""
    for number in range(FLIPS):

        def damage(folder: Path, number: int = number) -> None:
            content = bytearray((folder / file).read_bytes())
            place = int(np.random.default_rng(number).integers(0, 8 * len(content)))
            content[place // 8] ^= 1 << place % 8
            (folder / file).write_bytes(bytes(content))

        yield f"{file}: flip {number}", damage


def cuts(file: str) -> Iterator[tuple[str, Damage]]:
    """The file as far as it goes, from nothing to all but a byte."""
    for number in range(CUTS):

        def damage(folder: Path, number: int = number) -> None:
            content = (folder / file).read_bytes()
            (folder / file).write_bytes(content[: number * (len(content) - 1) // (CUTS - 1)])

        yield f"{file}: cut {number}", damage


def contents(file: str, mark: Path) -> Iterator[tuple[str, Damage]]:
    """Something else under the name."""
    others = {
        "a pickle": pickle.dumps(Marking(mark)),
        "a pickle that begins as a header": struct.pack("<Q", 8) + pickle.dumps(Marking(mark)),
        "text": b"hello\n",
        "a list": b"[1]\n",
        "null": b"null\n",
        "nested": b"[" * 100_000,
        "a huge number": b'{"format": ' + b"9" * 10_000 + b"}",
        "a number beyond all": b'{"format": 1e999}',
        "NaN": b'{"format": NaN}',
        "a key twice": b'{"format": 1, "format": 1}',
        "not UTF-8": b'{"format": "\xff"}',
        "a header of 2^62 bytes": struct.pack("<Q", 1 << 62) + b"{}",
    }
    for what, content in others.items():
        yield f"{file}: {what}", put(file, content)


def put(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def in_json(
    file: str, changes: dict[str, Change], *, also_signed: bool = True
) -> Iterator[tuple[str, Damage]]:
    """Fields changed, under the old signature and signed anew."""
    for what, change in changes.items():
        for signed in (False, True) if also_signed else (False,):

            def damage(folder: Path, change: Change = change, signed: bool = signed) -> None:
                record = json.loads((folder / file).read_text())
                change(record)
                if signed:
                    record.pop(SIGNATURE, None)
                (folder / file).write_bytes(
                    signed_json(record)
                    if signed
                    else (json.dumps(record, indent=2) + "\n").encode()
                )

            yield f"{file}: {what}{', signed' if signed else ''}", damage


def update(**fields: Any) -> Change:
    return lambda record: record.update(fields)


def update_in(part: str, **fields: Any) -> Change:
    return lambda record: record[part].update(fields)


def class_names(mark: Path) -> dict[str, Change]:
    """Names of classes, as libraries that make objects from JSON look for them."""
    value = {"py/function": "os.mkdir", "args": [str(mark)]}
    top = {name: update(**{name: value}) for name in CLASS_NAMES}
    return top | {f"model.{name}": update_in("model", **{name: "os.mkdir"}) for name in CLASS_NAMES}


def in_header(file: str, name: str) -> Iterator[tuple[str, Damage]]:
    """One tensor described otherwise, the rest as it was."""
    entries: dict[str, dict[str, Any]] = {
        "shape": {"shape": [7]},
        "shape of 2^80": {"shape": [1 << 40, 1 << 40]},
        "shape below zero": {"shape": [-1, -1]},
        "shape of truth values": {"shape": [True]},
        "a hundred axes": {"shape": [1] * 100},
        "narrow dtype": {"dtype": "F16"},
        "wider dtype": {"dtype": "F64"},
        "dtype of a class": {"dtype": "os.mkdir"},
        "dtype of a list": {"dtype": ["F32"]},
        "offsets beyond": {"data_offsets": [1 << 60, 1 << 61]},
        "offsets below zero": {"data_offsets": [-4, 0]},
        "offsets backwards": {"data_offsets": [8, 4]},
        "one offset": {"data_offsets": [0]},
        "a class": {"__class__": "os.mkdir"},
    }
    for what, entry in entries.items():

        def damage(folder: Path, entry: dict[str, Any] = entry) -> None:
            header, payload = split(folder / file)
            join(folder / file, json.dumps(header | {name: header[name] | entry}).encode(), payload)

        yield f"{file}: {what}", damage

    def twice(folder: Path) -> None:
        header, payload = split(folder / file)
        text = json.dumps(header)
        join(
            folder / file,
            (text[:-1] + f', "{name}": ' + json.dumps(header[name]) + "}").encode(),
            payload,
        )

    def renamed(folder: Path) -> None:
        header, payload = split(folder / file)
        join(
            folder / file,
            json.dumps(
                {("../" * 9 + key if key == name else key): entry for key, entry in header.items()}
            ).encode(),
            payload,
        )

    def metadata(folder: Path) -> None:
        header, payload = split(folder / file)
        join(
            folder / file,
            json.dumps(header | {"__metadata__": {"format": ["os.mkdir"]}}).encode(),
            payload,
        )

    yield f"{file}: a tensor twice", twice
    yield f"{file}: a name with ..", renamed
    yield f"{file}: metadata that are no texts", metadata
    yield (
        f"{file}: bytes behind",
        lambda folder: join(
            folder / file,
            json.dumps(split(folder / file)[0]).encode(),
            split(folder / file)[1] + b"x",
        ),
    )


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: bytes, payload: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + payload)


# What is spoiled, and what reads it.


def make_model(folder: Path, seed: int = 0) -> None:
    save_model(folder, SavedModel(CONFIG, initial_arrays(CONFIG, seed), DETAILS))


def make_run(folder: Path, seed: int = 0) -> None:
    """A run that stopped in its second epoch, with three checkpoints."""
    data = folder.parent / "data.npz"
    np.savez(
        data,
        inputs=normal(derive(0, 93), (40, LENGTH, FEATURES)).astype(np.float32),
        labels=np.arange(40) % 2,
    )
    words = {
        "d_model": 12,
        "num_heads": 3,
        "num_layers": 1,
        "d_ff": 20,
        "epochs": 4,
        "batch_size": 8,
        "seed": seed,
    }
    train.run(
        train.TrainOptions(
            "torch",
            str(data),
            out=str(folder),
            checkpoint_every=2,
            stop_at=6,
            **words,  # type: ignore[arg-type]
        )
    )


def go_on(folder: Path) -> object:
    """Read all of a run that `pe resume` reads, up to its first step."""
    return resume.run(resume.ResumeOptions(str(folder)))


def read_checkpoint(folder: Path) -> object:
    return load_checkpoint(
        folder, lambda record: checkpoint_shapes(run_config(folder.parents[1]), record)
    )


def run_config(run: Path) -> ModelConfig:
    return ModelConfig.from_json(json.loads((run / CONFIG_FILE).read_text())["model"])


def read_metrics(folder: Path) -> object:
    identity = {
        name: value
        for name, value in RunDirectory(folder).config().items()
        if name in ("model", "train", "compute", "data_sha256")
    }
    return RunDirectory(folder).restore(run_config(folder), identity)


def of_model(folder: Path, mark: Path) -> Iterator[tuple[str, Damage]]:
    other = folder.parent / "another model"
    make_model(other, seed=1)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        yield from flips(file)
        yield from cuts(file)
        yield from contents(file, mark)
        yield f"{file} of another model", put(file, (other / file).read_bytes())
    yield from in_header(WEIGHTS_FILE, "head.bias")
    changes = class_names(mark) | {
        "older format": update(format=0),
        "format of a text": update(format="1"),
        "no model": lambda record: record.pop("model"),
        "4096 layers": update_in("model", num_layers=4096),
        "a width of 2^30": update_in("model", d_model=3 << 29),
        "a table of 2^31": update_in(
            "model", encodings=[{"name": "learned", "max_length": 1 << 31}]
        ),
        "an encoding of a class": update_in("model", encodings=[{"name": "os.mkdir"}]),
        "inputs of a class": update_in("model", inputs={"kind": "os.mkdir", "size": 3}),
        "width of a text": update_in("model", d_model="12"),
        "weights of another": update(weights_sha256="0" * 64),
    }
    yield from in_json(CONFIG_FILE, changes)
    details = {
        "other class names": update(class_names=["d", "c", "b", "a"]),
        "other means": update_in("standardisation", mean=[9.0, 0.2, 0.3]),
    }
    yield from in_json(CONFIG_FILE, details, also_signed=False)


def of_run(folder: Path, mark: Path) -> Iterator[tuple[str, Damage]]:
    other = folder.parent / "another run"
    make_run(other, seed=1)
    yield from flips(CONFIG_FILE)
    yield from cuts(CONFIG_FILE)
    yield from contents(CONFIG_FILE, mark)
    yield f"{CONFIG_FILE} of another run", put(CONFIG_FILE, (other / CONFIG_FILE).read_bytes())
    changes = class_names(mark) | {
        "another model": update_in("model", d_ff=24),
        "another rate": update_in("train", learning_rate=0.5),
        "another precision": update_in("compute", precision="float64"),
        "compute of a class": update_in("compute", __class__="os.mkdir"),
        "framework of a class": update(framework="os"),
        "no source": update(source=None),
        "source of a class": update(source={"data": {"py/object": "os.mkdir"}, "test": None}),
        "2^40 epochs": update_in("train", epochs=1 << 40),
    }
    yield from in_json(CONFIG_FILE, changes)
    yield from in_json(
        CONFIG_FILE,
        {"a source with ..": update(source={"data": "../../etc/passwd", "test": None})},
        also_signed=False,
    )


def of_metrics(folder: Path, mark: Path) -> Iterator[tuple[str, Damage]]:
    yield from flips(METRICS_FILE)
    yield from cuts(METRICS_FILE)
    yield from contents(METRICS_FILE, mark)


def of_checkpoint(folder: Path, mark: Path) -> Iterator[tuple[str, Damage]]:
    older = folder.with_name("step-000000004")
    for file in (MANIFEST_FILE, STATE_FILE):
        yield from flips(file)
        yield from cuts(file)
        yield from contents(file, mark)
        yield f"{file} of another step", put(file, (older / file).read_bytes())
    yield from in_header(STATE_FILE, "param/head.bias")
    changes: dict[str, Change] = {
        "older format": update(format=0),
        "another step": update(step=8),
        "a step with ..": update(step="../../x"),
        "rows of 2^62": update_in("record", rows=1 << 62),
        "rows of a truth value": update_in("record", rows=True),
        "records below zero": update_in("record", records=-1),
        "no record": lambda record: record.pop("record"),
        "a class": update(__class__="os.mkdir"),
        "a digest of another": update_in("tensors", **{"param/head.bias": "0" * 64}),
        "a tensor too many": update_in("tensors", **{"../x": "0" * 64}),
    }
    yield from in_json(MANIFEST_FILE, changes)


KINDS: dict[
    str, tuple[Callable[[Path, Path], Iterator[tuple[str, Damage]]], Callable[[Path], object]]
] = {
    "model": (of_model, load_model),
    "run": (of_run, go_on),
    "metrics": (of_metrics, read_metrics),
    "checkpoint": (of_checkpoint, read_checkpoint),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good folder of each kind."""
    place = tmp_path_factory.mktemp("good")
    make_model(place / "model")
    make_run(place / "run")
    run = place / "run"
    return {
        "model": place / "model",
        "run": run,
        "metrics": run,
        "checkpoint": run / CHECKPOINTS_FOLDER / "step-000000006",
    }


def check(kind: str, folder: Path, mark: Path) -> int:
    """Spoil a folder in every way, one after the other, and return in how many; each must be
    refused.
    """
    variants, read = KINDS[kind]
    good = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    count = 0
    for what, damage in variants(folder, mark):
        damage(folder)
        assert {path: path.read_bytes() for path in good} != good, f"{what}: nothing changed"
        size = sum(path.stat().st_size for path in good)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words differ by variant
                read(folder)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        message = str(caught.value)
        assert str(folder) in message, (what, message)
        assert "\n" not in message, (what, message)
        assert not mark.exists(), what
        assert peak <= 2 * size + OVERHEAD, (what, peak, size)
        for path, content in good.items():
            path.write_bytes(content)
        count += 1
    return count


def test_no_variant_is_loaded(made: dict[str, Path], tmp_path: Path) -> None:
    counts = {kind: check(kind, made[kind], tmp_path / "mark") for kind in KINDS}
    assert sum(counts.values()) >= VARIANTS
    assert min(counts.values()) >= FLIPS + CUTS


def test_the_good_ones_are_loaded(made: dict[str, Path]) -> None:
    """The readers refuse damage, and not everything."""
    assert digest(load_model(made["model"]).arrays) == digest(initial_arrays(CONFIG, 0))
    read_checkpoint(made["checkpoint"])
    read_metrics(made["metrics"])


def test_a_pickle_would_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Marking(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("file", [MANIFEST_FILE, STATE_FILE])
def test_a_run_goes_back_to_the_checkpoint_before(
    file: str, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made["run"], tmp_path / "run")
    newest = tmp_path / "run" / CHECKPOINTS_FOLDER / "step-000000006"
    newest.joinpath(file).write_bytes(b"\x80\x04N.")
    assert go_on(tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "passed over a checkpoint: " in said
    assert str(newest / file) in said
    assert go_on_whole(tmp_path / "whole") == digest(load_model(tmp_path / "run" / "model").arrays)


def go_on_whole(folder: Path) -> str:
    make_run(folder)
    go_on(folder)
    return digest(load_model(folder / "model").arrays)
