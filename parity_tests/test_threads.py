"""How many threads compute, and the hint to take fewer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch

from parity_tests.cases import ENGINES
from parity_tests.cli import ROOT
from parity_tests.small_runs import CONFIG, Recorder, data
from pe_core import TrainConfig
from pe_core.training.backends import set_threads, versions
from pe_core.training.clock import Clock
from pe_core.training.loop import train
from pe_core.training.reporter import Silent

COUNT = """
import os, sys
from pe_core.training.backends import engine_type, set_threads
set_threads(engine_type("flax"), int(sys.argv[1]))
import jax
jax.numpy.zeros(1)
print(len(os.listdir("/proc/self/task")))
"""


def test_torch_takes_as_many_threads_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        set_threads(ENGINES["torch"], 3)
        assert (torch.get_num_threads(), versions()["threads"]) == (3, "3")
        set_threads(ENGINES["torch"], None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads as Linux does")
def test_xla_makes_as_many_threads_as_it_is_told() -> None:
    command, threads = [sys.executable, "-c", COUNT], ("1", "3", "5")
    found = [
        int(subprocess.run([*command, one], cwd=ROOT, capture_output=True, check=True).stdout)
        for one in threads
    ]
    steps = [after - before for before, after in pairwise(found)]
    assert steps[0] == steps[1] > 0


class Machine:
    """Steps of given seconds and shares of a core, on a machine of a given load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, load: float, threads: str = "") -> None:
        self.now = self.cpu = 0.0
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu)

    def work(self, seconds: float, share: float) -> None:
        self.now, self.cpu = self.now + seconds, self.cpu + share * seconds


@pytest.mark.parametrize(
    ("load", "threads", "steps", "hinted"),
    [
        (4.0, "", [(0.5, 0.3)] * 5, True),
        (4.0, "", [(0.001, 1.9)] * 5 + [(0.5, 0.9)] * 5, True),  # far slower than the best
        (1.0, "", [(0.5, 0.3)] * 5, False),  # a GPU computes, and the cores are free
        (4.0, "1", [(0.5, 0.3)] * 5, False),
        (4.0, "", [(0.5, 1.8)] * 5, False),  # a large model, which gets its cores
        (4.0, "", [(0.5, 0.3)] * 3, False),  # the first compiles; too early to say
        (4.0, "", [(0.01, 0.3)] * 300, False),
    ],
)
def test_a_hint_where_steps_crawl(
    load: float,
    threads: str,
    steps: list[tuple[float, float]],
    hinted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, clock = Machine(monkeypatch, load, threads), Clock()
    for seconds, share in steps:
        clock.start()
        machine.work(seconds, share)
        clock.stop(1)
    assert (clock.hint is not None) is hinted
    assert not hinted or str(clock.hint).startswith("steps take ")


def test_the_hint_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, notes = Machine(monkeypatch, 4.0), []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    crawling = Recorder(lambda step: machine.work(1.0, 0.3))
    options = TrainConfig(epochs=4, batch_size=2)
    train(crawling, CONFIG, data(), train_config=options, reporter=Noting())
    assert len(notes) == 1
    assert "--threads 1" in notes[0]
