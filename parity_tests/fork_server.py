"""A process that has imported a framework and forks a child for each command, so that a test that
kills many pays for one import.

JAX is imported, but its backend starts in each child: it does not survive a fork. Compiled
functions lie in a cache on disk.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_tests.system_calls import acting_at
from pe_cli.main import main
from pe_core.training import loop, run_directory
from pe_core.training.backends import engine_type

# What a framework imports only when a run begins.
LATER = {"torch": ("torch._dynamo", "numpy.random"), "flax": ("numpy.random",)}


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        code: its exit code, or the negative number of the signal that killed it.
        step: the last step that it began; None where it began none.
        said: what it printed.
    """

    code: int
    step: int | None
    said: str


class ForkServer:
    """The process, seen from a test.

    Args:
        framework: which one it imports.
        folder: for what the children print and compile.
    """

    def __init__(self, framework: str, folder: Path) -> None:
        self.said = folder / "said"
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "parity_tests.fork_server", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        assert self._line() == "ready"

    def run(
        self,
        *arguments: str | Path,
        after: int | None = None,
        seconds: float = 0.0,
        do: Callable[[int], Any] | None = None,
        **order: Any,
    ) -> Ended:
        """Run a command in a child and return how it ended.

        Args:
            arguments: of the command.
            after: act when so many steps have begun; at 0, when the child is there.
            seconds: to wait before.
            do: what to do then, with the child's number; it is killed when None.
            order: what else the child does: die in the `count`-th `save` before a `call`, obey a
                `largest_file`, be `bound` by permissions.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps(order | {"arguments": [*map(str, arguments)], "said": str(self.said)}) + "\n"
        )
        self.process.stdin.flush()
        _, child = self._line().split()
        begun, step = 0, None
        while True:
            if begun == after:
                time.sleep(seconds)
                after = None
                # A child may have come to its end in the meantime.
                with suppress(ProcessLookupError):
                    (do or kill)(int(child))
            word, number = self._line().split()
            if word == "exit":
                return Ended(int(number), step, self.said.read_text())
            begun, step = begun + 1, int(number)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def kill(child: int) -> None:
    """End a process at once, wherever it is."""
    os.kill(child, signal.SIGKILL)


def say(line: str) -> None:
    """Send the test a line in one call, so that lines of two processes do not mix; the server's
    output is kept as descriptor 0.
    """
    os.write(0, f"{line}\n".encode())


def die_in(save: str, count: int, call: int) -> None:
    """Kill this process before a call of the count-th save, both from 0."""
    saves = {"save_checkpoint": run_directory, "save_model": loop}
    original = getattr(saves[save], save)
    begun = itertools.count()

    def traced(*arguments: Any) -> Any:
        with acting_at(call if next(begun) == count else -1, lambda: kill(os.getpid())):
            return original(*arguments)

    setattr(saves[save], save, traced)


def obey(order: dict[str, Any], engine: Any) -> int:
    """Run one command in this process as ordered, and return its exit code."""
    take = engine.train_step

    def train_step(self: Any, batch: Any, step: int) -> Any:
        say(f"step {step}")
        return take(self, batch, step)

    engine.train_step = train_step
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    if "save" in order:
        die_in(order["save"], order["count"], order["call"])
    if "largest_file" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    if "bound" in order and os.getuid() == 0:
        # Permissions bind the superuser once it has dropped all capabilities: capset, version 3.
        assert ctypes.CDLL(None).capset(struct.pack("2I", 0x20080522, 0), bytes(24)) == 0
    return main(order["arguments"])


def serve(framework: str) -> None:
    """Fork a child for each line of standard input."""
    orders = os.fdopen(os.dup(0))
    os.dup2(1, 0)
    engine: Any = engine_type(framework)
    for module in LATER[framework]:
        importlib.import_module(module)
    # JAX warns of any fork; no backend has started here.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    say("ready")
    for line in orders:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = obey(json.loads(line), engine)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        say(f"pid {child}")
        say(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    serve(sys.argv[1])
