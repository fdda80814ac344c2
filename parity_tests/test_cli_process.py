"""The command as a process: signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_tests.cli import DUMMY, FRAMEWORKS, TINY, process, strict


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_interrupt_ends_the_run_between_two_steps(tmp_path: Path, name: str) -> None:
    line = DUMMY.replace("torch", name).split()
    with process(*line, *TINY[1:], "--epochs=100000", "--out", tmp_path / "run") as running:
        assert running.stdout is not None
        for text in running.stdout:
            if "1/100000" in text:
                break
        running.send_signal(signal.SIGINT)
        try:
            error = running.communicate(timeout=120)[1]
        finally:
            running.kill()
    assert running.returncode == 130
    assert error == "pe: error: interrupted; what was written so far is kept\n"
    found = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert found == ["checkpoints", "config.json", "metrics.jsonl"]
    lines = [strict(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [one["step"] for one in lines if one["kind"] == "step"]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("line", ["list", "train --help"])
def test_a_reader_that_leaves_ends_the_command_quietly(line: str) -> None:
    with process(*line.split()) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
        assert running.wait() == 141


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with process(*DUMMY.split(), *TINY, "--out=run", stdout=theirs, cwd=tmp_path) as running:
        os.close(theirs)
        text = "".join(pieces(ours))
        assert (running.wait(), running.communicate()[1]) == (0, "")
    os.close(ours)
    for word in ("\x1b", "training", "1/1"):
        assert word in text


def pieces(handle: int) -> Iterator[str]:
    """What a terminal shows until the other side is closed, which Linux reports as an error."""
    while True:
        try:
            found = os.read(handle, 1 << 16)
        except OSError:
            return
        yield found.decode()
