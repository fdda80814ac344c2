"""From the words of a command line, or of a file of options, to a dataclass of options; and from
the parser's complaints to one line.
"""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader

from pe_core.errors import UserFileNotFoundError, UserValueError, nearest

# What stands for the value of an option in a help text, by the option or else by its type.
METAVARS: Final = {
    "data": "NAME|FILE",
    "framework": "torch|flax",
    "test": "FILE",
    "config": "FILE",
    "json": "FILE",
    "reference": "FILE",
    "out": "FOLDER",
    "report": "FOLDER",
}
METAVARS_BY_COMMAND: Final = {
    ("trace", "impl"): "torch|flax|reference|MODULE",
    ("trace", "out"): "FILE",
    ("trace", "model"): "FOLDER",
}
METAVARS_BY_TYPE: Final = {"int": "N", "float": "X", "bool": "true|false", "str": "NAME"}
KINDS: Final = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "a text",
}


class Help(DefaultHelpFormatter):
    """Options with hyphens, each with its default and without its type."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"max_help_position": 32}))  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").rstrip(".")
        if action.default in (None, SUPPRESS) or not action.option_strings:
            return text
        default = (
            str(action.default).lower() if isinstance(action.default, bool) else str(action.default)
        )
        return f"{text} (default: {default})".replace("%", "%%")

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return str(action.metavar)
        name = hyphenated(", ".join(action.option_strings))
        return name if action.nargs == 0 else f"{name} {action.metavar}"


class Line:
    """The options of one command.

    Args:
        command: its name.
        kind: a dataclass; its docstring says what each option is.
        positionals: the options that are given without a name.
        reads_config: whether `--config FILE` holds options.
        alone: what an option means that is given without a value.
    """

    def __init__(
        self,
        command: str,
        kind: type[Any],
        positionals: Sequence[str] = (),
        *,
        reads_config: bool = False,
        alone: Mapping[str, str] | None = None,
    ) -> None:
        self.command = command
        self.kind = kind
        self.positionals = positionals
        self.reads_config = reads_config
        self.alone = alone or {}
        self.types = {field.name: str(field.type) for field in fields(kind)}

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return the options; `--help` prints them and leaves.

        Raises:
            ValueError: one line with what is wrong, the value and the remedy.
        """
        given, file = self._split(arguments)
        stored = {} if file is None else self._stored(file)
        words = [f"--{name}={value}" for name, value in stored.items()]
        try:
            found = self.parser.parse_args([*words, *given])
        except ArgumentError as error:
            raise UserValueError(self._explained(error, given, stored, file)) from None
        return self.kind(**{name: getattr(found, name) for name in self.types})

    def names(self) -> list[str]:
        """Return the options as they are written, in order."""
        known = [name for name in self.types if name not in self.positionals]
        return [
            hyphenated(f"--{name}")
            for name in ([*(["config"] if self.reads_config else []), *known])
        ]

    @cached_property
    def parser(self) -> ArgumentParser:
        """What parses; made when it is first needed."""
        summary = (inspect.getdoc(self.kind) or "").splitlines()[0]
        texts = dict(re.findall(r"^ +(\w+): (.+)$", inspect.getdoc(self.kind) or "", re.MULTILINE))
        needed = [
            item.name
            for item in fields(self.kind)
            if item.default is MISSING and item.name not in self.positionals
        ]
        named = [f"{hyphenated(f'--{name}')} {self._metavar(name)}" for name in needed]
        usage = [
            f"pe {self.command}",
            *map(str.upper, self.positionals),
            *named,
            *(["[options]"] if self.types else []),
        ]
        parser = ArgumentParser(
            prog=f"pe {self.command}",
            usage=" ".join(usage),
            description=summary,
            formatter_class=Help,
            exit_on_error=False,
            allow_abbrev=False,
        )
        for name in self.positionals:
            parser.add_argument(name, type=str, help=texts[name], metavar=name.upper())
        if self.reads_config:
            parser.add_argument(
                "--config",
                type=str,
                help="a YAML or JSON file with options; options given here win",
            )
        parser.add_class_arguments(self.kind, as_group=False, skip=set(self.positionals))
        for action in parser._actions:
            if action.option_strings and action.nargs != 0:
                action.metavar = self._metavar(action.dest)
        return parser

    def _metavar(self, name: str) -> str:
        kind = self.types.get(name, "str").split(" ")[0]
        found = METAVARS_BY_COMMAND.get((self.command, name)) or METAVARS.get(
            name, METAVARS_BY_TYPE[kind]
        )
        return f"[{found}]" if name in self.alone else found

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], str | None]:
        """Return the words with underscores for hyphens in the names of options, and the file of
        options, if one is given.
        """
        given: list[str] = []
        for word in arguments:
            name, equals, value = word.partition("=")
            given.append(
                name[:2] + name[2:].replace("-", "_") + equals + value
                if word.startswith("--")
                else word
            )
        for number, word in enumerate(given):
            if word[2:] in self.alone and (
                number + 1 == len(given) or given[number + 1].startswith("--")
            ):
                given[number] = f"{word}={self.alone[word[2:]]}"
        file = None
        while (
            self.reads_config
            and (
                at := next(
                    (n for n, word in enumerate(given) if word.split("=")[0] == "--config"), None
                )
            )
            is not None
        ):
            words = given[at : at + 1] if "=" in given[at] else given[at : at + 2]
            file = words[0].partition("=")[2] if len(words) == 1 else words[1]
            if not file or file.startswith("--"):
                raise UserValueError(
                    "--config needs a value; pass a YAML or JSON file with options"
                )
            del given[at : at + len(words)]
        return given, file

    def _stored(self, file: str) -> dict[str, str]:
        """Return the options of a file as words of a command line."""
        if not Path(file).is_file():
            raise UserFileNotFoundError(f"--config {file}: no such file; check the path")
        try:
            record = get_loader("yaml")(Path(file).read_text(encoding="utf-8"))
        except (
            Exception
        ) as error:  # YAML's own errors, bytes that are no text, or nesting without end
            text = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
            raise UserValueError(
                f"--config {file}: not valid YAML or JSON ({text[:160]}); correct it"
            ) from None
        if not isinstance(record, dict):
            found = "nothing" if record is None else str(record)[:40]
            raise UserValueError(
                f"--config {file}: must hold options such as epochs: 5, got {found}; write one "
                "NAME: VALUE a line"
            )
        words = {}
        for key, value in record.items():
            name = str(key).replace("-", "_")
            if name not in self.types or name in self.positionals:
                raise UserValueError(
                    f"--config {file}: pe {self.command} has no option {str(key)!r}; "
                    f"{nearest(name, self.types)}"
                )
            if isinstance(value, dict | list):
                raise UserValueError(
                    f"--config {file}: {name} must be one value, got {str(value)[:40]}; write "
                    f"{name}: VALUE"
                )
            words[name] = (
                "null"
                if value is None
                else str(value).lower()
                if isinstance(value, bool)
                else str(value)
            )
        return words

    def _explained(
        self, error: ArgumentError, given: Sequence[str], stored: dict[str, str], file: str | None
    ) -> str:
        """Put the parser's complaint on one line, in the words of a user."""
        text, pe = " ".join(str(error.message or error).split()), f"pe {self.command}"
        if match := re.match(r"unrecognized arguments: (\S+)", text):
            name = match.group(1).split("=")[0]
            if not name.startswith("-"):
                return f"{pe} does not know what {name!r} belongs to; see {pe} --help"
            return (
                f"{pe} has no option {hyphenated(name)!r}; "
                f"{_near(hyphenated(name), self.names(), pe)}"
            )
        if match := re.match(r"the following arguments are required: (.*)", text):
            missing = [name.split(".")[-1].lstrip("-") for name in match.group(1).split(", ")]
            words = [
                name.upper() if name in self.positionals else hyphenated(f"--{name}")
                for name in missing
            ]
            return f"{pe} needs {' and '.join(words)}; see {pe} --help"
        if match := re.search(r"argument (?:-\w/)?(--\w+): expected one argument", text):
            return f"{hyphenated(match.group(1))} needs a value; see {pe} --help"
        match = re.match(r'Parser key "([^"]*)"', text)
        if match and match.group(1) in self.types:
            name = match.group(1)
            kind, _, optional = self.types[name].partition(" | ")
            rule = f"must be {KINDS[kind]}{' or null' if optional else ''}"
            value = _last_value(given, name)
            if value is None and name in stored:
                return f"--config {file}: {name} {rule}, got {stored[name]!r}"
            return f"{hyphenated(f'--{name}')} {rule}, got {value!r}"
        return f"{text}; see {pe} --help"


def hyphenated(option: str) -> str:
    """Return the name of an option as it is written: --batch-size."""
    return option.replace("_", "-")


def _near(name: str, known: Sequence[str], pe: str) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else f"see {pe} --help"


def _last_value(given: Sequence[str], name: str) -> str | None:
    value = None
    for number, word in enumerate(given):
        if word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        elif word == f"--{name}" and number + 1 < len(given):
            value = given[number + 1]
    return value
