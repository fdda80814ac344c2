"""A process that has imported a framework and forks a child for each command: a test that kills
many pays for one import.

JAX is imported, but its backend starts in each child: it does not survive a fork. Compiled
functions lie in a cache on disk.
"""

from __future__ import annotations

import ctypes
import importlib
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

import pe_core.storage.checkpoint
import pe_core.storage.tensors
from pe_cli.main import main
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


class Zygote:
    """The process, from outside.

    Args:
        framework: which one it imports.
        folder: for what the children print and compile.
    """

    def __init__(self, framework: str, folder: Path) -> None:
        self.said = folder / "said"
        cache = {
            "DIR": str(folder / "cache"),
            "MIN_COMPILE_TIME_SECS": "0",
            "MIN_ENTRY_SIZE_BYTES": "-1",
        }
        names = {"DIR": "JAX_COMPILATION_CACHE_DIR"}
        environment = {
            names.get(name, f"JAX_PERSISTENT_CACHE_{name}"): value for name, value in cache.items()
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "parity_tests.fork_server", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
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
            order: what else the child is told: `point` and `count` of the moment where it dies,
            `largest_file`, `bound` by permissions.
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
    """Tell the test a line in one call, so that lines of two processes do not mix: the zygote's
    output is kept as descriptor 0.
    """
    os.write(0, f"{line}\n".encode())


def die_at(point: str, count: int) -> None:
    """Kill this process when a save comes to a named point, or into the middle of a named file, for
    the count-th time.
    """
    left = [count]

    def reached(name: str) -> None:
        left[0] -= name == point
        if left[0] == 0:
            kill(os.getpid())

    def half(write: Callable[..., None]) -> Callable[..., None]:
        def written(path: Path, *parts: Any) -> None:
            if point == f"inside {path.name}" and left[0] == 1:
                content = b"".join(parts)
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.write(content[: len(content) // 2])
            reached(f"inside {path.name}")
            write(path, *parts)

        return written

    pe_core.storage.checkpoint.fault_point = reached
    for module in (pe_core.storage.checkpoint, pe_core.storage.tensors):
        module.write_synced = half(module.write_synced)  # type: ignore[attr-defined]


def obey(order: dict[str, Any], engine: Any) -> int:
    """Run one command in this process, as the order has it, and return its exit code."""
    take = engine.train_step

    def train_step(self: Any, batch: Any, step: int) -> Any:
        say(f"step {step}")
        return take(self, batch, step)

    engine.train_step = train_step
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    if "point" in order:
        die_at(order["point"], order["count"])
    if "largest_file" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    if "bound" in order and os.getuid() == 0:
        # Permissions bind the superuser once it has laid down all its capabilities: capset, of
        # version 3, for this process.
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
