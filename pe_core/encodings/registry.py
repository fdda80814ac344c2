"""Encodings by name: those of the project and those that a process has registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from pe_core.encodings.options import KINDS, EncodingOptions, QueryKeyOptions, Sizes
from pe_core.errors import UnknownEncodingError, UserTypeError, UserValueError, nearest

ENCODINGS: dict[str, type[EncodingOptions]] = {}


def register_options(kind: Any) -> None:
    """Make an options class known by its name, in this process.

    Registering it again is no error, nor is the same class defined anew, as in a notebook.

    Raises:
        UserTypeError: it is not a frozen dataclass of one of the four kinds.
        UserValueError: the name is taken by another class, or no name for the command line.
    """
    kinds = ", ".join(item.__name__ for item in KINDS)
    made = getattr(kind, "__dataclass_params__", None)
    if not isinstance(kind, type) or not issubclass(kind, KINDS) or made is None:
        raise UserTypeError(f"options must be a dataclass that derives from {kinds}, got {kind!r}")
    if not made.frozen:
        raise UserTypeError(f"options must be frozen, got {kind.__name__}; use frozen=True")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name == "none":
        raise UserValueError(
            f"{kind.__name__}.name must be a word such as 'mine', other than 'none', got {name!r}"
        )
    taken = _path(ENCODINGS.get(name, kind))
    if taken != _path(kind):
        raise UserValueError(f"the name {name!r} is taken by {taken}; choose another name")
    ENCODINGS[name] = kind


def check_layer(options: Any, layer: Any, kinds: Mapping[type[Any], type[Any]]) -> None:
    """Raise one clear line unless a layer computes the encoding of an options class.

    Args:
        options: the options class.
        layer: a backend's class for it, or the reference's formula.
        kinds: that backend's base class for each of the four kinds of options.

    Raises:
        UserTypeError: the layer is of another kind than the options, or of none.
    """
    kind = next(base for known, base in kinds.items() if issubclass(options, known))
    if not isinstance(layer, type) or not issubclass(layer, kind):
        raise UserTypeError(
            f"the layer of {options.__name__} must derive from {kind.__module__.split('.')[0]}'s "
            f"{kind.__name__}, got {layer!r}"
        )
    if getattr(layer, "options_type", None) is not options:
        found = getattr(layer, "options_type", None)
        raise UserTypeError(
            f"{layer.__name__}.options_type must be {options.__name__}, got {found!r}; set it in "
            "the class"
        )


def as_encodings(encodings: Any) -> tuple[EncodingOptions, ...]:
    """Return options of encodings as a tuple.

    Raises:
        UserTypeError: what is no sequence, such as the options of a single encoding.
    """
    if not isinstance(encodings, Iterable):
        raise UserTypeError(
            f"encodings must be a tuple of options, got {encodings!r}; pass ({encodings!r},)"
        )
    return tuple(encodings)


def check_encodings(encodings: Sequence[EncodingOptions], sizes: Sizes) -> None:
    """Raise one clear line unless the encodings are known, fit the sizes and go together.

    Raises:
        UserTypeError: something that is not the options of a known encoding.
        UserValueError: sizes that do not fit, or encodings that exclude each other.
    """
    for encoding in as_encodings(encodings):
        if type(encoding) not in ENCODINGS.values():
            raise UserTypeError(
                f"encodings must be options such as LearnedTable(max_length=10), got {encoding!r}"
            )
        encoding.check(sizes)
    maps = [item.name for item in encodings if isinstance(item, QueryKeyOptions)]
    if len(maps) > 1:
        raise UserValueError(
            f"at most one encoding may map queries and keys, got {' and '.join(maps)}; keep one"
        )
    scales = [item.name for item in encodings if item.factor(sizes) != 1.0]
    if len(scales) > 1:
        raise UserValueError(
            f"{' and '.join(scales)} scale the logits each in its own way; keep one of them"
        )


def encoding_to_json(encoding: EncodingOptions) -> dict[str, Any]:
    """Return the options as a dictionary with the encoding's name, without those of `added` at
    their defaults.
    """
    return {"name": encoding.name} | {
        field.name: getattr(encoding, field.name)
        for field in fields(encoding)  # type: ignore[arg-type]  # a dataclass, as registered
        if field.name not in encoding.added or getattr(encoding, field.name) != field.default
    }


def encoding_from_json(options: Any) -> EncodingOptions:
    """Return the encoding of a dictionary with its name and options.

    Raises:
        UserValueError: an unknown encoding or option; the line has the nearest name.
    """
    if not isinstance(options, dict) or not isinstance(options.get("name"), str):
        raise UserValueError(f'an encoding must be an object with a "name", got {options!r}')
    given = {name: value for name, value in options.items() if name != "name"}
    return _make(_kind(options["name"]), given)


def parse_encoding(text: str, *, max_length: int) -> EncodingOptions | None:
    """Return the encoding of a text such as `sinusoidal:layout=half`, or None for `none`.

    Args:
        text: a name, then a colon and options as name=value, separated by commas.
        max_length: rows of a table where the text does not say.

    Raises:
        UserValueError: an unknown encoding or option, or a value that breaks a rule.
    """
    name, _, tail = text.partition(":")
    if name == "none":
        if tail:
            raise UserValueError(
                f"encoding 'none' has no options, got {tail!r}; write --encoding none"
            )
        return None
    kind = _kind(name)
    hints = get_type_hints(kind)
    options: dict[str, Any] = {"max_length": max_length} if _needs_length(kind) else {}
    for part in filter(None, tail.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise UserValueError(
                f"option {part!r} of encoding {name!r} has no value; write {part}=VALUE"
            )
        options[option] = _value(value, hints.get(option))
    return _make(kind, options)


def _needs_length(kind: type[EncodingOptions]) -> bool:
    return any(
        field.name == "max_length" and field.default is MISSING
        for field in fields(kind)  # type: ignore[arg-type]  # a dataclass, as registered
    )


def _kind(name: str) -> type[EncodingOptions]:
    if name not in ENCODINGS:
        raise UnknownEncodingError(
            f"unknown encoding {name!r}; {nearest(name, [*ENCODINGS, 'none'])} (for one of your "
            "own, give --import MODULE or call register first)"
        )
    return ENCODINGS[name]


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _make(kind: type[EncodingOptions], options: dict[str, Any]) -> EncodingOptions:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise UserValueError(
                f"encoding {kind.name!r} has no option {option!r}; {nearest(option, known)}"
            )
    try:
        return kind(**options)
    except TypeError as error:
        raise UserValueError(f"encoding {kind.name!r}: {error}") from None


def _value(text: str, hint: Any) -> Any:
    """Return the value of a text by the type of its option; a text that is none stays a text."""
    kinds = get_args(hint) or (hint,)
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if int in kinds or float in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text
