"""A run that is killed, asked to end, or refused by its disk goes on and ends on the bits of the
run that was left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.cases import ENGINES, FEATURES, LENGTH
from parity_tests.evidence import write_section
from parity_tests.fork_server import Ended, ForkServer
from parity_tests.system_calls import acting_at
from pe_core import ModelConfig
from pe_core.model.random import derive, normal
from pe_core.storage.checkpoint import (
    STATE_FILE,
    Checkpoint,
    checkpoint_folders,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from pe_core.storage.model_directory import WEIGHTS_FILE, is_saved, load_model, save_model
from pe_core.training.run_directory import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    MODEL_FOLDER,
    RunDirectory,
    checkpoint_shapes,
)

# How many kills, and how many of them in saves of a checkpoint, in saves of one that was damaged
# (the step is saved again), and in saves of the model.
KILLS, IN_SAVES = 12, (5, 2, 2)
KILLS_OF_EVIDENCE, IN_SAVES_OF_EVIDENCE = 100, (40, 15, 15)
INTERVAL, STEPS = 3, 72
WORDS = (
    "--d-model=12", "--num-heads=3", "--num-layers=1", "--d-ff=20", "--dropout=0.1",
    "--batch-size=6", "--epochs=12",
    f"--checkpoint-every={INTERVAL}",
)  # fmt: skip


class Runs:
    """Runs of one framework, and the process that makes them."""

    def __init__(self, framework: str, place: Path) -> None:
        self.framework, self.place = framework, place
        np.savez(
            place / "data.npz",
            inputs=normal(derive(0, 94), (45, LENGTH, FEATURES)).astype(np.float32),
            labels=np.arange(45) % 2,
        )
        self.server = ForkServer(framework, place)
        # The run that is left alone also fills the cache of compiled functions.
        ended = self.begin("whole")
        assert (ended.code, ended.step) == (0, STEPS - 1), ended.said
        self.expected = self.digest("whole")

    def begin(self, name: str, **order: Any) -> Ended:
        """Begin a run."""
        data, out = f"--data={self.place / 'data.npz'}", f"--out={self.place / name}"
        return self.server.run("train", f"--framework={self.framework}", data, *WORDS, out, **order)

    def go_on(self, name: str, **order: Any) -> Ended:
        """Go on with a run, or begin it if nothing was written yet."""
        run = self.place / name
        if (run / CONFIG_FILE).is_file():
            return self.server.run("resume", run, f"--checkpoint-every={INTERVAL}", **order)
        shutil.rmtree(run, ignore_errors=True)
        return self.begin(name, **order)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of the weights at the end."""
        weights = self.place / name / MODEL_FOLDER / WEIGHTS_FILE
        return sha256(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=list(ENGINES))
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    found = Runs(request.param, tmp_path_factory.mktemp("runs"))
    yield found
    found.server.close()


def shapes(run: Path) -> Callable[[dict[str, Any]], dict[str, tuple[int, ...]]]:
    """Return what a checkpoint of the run must have."""
    config = ModelConfig.from_json(RunDirectory(run).config()["model"])
    return lambda record: checkpoint_shapes(config, record)


def newest(run: Path) -> tuple[int, list[str]]:
    """Return the step of the newest checkpoint that can be loaded, and what was passed over."""
    if not (run / CONFIG_FILE).is_file():
        return 0, []
    found, passed_over = newest_checkpoint(run / CHECKPOINTS_FOLDER, shapes(run))
    return 0 if found is None else found.step, passed_over


def require_recent(run: Path, ended: Ended) -> int:
    """Return the step of the newest checkpoint, at most one interval behind the step in flight,
    which may have been taken.
    """
    step, passed_over = newest(run)
    assert (step > 0, passed_over) == (True, [])
    assert ended.step is not None
    assert ended.step + 1 - step <= INTERVAL
    return step


def moments(run: Path, scratch: Path, counts: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Return orders to die in a save, spread evenly over the calls that each kind of save makes."""
    shutil.copytree(run, scratch)
    folder = scratch / CHECKPOINTS_FOLDER
    last = load_checkpoint(checkpoint_folders(folder)[0], shapes(run))
    model = load_model(scratch / MODEL_FOLDER)

    def never() -> None:
        raise AssertionError

    with acting_at(-1, never) as first:
        save_checkpoint(folder, Checkpoint(last.step + 1, last.arrays, last.record))
    with acting_at(-1, never) as again:
        save_checkpoint(folder, Checkpoint(last.step + 1, last.arrays, last.record))
    with acting_at(-1, never) as of_model:
        save_model(scratch / MODEL_FOLDER, model)
    assert {"mkdir", "open", "write", "fsync", "rename", "rmdir"} <= set(first) & set(again)
    assert {"open", "write", "fsync", "replace"} <= set(of_model)
    found = []
    for calls, number, order in (
        (first, counts[0], {"save": "save_checkpoint", "damaged": False}),
        (again, counts[1], {"save": "save_checkpoint", "damaged": True}),
        (of_model, counts[2], {"save": "save_model", "damaged": False}),
    ):
        found += [order | {"call": int(call)} for call in np.linspace(0, len(calls) - 1, number)]
    return found


def kill_often(runs: Runs, kills: int, in_saves: tuple[int, int, int]) -> int:
    """Kill runs and let them go on until that many kills are done; return how many runs ended.

    The first kills are in saves, the others at random instants: some steps after the start and a
    moment longer than a save takes, or, one time in four, at any time of a child that starts.
    """
    orders = moments(runs.place / "whole", runs.place / f"scratch {kills}", in_saves)
    random = np.random.default_rng(kills)
    done, number = 0, 0
    while done < kills:
        name = f"run {kills} {number}"
        run = runs.place / name
        while not is_saved(run / MODEL_FOLDER):
            before, damaged = newest(run)[0], False
            order: dict[str, Any] = {}
            if orders and (before or not orders[0]["damaged"]):
                order = orders[0] | {"count": 0}
                damaged = order.pop("damaged")
                if damaged:
                    (checkpoint_folders(run / CHECKPOINTS_FOLDER)[0] / STATE_FILE).write_bytes(b"")
                elif order["save"] == "save_checkpoint":
                    order["count"] = int(random.integers(3))
            elif done < kills and random.random() < 0.25:
                order = {"after": 0, "seconds": random.uniform(0, 0.4)}
            elif done < kills:
                order = {"after": int(random.integers(1, 13)), "seconds": random.uniform(0, 0.015)}
            ended = runs.go_on(name, **order)
            if ended.code == 0:
                continue
            assert ended.code == -signal.SIGKILL, ended.said
            done += 1
            if "call" in order:
                orders.pop(0)
            step, passed_over = newest(run)
            # The damaged one is there until the run has come to its step again.
            assert len(passed_over) <= damaged, passed_over
            # The step in flight may have been taken; what is lost then is at most one interval.
            assert ended.step is None or ended.step + 1 - step <= INTERVAL, (ended, step)
            assert step >= before - (INTERVAL if damaged else 0)
        assert runs.digest(name) == runs.expected
        number += 1
    assert orders == []
    return number


def test_a_killed_run_goes_on_from_where_it_was(runs: Runs) -> None:
    assert kill_often(runs, KILLS, IN_SAVES) > 0


@pytest.mark.evidence
def test_a_hundred_kills(tmp_path: Path) -> None:
    rows = []
    for framework in ENGINES:
        (tmp_path / framework).mkdir()
        runs = Runs(framework, tmp_path / framework)
        started = time.perf_counter()
        ended = kill_often(runs, KILLS_OF_EVIDENCE, IN_SAVES_OF_EVIDENCE)
        seconds = f"{time.perf_counter() - started:.0f} s"
        runs.server.close()
        in_saves = sum(IN_SAVES_OF_EVIDENCE)
        rows.append(
            [framework, KILLS_OF_EVIDENCE, in_saves, KILLS_OF_EVIDENCE - in_saves, ended, seconds]
        )
    columns = ["backend", "kills", "in a save", "at a random instant", "runs", "time"]
    write_section("kills", columns, rows)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_run_that_is_asked_to_end_keeps_every_step(
    number: signal.Signals, code: int, runs: Runs
) -> None:
    ended = runs.begin(number.name, after=11, do=lambda child: os.kill(child, number))
    assert ended.code == code, ended.said
    assert ended.said.splitlines()[-1].startswith("pe: error: ")
    assert ended.step is not None
    assert newest(runs.place / number.name) == (ended.step + 1, [])
    assert runs.go_on(number.name).code == 0
    assert runs.digest(number.name) == runs.expected


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Make a folder with room for a run but not for its last checkpoints; give what a child is
    ordered for that, and what the kernel will say.

    It is a file system of its own if this process may mount one, else a limit on the size of a
    file, which stops a write half way too.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        if mounted:
            yield {}, "no space left on device"
        else:
            yield {"largest_file": 6000}, "file too large"
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


def require_one_line(ended: Ended, path: Path) -> None:
    """Require the end of a run that could not write: one line with the path and the remedy."""
    assert ended.code == 2, ended.said
    last = ended.said.splitlines()[-1]
    assert last.startswith(f"pe: error: {path}"), ended.said
    assert re.search(r"; (make room there|choose a path)", last)
    assert "Traceback" not in ended.said


def test_a_full_disk_leaves_the_last_checkpoint(runs: Runs) -> None:
    small = runs.place / "small"
    with small_disk(small) as (order, reason):
        ended = runs.begin("small/run", **order)
        require_one_line(ended, small / "run")
        assert reason in ended.said
        require_recent(small / "run", ended)
        shutil.copytree(small / "run", runs.place / "roomy")
    assert runs.go_on("roomy").code == 0
    assert runs.digest("roomy") == runs.expected


def test_a_lost_permission_leaves_the_last_checkpoint(runs: Runs) -> None:
    folder = runs.place / "lost"
    folder.mkdir()
    folder.chmod(0o555)
    require_one_line(runs.begin("lost/run", bound=True), folder / "run")
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    checkpoints = folder / "run" / CHECKPOINTS_FOLDER
    ended = runs.begin("lost/run", bound=True, after=11, do=lambda child: checkpoints.chmod(0o555))
    require_one_line(ended, checkpoints)
    step = require_recent(folder / "run", ended)
    require_one_line(runs.go_on("lost/run", bound=True), checkpoints)
    assert newest(folder / "run") == (step, [])
    checkpoints.chmod(0o755)
    assert runs.go_on("lost/run", bound=True).code == 0
    assert runs.digest("lost/run") == runs.expected
