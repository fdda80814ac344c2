"""`pe list`."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pe_cli.reporting import console
from pe_core.encodings import ENCODINGS
from pe_core.training.backends import backends

DATA: Final = {
    "dummy": "1,000 sequences of 10 steps and 16 features with random labels; 250 to validate.",
    "order": (
        "Which of two markers came first? 1,000 sequences of 10 steps and 16 features; 250 "
        "to validate."
    ),
    "digits": (
        "Images of digits row by row, 8 steps of 8 features, 10 classes (needs scikit-learn)."
    ),
    "digits64": "The same pixel by pixel, 64 steps of 1 feature.",
    "FILE.npz": (
        "Arrays inputs, labels (numbers or names), and mask or lengths where sequences are padded."
    ),
    "FILE.ts": (
        "The format of the UCR and UEA archives: unequal lengths, too; missing values (? or NaN) "
        "are interpolated within their example."
    ),
}
VALUES: Final = {int: "N", float: "X", bool: "true|false", type(None): "none"}
INDENT: Final = " " * 14
WIDTH: Final = 98


def run() -> int:
    """List the encodings with their options, the built-in data and the frameworks."""
    console.heading("encodings", " (--encoding NAME or NAME:option=value,option=value)")
    _entry("none", "The model without positions.")
    for name, kind in ENCODINGS.items():
        _entry(name, (inspect.getdoc(kind) or "").partition("\n\n")[0], *_options(kind))
    console.heading("data", " (--data NAME or FILE)")
    for name, text in DATA.items():
        _entry(name, text)
    console.heading("frameworks", " (--framework NAME)")
    for name, backend in backends().items():
        _entry(name, backend.title())
    return 0


def _entry(name: str, *paragraphs: str) -> None:
    lines = [line for text in paragraphs for line in textwrap.wrap(text, WIDTH - len(INDENT))]
    for number, line in enumerate(lines):
        console.print(f"  {'' if number else name:<{len(INDENT) - 2}}{line}")


def _options(kind: type[Any]) -> list[str]:
    """Return a line for each option of an encoding: its values and the default."""
    hints = get_type_hints(kind)
    return [
        f"{field.name}={values(hints[field.name])} (default: {_default(field.default)})"
        for field in fields(kind)
    ]


def values(hint: Any) -> str:
    """Return the values that a type allows: float | None is X|none."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return "|".join(map(values, get_args(hint)))
    return VALUES.get(hint, "VALUE")


def _default(value: Any) -> str:
    if value is MISSING:
        return "the longest sequence"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
