"""The command `pe`: its subcommands, and how errors end."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from pe_cli import compare, demo, listing, parity, predict, resume, trace, train
from pe_cli.imports import imported, split_imports
from pe_cli.options import Line
from pe_core.errors import UserError, UserValueError, nearest
from pe_core.training.interrupts import Terminated
from pe_core.training.loop import NotFiniteError


class Command(NamedTuple):
    """A subcommand: its options, what runs, and a line about it."""

    options: Line
    run: Callable[[Any], int]
    help: str


COMMANDS: Final = {
    "train": Command(
        Line("train", train.TrainOptions, reads_config=True),
        train.run,
        "train a sequence classifier",
    ),
    "resume": Command(
        Line("resume", resume.ResumeOptions, ("run",)),
        resume.run,
        "go on with a run that stopped, in either framework",
    ),
    "predict": Command(
        Line("predict", predict.PredictOptions, ("model",)),
        predict.run,
        "classify sequences with a trained model",
    ),
    "parity": Command(
        Line("parity", parity.ParityOptions, alone=parity.ALONE),
        parity.run,
        "compare the reference, PyTorch and Flax, name by name",
    ),
    "trace": Command(
        Line("trace", trace.TraceOptions),
        trace.run,
        "write every named intermediate of any model to a file",
    ),
    "compare": Command(
        Line("compare", compare.CompareOptions, ("a", "b")),
        compare.run,
        "find where two traces part, and why",
    ),
    "demo": Command(
        Line("demo", demo.DemoOptions),
        demo.run,
        "the same training in both frameworks, side by side",
    ),
    "list": Command(
        Line("list", listing.ListOptions),
        listing.run,
        "encodings, data and frameworks that there are",
    ),
}

USAGE: Final = """\
usage: pe COMMAND [options]

Positional encodings for Transformer encoders: one model in PyTorch and in JAX (Flax).

commands:
{commands}

pe COMMAND --help lists the options of a command. With --import MODULE a command first imports a
module of yours, which may register an encoding.
Exit codes: 0 all is well, 1 a check failed or a number was not finite, 2 bad input,
130 interrupted, 143 terminated.
With PE_TRACEBACK=1 in the environment an error shows where it arose.
"""

# 128 plus the number of the signal, as shells have it.
INTERRUPTED: Final = 130
TERMINATED: Final = 143
PIPE_CLOSED: Final = 141
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY: Final = re.compile(
    r"can't allocate memory|out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for a check that failed, 2 for bad input, 130
    for an interrupt.
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        # Here and not at exit, where a reader that has left would make Python complain.
        sys.stdout.flush()
        return code
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except Terminated:
        return _fail("terminated; what was written so far is kept", TERMINATED)
    except KeyboardInterrupt:
        return _fail("interrupted; what was written so far is kept", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        found = _expected(error)
        if found is None:
            error.add_note(
                "This is a bug in pe: please report it with the command and these lines."
            )
        if found is None or os.environ.get("PE_TRACEBACK"):
            raise
        return _fail(*found)


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            USAGE.format(
                commands="\n".join(
                    f"  {name:<10}{command.help}" for name, command in COMMANDS.items()
                )
            ),
            end="",
        )
        return 0
    if not arguments:
        raise UserValueError(f"pe needs a command: {', '.join(COMMANDS)}; see pe --help")
    name, *rest = arguments
    if name not in COMMANDS:
        kind = "pe has no option" if name.startswith("-") else "unknown command"
        hint = (
            "options go behind a command; see pe --help"
            if name.startswith("-")
            else nearest(name, COMMANDS)
        )
        raise UserValueError(f"{kind} {name!r}; {hint}")
    command = COMMANDS[name]
    modules, rest = split_imports(rest)
    with imported(modules):
        return command.run(command.options.parse(rest))


def _expected(error: Exception) -> tuple[str, int] | None:
    """Return the line and the exit code of an error that a user can do something about; None for a
    fault of the program.
    """
    text = " ".join(str(error).split())
    if isinstance(error, NotFiniteError):
        return text, 1
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)
    ):
        return (
            f"out of memory ({text[:120] or 'no details'}); make the model, the batch or the "
            "data smaller",
            2,
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        full = error.errno in FULL
        remedy = (
            "make room there; a run that stopped goes on with pe resume"
            if full
            else "choose a path that can be read and written"
        )
        return f"{error.filename}: {error.strerror.lower()}; {remedy}", 2
    if isinstance(error, UserError):
        return text or type(error).__name__, 2
    return None


def _fail(message: str, code: int) -> int:
    print(f"pe: error: {message}", file=sys.stderr)
    return code
