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
from functools import cache
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
KILLS, IN_SAVES = 20, (8, 3, 3)
KILLS_OF_EVIDENCE, IN_SAVES_OF_EVIDENCE = 100, (40, 15, 15)
INTERVAL, STEPS = 3, 72
WORDS = (
    "--d-model=12", "--num-heads=3", "--num-layers=1", "--d-ff=20", "--dropout=0.1", "--batch-size=6", "--epochs=12",
    f"--checkpoint-every={INTERVAL}",
)  # fmt: skip
each = pytest.mark.parametrize("framework", list(ENGINES))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    np.savez(
        path / "data.npz",
        inputs=normal(derive(0, 94), (45, LENGTH, FEATURES)).astype(np.float32),
        labels=np.arange(45) % 2,
    )
    return path


@pytest.fixture(scope="module")
def servers(place: Path) -> Iterator[Callable[[str], ForkServer]]:
    """Give a fork server for a framework, which is started when it is first asked for."""
    started: dict[str, ForkServer] = {}

    def server(framework: str) -> ForkServer:
        if framework not in started:
            (place / f"of {framework}").mkdir()
            started[framework] = ForkServer(framework, place / f"of {framework}")
        return started[framework]

    yield server
    for process in started.values():
        process.close()


def line(framework: str, place: Path, run: Path) -> tuple[str, ...]:
    return (
        "train",
        f"--framework={framework}",
        f"--data={place / 'data.npz'}",
        *WORDS,
        f"--out={run}",
    )


def model_digest(run: Path) -> str:
    return sha256((run / MODEL_FOLDER / WEIGHTS_FILE).read_bytes()).hexdigest()


@cache
def whole(server: ForkServer, framework: str, place: Path) -> str:
    """Return the SHA-256 of the weights of the run that is left alone, which also fills the cache
    of compiled functions.
    """
    run = place / f"whole {framework}"
    ended = server.run(*line(framework, place, run))
    assert (ended.code, ended.step) == (0, STEPS - 1), ended.said
    return model_digest(run)


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


def go_on(framework: str, place: Path, run: Path) -> tuple[str, ...]:
    """Return the command that goes on with a run; if nothing was written yet, that which begins
    it.
    """
    if (run / CONFIG_FILE).is_file():
        return ("resume", str(run), f"--checkpoint-every={INTERVAL}")
    shutil.rmtree(run, ignore_errors=True)
    return line(framework, place, run)


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


def kill_often(
    framework: str, server: ForkServer, place: Path, kills: int, in_saves: tuple[int, int, int]
) -> tuple[int, int]:
    """Kill runs and let them go on; return how many kills there were, and how many runs ended.

    The first kills are in saves, the others at random instants: some steps after the start and a
    moment longer than a save takes, or, one time in four, at any time of a child that starts.
    """
    expected = whole(server, framework, place)
    orders = moments(place / f"whole {framework}", place / f"scratch {framework} {kills}", in_saves)
    random = np.random.default_rng(kills)
    done, runs = 0, 0
    while done < kills:
        run = place / f"run {kills} {framework} {runs}"
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
            ended = server.run(*go_on(framework, place, run), **order)
            if ended.code == 0:
                continue
            assert ended.code == -signal.SIGKILL, ended.said
            done += 1
            if "call" in order:
                orders.pop(0)
            step, passed_over = newest(run)
            # The damaged one is there until the run has come to its step again.
            assert len(passed_over) <= damaged, passed_over
            if ended.step is not None:
                # The step in flight may have been taken; what is lost then is at most one interval.
                assert ended.step + 1 - step <= INTERVAL, (ended, step)
            assert step >= before - (INTERVAL if damaged else 0)
        assert model_digest(run) == expected
        runs += 1
    assert orders == []
    return done, runs


@each
def test_a_killed_run_goes_on_from_where_it_was(
    framework: str, place: Path, servers: Callable[[str], ForkServer]
) -> None:
    assert kill_often(framework, servers(framework), place, KILLS, IN_SAVES)[0] == KILLS


@pytest.mark.evidence
def test_a_hundred_kills(place: Path, servers: Callable[[str], ForkServer]) -> None:
    rows = []
    for framework in ENGINES:
        started = time.perf_counter()
        done, runs = kill_often(
            framework, servers(framework), place, KILLS_OF_EVIDENCE, IN_SAVES_OF_EVIDENCE
        )
        seconds = f"{time.perf_counter() - started:.0f} s"
        in_saves = sum(IN_SAVES_OF_EVIDENCE)
        rows.append([framework, done, in_saves, done - in_saves, runs, runs, seconds])
    write_section(
        "kills",
        [
            "backend",
            "kills",
            "in a save",
            "at a random instant",
            "runs",
            "runs with the SHA-256 of the whole run",
            "time",
        ],
        rows,
    )


@each
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_run_that_is_asked_to_end_keeps_every_step(
    framework: str,
    number: signal.Signals,
    code: int,
    place: Path,
    servers: Callable[[str], ForkServer],
) -> None:
    run, server = place / f"{number.name} {framework}", servers(framework)
    expected = whole(server, framework, place)
    ended = server.run(
        *line(framework, place, run), after=11, do=lambda child: os.kill(child, number)
    )
    assert ended.code == code, ended.said
    assert ended.said.splitlines()[-1].startswith("pe: error: ")
    assert ended.step is not None
    assert newest(run) == (ended.step + 1, [])
    assert server.run("resume", run).code == 0
    assert model_digest(run) == expected


@contextmanager
def small_disk(place: Path) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """A folder with room for a run but not for its last checkpoints, what a child is told for that,
    and what the kernel will say.

    A file system of its own where this process may mount one; elsewhere a limit on the size of a
    file, which stops a write half way too.
    """
    folder = place / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    try:
        if mounted.returncode == 0:
            yield folder, {}, "no space left on device"
        else:
            yield folder, {"largest_file": 6000}, "file too large"
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


def require_one_line(ended: Ended, path: Path) -> None:
    """The end of a run that could not write: bad input, one line, the path and the remedy."""
    assert ended.code == 2, ended.said
    last = ended.said.splitlines()[-1]
    assert last.startswith(f"pe: error: {path}"), ended.said
    assert re.search(r"; (make room there|choose a path)", last)
    assert "Traceback" not in ended.said


@each
def test_a_full_disk_leaves_the_last_checkpoint(
    framework: str, place: Path, servers: Callable[[str], ForkServer]
) -> None:
    server, expected = servers(framework), whole(servers(framework), framework, place)
    with small_disk(place) as (folder, order, reason):
        ended = server.run(*line(framework, place, folder / "run"), **order)
        require_one_line(ended, folder / "run")
        assert reason in ended.said
        assert ended.step is not None
        step, passed_over = newest(folder / "run")
        assert (step > 0, passed_over) == (True, [])
        assert ended.step + 1 - step <= INTERVAL
        shutil.copytree(folder / "run", place / f"roomy {framework}")
    assert server.run("resume", place / f"roomy {framework}").code == 0
    assert model_digest(place / f"roomy {framework}") == expected


@each
def test_a_lost_permission_leaves_the_last_checkpoint(
    framework: str, place: Path, servers: Callable[[str], ForkServer]
) -> None:
    server, expected, folder = (
        servers(framework),
        whole(servers(framework), framework, place),
        place / f"lost {framework}",
    )
    folder.mkdir()
    folder.chmod(0o555)
    require_one_line(
        server.run(*line(framework, place, folder / "run"), bound=True), folder / "run"
    )
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    checkpoints = folder / "run" / CHECKPOINTS_FOLDER
    ended = server.run(
        *line(framework, place, folder / "run"),
        bound=True,
        after=11,
        do=lambda child: checkpoints.chmod(0o555),
    )
    require_one_line(ended, checkpoints)
    step, passed_over = newest(folder / "run")
    assert (step > 0, passed_over) == (True, [])
    assert ended.step is not None
    assert ended.step + 1 - step <= INTERVAL
    require_one_line(server.run("resume", folder / "run", bound=True), checkpoints)
    assert newest(folder / "run") == (step, [])
    checkpoints.chmod(0o755)
    assert server.run("resume", folder / "run", bound=True).code == 0
    assert model_digest(folder / "run") == expected
