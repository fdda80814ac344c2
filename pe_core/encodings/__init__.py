"""One frozen dataclass per positional encoding: its options, valid from birth.

The formulas stand in `pe_parity/reference/`, the layers in each backend's `encodings/`. The list is
closed: a name in a file picks one of these and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

from pe_core.errors import UserValueError, nearest, require_integer, require_number, require_one_of

Layers = Literal["first", "all"]
Layout = Literal["interleaved", "half", "tensor2tensor"]


@dataclass(frozen=True)
class LearnedTable:
    """A trained vector per position, added to the steps; float positions read between two rows.

    Args:
        max_length: rows of the table; the longest sequence that it can encode.
        layers: "first" adds it to the input, "all" again before every layer.
    """

    name: ClassVar[str] = "learned"

    max_length: int
    layers: Layers = "first"

    def __post_init__(self) -> None:
        require_integer("max_length of a learned table", self.max_length, 1)
        require_one_of("layers", self.layers, ("first", "all"))


@dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of the position at geometrically spaced frequencies, added to the steps;
    any length, nothing to train.

    Args:
        base: ratio of the longest wavelength to the shortest, nearly.
        layout: "interleaved" (sine, cosine, sine, ...), "half" (all sines, then all cosines), or
            "tensor2tensor" (half, with the last frequency exactly 1/base).
        layers: "first" adds it to the input, "all" again before every layer.
    """

    name: ClassVar[str] = "sinusoidal"

    base: float = 10000.0
    layout: Layout = "interleaved"
    layers: Layers = "first"

    def __post_init__(self) -> None:
        require_number("base of a sinusoidal encoding", self.base, 1.0)
        require_one_of("layout", self.layout, ("interleaved", "half", "tensor2tensor"))
        require_one_of("layers", self.layers, ("first", "all"))


Encoding: TypeAlias = LearnedTable | Sinusoidal

ENCODINGS: dict[str, type[Encoding]] = {kind.name: kind for kind in (LearnedTable, Sinusoidal)}


def encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    """Return the options as a dictionary with the encoding's name."""
    return {"name": encoding.name} | {
        field.name: getattr(encoding, field.name) for field in fields(encoding)
    }


def encoding_from_json(options: Any) -> Encoding:
    """Return the encoding of a dictionary with its name and options.

    Raises:
        ValueError: an unknown encoding or option; the line has the nearest name.
    """
    if not isinstance(options, dict) or not isinstance(options.get("name"), str):
        raise UserValueError(f'an encoding must be an object with a "name", got {options!r}')
    kind = _kind(options["name"])
    return _make(kind, {name: value for name, value in options.items() if name != "name"})


def parse_encoding(text: str, *, max_length: int) -> Encoding | None:
    """Return the encoding of a text such as `sinusoidal:layout=half`, or None for `none`.

    Args:
        text: a name, then a colon and options as name=value, separated by commas.
        max_length: rows of a table where the text does not say.
    """
    name, _, tail = text.partition(":")
    if name == "none":
        if tail:
            raise UserValueError(
                f"encoding 'none' has no options, got {tail!r}; write --encoding none"
            )
        return None
    kind = _kind(name)
    known = {field.name: field for field in fields(kind)}
    options: dict[str, Any] = {"max_length": max_length} if "max_length" in known else {}
    for part in filter(None, tail.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise UserValueError(
                f"option {part!r} of encoding {name!r} has no value; write {part}=VALUE"
            )
        options[option] = _number(value)
    return _make(kind, options)


def _kind(name: str) -> type[Encoding]:
    if name not in ENCODINGS:
        raise UserValueError(f"unknown encoding {name!r}; {nearest(name, [*ENCODINGS, 'none'])}")
    return ENCODINGS[name]


def _make(kind: type[Encoding], options: dict[str, Any]) -> Encoding:
    known = {field.name for field in fields(kind)}
    for option in options:
        if option not in known:
            raise UserValueError(
                f"encoding {kind.name!r} has no option {option!r}; {nearest(option, known)}"
            )
    try:
        return kind(**options)
    except TypeError as error:
        raise UserValueError(f"encoding {kind.name!r}: {error}") from None


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
