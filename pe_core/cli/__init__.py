"""The command `pe`; reaches a wing by its name, at run time."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from pe_core.cli import demo, listing, parity, predict, train
from pe_core.errors import nearest
from pe_core.training import NotFiniteError


class Command(NamedTuple):
    """A subcommand: its options as a dataclass, what runs, and the options that are given without a name."""

    options: type[Any]
    run: Callable[[Any], int]
    help: str
    positionals: tuple[str, ...] = ()


COMMANDS = {
    "train": Command(train.TrainOptions, train.run, "train a sequence classifier"),
    "predict": Command(predict.PredictOptions, predict.run, "classify sequences with a saved model", ("model",)),
    "parity": Command(parity.ParityOptions, parity.run, "compare reference, torch and Flax"),
    "demo": Command(demo.DemoOptions, demo.run, "the same training in both frameworks, side by side"),
    "list": Command(listing.ListOptions, listing.run, "what there is: encodings, data, frameworks"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for a check that failed, 2 for bad input, 130 for an interrupt."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser, parsers = _parser()
    try:
        found = parser.parse_args(arguments)
        command = COMMANDS[found.subcommand]
        return command.run(_options(command, found[found.subcommand]))
    except ArgumentError as error:
        return _fail(_one_line(error, parsers, arguments), 2)
    except NotFiniteError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; what was written so far is kept", 130)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has left; writing to it once more at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("PE_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__, 2)


def _parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    parser = ArgumentParser(prog="pe", description=__doc__, exit_on_error=False, allow_abbrev=False)
    subcommands = parser.add_subcommands(metavar="COMMAND", title="commands")
    parsers = {}
    for name, command in COMMANDS.items():
        part = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=f"{command.help[0].upper()}{command.help[1:]}.")
        for positional in command.positionals:
            part.add_argument(positional, type=str)
        if "config" not in command.positionals and getattr(command.options, "READS_CONFIG", False):
            part.add_argument("--config", action="config", help="a YAML or JSON file with options; those given here go before it")
        part.add_class_arguments(command.options, as_group=False, skip=set(command.positionals))
        subcommands.add_subcommand(name, part, help=command.help)
        parsers[name] = part
    return parser, parsers


def _options(command: Command, found: Namespace) -> Any:
    known = {field.name for field in fields(command.options)}
    return command.options(**{name: value for name, value in vars(found).items() if name in known})


def _one_line(error: ArgumentError, parsers: dict[str, ArgumentParser], arguments: Sequence[str]) -> str:
    """Put the parser's words on one line, with the nearest name where one is unknown."""
    text = " ".join(str(error.message or error).split())
    command = next((argument for argument in arguments if argument in parsers), None)
    if match := re.match(r"unrecognized arguments: (\S+)", text):
        name = match.group(1)
        if command is None:
            return f"unknown command {name!r}; {nearest(name, COMMANDS)}"
        options = [option for action in parsers[command]._actions for option in action.option_strings]
        return f"pe {command} has no option {name!r}; {nearest(name.split('=')[0], options)}"
    if match := re.search(r"invalid choice: '([^']*)' \(choose from", text):
        return f"unknown command {match.group(1)!r}; {nearest(match.group(1), COMMANDS)}"
    if match := re.match(r'Parser key "([^"]*)": (?:Problem with given class_path .*?:)?(.*)', text):
        name, rule = match.groups()
        rule = re.sub(r"<class '(\w+)'>", r"\1", rule).strip()
        return f"--{name.split('.')[-1]}: {rule}"
    if match := re.match(r"the following arguments are required: (.*)", text):
        missing = ", ".join(f"--{name.split('.')[-1]}" for name in match.group(1).split(", "))
        return f"pe {command} needs {missing}; see pe {command} --help"
    return text


def _fail(message: str, code: int) -> int:
    print(f"pe: error: {message}", file=sys.stderr)
    return code
