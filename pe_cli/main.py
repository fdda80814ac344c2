"""The command `pe`: its subcommands, and how errors end."""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel, PanelSpec
from rich.box import Box
from rich.console import Console, ConsoleOptions

from pe_cli import compare, demo, listing, parity, predict, resume, trace, train
from pe_cli.imports import imported, split_imports
from pe_cli.options import call, check
from pe_cli.reporting import PipeConsole, printed_warnings
from pe_core.errors import UserError, UserValueError, nearest
from pe_core.training.evaluation import NotFiniteError
from pe_core.training.interrupts import Terminated

COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "train": train.run,
    "resume": resume.run,
    "predict": predict.run,
    "parity": parity.run,
    "trace": trace.run,
    "compare": compare.run,
    "demo": demo.run,
    "list": listing.run,
}
EPILOGUE: Final = """\
`pe COMMAND --help` lists the options of a command.

Exit codes: 0 success, 1 a check failed or a number was not finite, 2 bad input, 70 a bug in pe,
130 interrupted, 143 terminated. With PE_TRACEBACK=1 in the environment an error shows where it
arose.
"""
IMPORTED: Final = "first import a module of yours, which may register an encoding."
BUG: Final = """\
pe: this is a bug; please report it in the project's issue tracker, with the command and these lines
"""

# What sysexits.h has for an internal error; and 128 plus the number of the signal, as shells do.
INTERNAL_ERROR: Final = 70
INTERRUPTED: Final = 130
TERMINATED: Final = 143
PIPE_CLOSED: Final = 141
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY: Final = re.compile(
    r"can't allocate memory|out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        # Here and not at exit, where Python would complain about a reader that has left.
        sys.stdout.flush()
        return code
    except Terminated:
        return _fail("terminated; what was written so far is kept", TERMINATED)
    except KeyboardInterrupt:
        return _fail("interrupted; what was written so far is kept", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if os.environ.get("PE_TRACEBACK"):
            raise
        found = _expected(error)
        if found is not None:
            return _fail(*found)
        traceback.print_exc()
        print(BUG, end="", file=sys.stderr)
        return INTERNAL_ERROR


class _Formatter(DefaultFormatter):
    """Lists `--import`, which is taken out of the line before it is parsed, among the options."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        if panel.format == "parameter" and panel.title == "Parameters":
            panel.entries.append(
                HelpEntry(
                    positive_names=("--import",),
                    metavar="MODULE",
                    description=IMPORTED,
                )
            )
        super().__call__(console, options, panel)


def make_app() -> App:
    """Return the commands with their options, as cyclopts reads them from signatures."""
    blank = PanelSpec(box=Box("    \n" * 8), padding=(0, 1, 0, 2))
    formatter = _Formatter(panel_spec=blank)
    app = App(
        name="pe",
        help="Positional encodings for Transformer encoders: one model in PyTorch and in JAX "
        "(Flax).",
        help_epilogue=EPILOGUE,
        help_format="markdown",
        help_formatter=formatter,
        version_flags=(),
        config=check,
        # The last one counts, so that a script may add to a line.
        default_parameter=Parameter(allow_repeating=True),
        print_error=False,
        exit_on_error=False,
    )
    for place, (name, run) in enumerate(COMMANDS.items()):
        # A command without options has no list of them to which this one could be added.
        alone = not inspect.signature(run).parameters
        app.command(
            run,
            name,
            help_epilogue=f"`--import MODULE`: {IMPORTED}" if alone else "",
            sort_key=place,
        )
    return app


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UserValueError(f"pe needs a command: {', '.join(COMMANDS)}; see pe --help")
    name = arguments[0]
    if name not in (*COMMANDS, "-h", "--help"):
        if name.startswith("-"):
            raise UserValueError(
                f"pe has no option {name!r}; options go behind a command; see pe --help"
            )
        raise UserValueError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    # Before parsing: a module may register an encoding that the options name.
    modules, rest = split_imports(arguments[1:])
    with imported(modules), printed_warnings():
        return call(make_app(), [name, *rest], parity.ALONE, PipeConsole())


def _expected(error: Exception) -> tuple[str, int] | None:
    """Return the line and the exit code of an error that the user can do something about; None
    for a bug.
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
        remedy = (
            "make room there; a run that stopped goes on with pe resume"
            if error.errno in FULL
            else "choose a path that can be read and written"
        )
        return f"{error.filename}: {error.strerror.lower()}; {remedy}", 2
    if isinstance(error, UserError):
        return text or type(error).__name__, 2
    return None


def _fail(message: str, code: int) -> int:
    print(f"pe: error: {message}", file=sys.stderr)
    return code
