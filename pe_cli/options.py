"""Options of the command line: cyclopts parses them, and its exceptions become one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import cyclopts
from cyclopts import App, Argument, ArgumentCollection, Parameter
from cyclopts.config import Dict
from rich.console import Console

from pe_cli.option_files import model_options, read_options
from pe_core.errors import UserValueError, nearest

# The fields of a dataclass are options of the command itself.
FLAT: Final = Parameter(name="*")
FILE: Final = Parameter(metavar="FILE")
FOLDER: Final = Parameter(metavar="FOLDER")
FRAMEWORK: Final = Parameter(metavar="torch|flax")
DATA: Final = Parameter(metavar="NAME|FILE")
COLUMNS: Final = Parameter(metavar="WHAT=NAME")
ENCODING: Final = Parameter(metavar="NAME")
READERS: Final = {"--config": read_options, "--from": model_options}
KINDS: Final = {int: "a whole number", float: "a number", bool: "true or false"}


def call(app: App, words: Sequence[str], alone: Mapping[str, str], console: Console) -> int:
    """Run a command and return its exit code.

    Args:
        app: all commands.
        words: the command line.
        alone: values of options that may be given without one.
        console: where `--help` is printed.
    """
    given: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word in ("true", "false") and given and given[-1].startswith("--"):
            given[-1] += f"={word}"  # cyclopts reads no value after the name of a flag
        elif word in alone and following.startswith("--"):
            given.append(f"{word}={alone[word]}")
        else:
            given.append(word)
    try:
        command, bound, _ = app.parse_args(given, console=console)
    except cyclopts.CycloptsError as error:
        raise UserValueError(_explain(error, app)) from None
    return command(*bound.args, **bound.kwargs) or 0


def check(app: App, commands: tuple[str, ...], given: ArgumentCollection) -> None:
    """Add the options of a file to those of the line, and refuse what cyclopts would accept."""
    # What was given first wins: the line, then the file, then the model that a run begins from.
    for name, read in READERS.items() if commands == ("train",) else ():
        if tokens := given[name].tokens:
            source, path = f"{name} {tokens[-1].value}", Path(tokens[-1].value)
            found = Dict(read(source, path), source=source, use_commands_as_keys=False)
            found(app, commands, given)
    for option in given:
        for token in option.tokens:
            if "." in token.value and int in (option.hint, *get_args(option.hint)):  # it rounds
                raise cyclopts.CoercionError(argument=option, token=token, target_type=int)
    needed = [option for option in given if option.show and option.required]
    if names := [_name(option) for option in needed if not option.has_tokens]:
        raise cyclopts.MissingArgumentError(argument=needed[0], msg=" and ".join(names))


def _explain(error: cyclopts.CycloptsError, app: App) -> str:
    """Return what is wrong with the command line, the value and the remedy."""
    command = " ".join(("pe", *(error.command_chain or ())))
    option, token, unused = error.argument, getattr(error, "token", None), error.unused_tokens or []
    remedy = f"see {command} --help"
    source = "" if token is None or token.source == "cli" else f"{token.source}: "
    if isinstance(error, cyclopts.CoercionError) and option is not None and token is not None:
        choices = option.get_choices() or ()
        name = option.name.removeprefix("--") if source else option.name
        value = "null" if token.implicit_value is None else token.value
        hint = nearest(value, choices, otherwise=remedy, values=True)
        return f"{source}{name} must be {_rule(option, choices)}, got {value!r}; {hint}"
    if isinstance(error, cyclopts.MissingArgumentError) and error.msg is None:
        return f"{error.keyword} needs a value; {remedy}"
    if isinstance(error, cyclopts.UnknownOptionError):
        unused = [error.token.keyword or error.token.value]
    unknown = next((word for word in unused if source or word.startswith("-")), None)
    if unknown is not None:
        name = unknown.strip("[]").partition("=")[0].replace("_", "-")
        known = (one for one in app[command[3:]].assemble_argument_collection() if one.show)
        names = (name.removeprefix("--") if source else name for one in known for name in one.names)
        return f"{source}{command} has no option {name!r}; {nearest(name, names, otherwise=remedy)}"
    if error.msg is not None:
        return f"{command} needs {error.msg}; {remedy}"
    said = f"does not know what {unused[0]!r} belongs to" if unused else str(error)
    return f"{command} {' '.join(said.split())}; {remedy}"


def _rule(option: Argument, choices: Sequence[str]) -> str:
    kinds = (option.hint, *get_args(option.hint))
    known = [*choices] or [text for kind, text in KINDS.items() if kind in kinds] or ["text"]
    *rest, last = known + ["null"] * (type(None) in kinds)
    return f"{', '.join(rest)} or {last}" if rest else last


def _name(option: Argument) -> str:
    return option.name[2:].upper() if option.field_info.is_positional else option.name
