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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pe_core.storage.checkpoint
from parity_tests.cases import ENGINES, FEATURES, LENGTH
from parity_tests.evidence import write_section
from parity_tests.fork_server import Ended, Zygote
from pe_core import ModelConfig
from pe_core.model.random import derive, normal
from pe_core.storage.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    checkpoint_folders,
    newest_checkpoint,
)
from pe_core.storage.files import read_json
from pe_core.storage.model_directory import WEIGHTS_FILE, is_saved
from pe_core.training.run_directory import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    MODEL_FOLDER,
    checkpoint_shapes,
)

KILLS, KILLS_OF_EVIDENCE = 20, 100
INTERVAL, STEPS = 3, 72
WORDS = (
    "--d-model=12", "--num-heads=3", "--num-layers=1", "--d-ff=20", "--dropout=0.1", "--batch-size=6", "--epochs=12",
    f"--checkpoint-every={INTERVAL}",
)  # fmt: skip
# Every moment in a save that has a name, and the middle of both files.
POINTS = (
    *re.findall(r'fault_point\("([^"]+)"\)', Path(pe_core.storage.checkpoint.__file__).read_text()),
    f"inside {STATE_FILE}",
    f"inside {MANIFEST_FILE}",
)
# Only where a run has gone back to an older checkpoint.
GONE_BACK = "after one of the same step went"
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
def zygotes(place: Path) -> Iterator[dict[str, Zygote]]:
    found: dict[str, Zygote] = {}

    class Started(dict[str, Zygote]):
        def __missing__(self, framework: str) -> Zygote:
            folder = place / f"of {framework}"
            folder.mkdir()
            found[framework] = self[framework] = Zygote(framework, folder)
            return self[framework]

    yield Started()
    for zygote in found.values():
        zygote.close()


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
def whole(zygote: Zygote, framework: str, place: Path) -> str:
    """The SHA-256 of the weights of the run that is left alone, which fills the cache of compiled
    functions too.
    """
    run = place / f"whole {framework}"
    ended = zygote.run(*line(framework, place, run))
    assert (ended.code, ended.step) == (0, STEPS - 1), ended.said
    return model_digest(run)


def newest(run: Path) -> tuple[int, list[str]]:
    """The step of the newest checkpoint that holds, and what was passed over."""
    if not (run / CONFIG_FILE).is_file():
        return 0, []
    config = ModelConfig.from_json(read_json(run / CONFIG_FILE)["model"])
    found, passed_over = newest_checkpoint(
        run / CHECKPOINTS_FOLDER, lambda record: checkpoint_shapes(config, record)
    )
    return 0 if found is None else found.step, passed_over


def go_on(framework: str, place: Path, run: Path) -> tuple[str, ...]:
    """The command that goes on with a run; where nothing was written yet, the one that began it."""
    if (run / CONFIG_FILE).is_file():
        return ("resume", str(run), f"--checkpoint-every={INTERVAL}")
    shutil.rmtree(run, ignore_errors=True)
    return line(framework, place, run)


def kill_often(
    framework: str, zygote: Zygote, place: Path, kills: int, seed: int
) -> tuple[int, int, int]:
    """Kill runs and let them go on; return how many kills there were, how many at a named point,
    and how many runs ended.

    A kill is at the next of the named points, as long as there are more, then at a random instant:
    some steps after the start and a moment longer than a save takes, or, one time in four, at any
    time of a child that starts.
    """
    expected = whole(zygote, framework, place)
    random = np.random.default_rng(seed)
    points, done, runs, named = sorted(POINTS, key=lambda point: point == GONE_BACK), 0, 0, 0
    while done < kills:
        run = place / f"run {seed} {framework} {runs}"
        while not is_saved(run / MODEL_FOLDER):
            before, damaged = newest(run)[0], False
            order: dict[str, Any] = {}
            if done == kills:
                pass
            elif points and (before or points[0] != GONE_BACK):
                damaged = points[0] == GONE_BACK
                order = {"point": points[0], "count": 1 if damaged else int(random.integers(1, 4))}
                if damaged:
                    (checkpoint_folders(run / CHECKPOINTS_FOLDER)[0] / STATE_FILE).write_bytes(b"")
            elif random.random() < 0.25:
                order = {"after": 0, "seconds": random.uniform(0, 0.4)}
            else:
                order = {"after": int(random.integers(1, 13)), "seconds": random.uniform(0, 0.015)}
            ended = zygote.run(*go_on(framework, place, run), **order)
            if ended.code == 0:
                continue
            assert ended.code == -signal.SIGKILL, ended.said
            done += 1
            if "point" in order:
                named += 1
                points.pop(0)
            step, passed_over = newest(run)
            assert passed_over == []
            if ended.step is not None:
                # The step in flight may have been taken; what is lost then is at most one interval.
                assert ended.step + 1 - step <= INTERVAL, (ended, step)
            assert step >= before - (INTERVAL if damaged else 0)
        assert model_digest(run) == expected
        runs += 1
    assert points == []
    return done, named, runs


@each
def test_a_killed_run_goes_on_from_where_it_was(
    framework: str, place: Path, zygotes: dict[str, Zygote]
) -> None:
    done, named, _ = kill_often(framework, zygotes[framework], place, KILLS, 0)
    assert (done, named) == (KILLS, len(POINTS))


@pytest.mark.evidence
def test_a_hundred_kills(place: Path, zygotes: dict[str, Zygote]) -> None:
    rows = []
    for framework in ENGINES:
        started = time.perf_counter()
        done, named, runs = kill_often(framework, zygotes[framework], place, KILLS_OF_EVIDENCE, 1)
        rows.append(
            [
                framework,
                done,
                named,
                done - named,
                runs,
                runs,
                f"{time.perf_counter() - started:.0f} s",
            ]
        )
    write_section(
        "kills",
        [
            "backend",
            "kills",
            "at a named moment",
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
    framework: str, number: signal.Signals, code: int, place: Path, zygotes: dict[str, Zygote]
) -> None:
    run, zygote = place / f"{number.name} {framework}", zygotes[framework]
    expected = whole(zygote, framework, place)
    ended = zygote.run(
        *line(framework, place, run), after=11, do=lambda child: os.kill(child, number)
    )
    assert ended.code == code, ended.said
    assert ended.said.splitlines()[-1].startswith("pe: error: ")
    assert ended.step is not None
    assert newest(run) == (ended.step + 1, [])
    assert zygote.run("resume", run).code == 0
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
    framework: str, place: Path, zygotes: dict[str, Zygote]
) -> None:
    zygote, expected = zygotes[framework], whole(zygotes[framework], framework, place)
    with small_disk(place) as (folder, order, reason):
        ended = zygote.run(*line(framework, place, folder / "run"), **order)
        require_one_line(ended, folder / "run")
        assert reason in ended.said
        assert ended.step is not None
        step, passed_over = newest(folder / "run")
        assert (step > 0, passed_over) == (True, [])
        assert ended.step + 1 - step <= INTERVAL
        shutil.copytree(folder / "run", place / f"roomy {framework}")
    assert zygote.run("resume", place / f"roomy {framework}").code == 0
    assert model_digest(place / f"roomy {framework}") == expected


@each
def test_a_lost_permission_leaves_the_last_checkpoint(
    framework: str, place: Path, zygotes: dict[str, Zygote]
) -> None:
    zygote, expected, folder = (
        zygotes[framework],
        whole(zygotes[framework], framework, place),
        place / f"lost {framework}",
    )
    folder.mkdir()
    folder.chmod(0o555)
    require_one_line(
        zygote.run(*line(framework, place, folder / "run"), bound=True), folder / "run"
    )
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    checkpoints = folder / "run" / CHECKPOINTS_FOLDER
    ended = zygote.run(
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
    require_one_line(zygote.run("resume", folder / "run", bound=True), checkpoints)
    assert newest(folder / "run") == (step, [])
    checkpoints.chmod(0o755)
    assert zygote.run("resume", folder / "run", bound=True).code == 0
    assert model_digest(folder / "run") == expected
