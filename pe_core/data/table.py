"""Read long tables, one step a row: `.csv` and `.tsv` files, and data frames of pandas or polars,
neither of which is imported.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, Num

from pe_core.data.plausibility import warn_of_cut_digits
from pe_core.data.positions import is_date, seconds
from pe_core.data.reading import Reading, padded_reading, read_text, sorted_names
from pe_core.data.standardisation import FLOAT64_INTEGERS
from pe_core.errors import UserValueError, nearest

# What a column is, and the names that say so, in small letters.
ROLES: Final = {
    "sequence": ("sequence", "sequence_id", "id", "series", "series_id", "case", "case_id"),
    "step": ("step",),
    "time": ("time", "timestamp", "datetime", "date"),
    "label": ("label", "class", "target"),
}
TOKENS: Final = ("token", "tokens")
# What pandas calls the column of an index that has no name.
UNNAMED: Final = ("", "unnamed: 0")
MISSING: Final = ("", "?", "na", "n/a", "nan", "null", "none", "<na>", "nat")
# The unit of dates, which count from the first step of their sequence.
FROM_FIRST: Final = "dates"
FRAME: Final = Path("data frame")


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: dict[str, Any]
    lines: tuple[int, ...] | None

    def where(self, row: int) -> str:
        return f"{self.path}, " + (
            f"row {row}" if self.lines is None else f"line {self.lines[row]}"
        )


def is_frame(data: Any) -> bool:
    """Return whether something is a data frame, of pandas or with the same methods."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__")


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Read a `.csv` or `.tsv` file of one step a row.

    A column says to which sequence a row belongs; `step` or `time` its place, else the order of the
    rows; `label` the class of the whole sequence. All others are features, or `token` alone are
    tokens. Missing values are treated as in `.ts` files.

    Args:
        path: the file.
        columns: the names of the columns that are "sequence", "step", "time" and "label", where
            they have not one of the names in `ROLES`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column or a cell that cannot be used; names the file and the line.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserValueError(
            f"{path}, line {reader.line_num}: {error}; write the file again"
        ) from None
    if len(rows) < 2:
        raise UserValueError(
            f"{path}: has no rows below a line with the names of the columns; write one row a step"
        )
    names, *cells = rows
    for line, row in zip(lines[1:], cells, strict=True):
        if len(row) != len(names):
            raise UserValueError(
                f"{path}, line {line}: {len(row)} cells, the first line names {len(names)} "
                "columns; give all lines the same"
            )
    stripped = [name.strip() for name in names]
    if len(set(stripped)) < len(stripped):
        twice = next(name for name in stripped if stripped.count(name) > 1)
        raise UserValueError(f"{path}: column {twice!r} is named twice; give each its own name")
    found = dict(zip(stripped, zip(*cells, strict=True), strict=True))
    return _reading(_Table(path, found, tuple(lines[1:])), columns or {})


def read_frame(frame: Any, columns: Mapping[str, str] | None = None) -> Reading:
    """Read a data frame of one step a row, as `read_table` reads a file; a named index is columns
    too.

    Raises:
        ValueError: a column or a cell that cannot be used; names the row, from 0.
    """
    index = getattr(frame, "index", None)
    if any(name is not None for name in getattr(index, "names", ())):
        frame = frame.reset_index()
    found = {str(name): np.asarray(frame[name]) for name in frame.columns}
    if not found or not len(next(iter(found.values()))):
        raise UserValueError(f"{FRAME}: has no rows; give one row a step")
    return _reading(_Table(FRAME, found, None), columns or {})


def _reading(table: _Table, given: Mapping[str, str]) -> Reading:
    roles = _roles(table, given)
    ids = [str(value).strip() for value in table.columns[roles["sequence"]]]
    for row, name in enumerate(ids):
        if name.lower() in MISSING:
            raise UserValueError(
                f"{table.where(row)}: column {roles['sequence']!r} is empty; say to which sequence "
                "the row belongs"
            )
    _, first, inverse = np.unique(np.array(ids), return_index=True, return_inverse=True)
    # Sequences stand in the order in which they begin.
    number = np.argsort(np.argsort(first))[inverse]
    steps = _numbers(table, roles["step"], times=True) if "step" in roles else None
    times, unit = _times(table, roles["time"]) if "time" in roles else (None, "steps")
    places = steps if steps is not None else times
    order = np.argsort(number, kind="stable") if places is None else np.lexsort((places, number))
    if places is not None:
        _refuse_equal(table, places[order], number[order], order, ids, roles)
    ends = np.cumsum(np.bincount(number))[:-1]
    left_out = [name for name in table.columns if name.lower() in UNNAMED]
    features = [name for name in table.columns if name not in (*roles.values(), *left_out)]
    taken = [f"{name} as {role}" for role, name in roles.items() if name != role]
    if not features:
        raise UserValueError(
            f"{table.path}: has no column of features beside {', '.join(roles.values())}; add one"
        )
    values = _features(table, features)[order]
    examples = [part.T for part in np.split(values, ends)]
    labels = _labels(table, roles["label"], number, ids) if "label" in roles else None
    lines = None if table.lines is None else tuple(np.array(table.lines)[np.sort(first)].tolist())
    taken += ["without the unnamed column"] if left_out else []
    # A time says more than a step.
    placed = steps if times is None else times
    if times is not None and unit == FROM_FIRST:
        starts = np.repeat([times[order][0], *times[order][ends]], np.bincount(number))
        placed, unit = np.empty_like(times), "seconds"
        placed[order] = times[order] - starts
        taken.append("dates count from the first step of a sequence")
    positions = _positions(None if placed is None else placed[order], ends, steps=times is None)
    reading = padded_reading(
        table.path,
        examples,
        labels,
        sorted_names(labels or ()),
        lines,
        tuple(taken),
        positions=positions,
        positions_unit=unit,
    )
    if [name.lower() for name in features] in ([name] for name in TOKENS):
        return _as_tokens(reading)
    return replace(reading, feature_names=tuple(features))


def _roles(table: _Table, given: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the column of each role that there is."""
    found = {}
    for role, name in given.items():
        if role not in ROLES:
            raise UserValueError(
                f"columns name the {', '.join(ROLES)}, got {role!r}; take one of these"
            )
        if name not in table.columns:
            hint = nearest(name, table.columns, otherwise="correct the name")
            raise UserValueError(f"{table.path}: has no column {name!r} for the {role}; {hint}")
        found[role] = name
    for role, known in ROLES.items():
        names = [name for name in table.columns if name.lower() in known]
        names = [name for name in names if name not in found.values()]
        if role in found or not names:
            continue
        if len(names) > 1:
            raise UserValueError(
                f"{table.path}: columns {' and '.join(names)} could each be the {role}; choose one "
                f"with --columns {role}={names[0]} (columns in Python), and leave the other out"
            )
        found[role] = names[0]
    if "sequence" not in found:
        raise UserValueError(
            f"{table.path}: no column says to which sequence a row belongs, the columns are "
            f"{', '.join(list(table.columns)[:20])}; name one id, or choose one with --columns "
            "sequence=NAME (columns in Python)"
        )
    return found


def _refuse_equal(
    table: _Table,
    places: Num[np.ndarray, " rows"],
    number: Int64[np.ndarray, " rows"],
    order: Int64[np.ndarray, " rows"],
    ids: list[str],
    roles: dict[str, str],
) -> None:
    same = (np.diff(number) == 0) & (np.diff(places) == 0)
    if same.any():
        row = int(order[1:][same][0])
        place = roles.get("step") or roles["time"]
        raise UserValueError(
            f"{table.where(row)}: {place} {table.columns[place][row]} of sequence {ids[row]!r} is "
            "given twice; keep one"
        )


def _positions(
    places: Num[np.ndarray, " rows"] | None, ends: Int64[np.ndarray, " parts"], *, steps: bool
) -> list[Num[np.ndarray, " steps"]] | None:
    """Return the positions of each sequence, from 0 where steps count from 1; None for steps that
    are counted without a gap.
    """
    if places is None:
        return None
    if steps and places.min() == 1:
        places = places - 1
    parts = np.split(places, ends)
    counted = all(np.array_equal(part, np.arange(len(part))) for part in parts)
    return None if steps and counted else parts


def _features(table: _Table, names: list[str]) -> Num[np.ndarray, "rows features"]:
    columns = [_numbers(table, name) for name in names]
    if any(column.dtype.kind == "f" for column in columns):
        for name, column in zip(names, columns, strict=True):
            if np.nanmax(np.abs(column), initial=0.0) > FLOAT64_INTEGERS:
                warn_of_cut_digits(
                    (f"{table.where(row)}, column {name!r}", str(value))
                    for row, value in enumerate(table.columns[name])
                )
    return np.stack(columns, axis=1)


def _numbers(table: _Table, name: str, *, times: bool = False) -> Num[np.ndarray, " rows"]:
    """Return a column as int64 where it holds integers alone, else float64 with NaN where a value
    is missing, which a time may not be.
    """
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufb":
        numbers = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    else:
        words = [str(value).strip() for value in values]
        try:
            numbers = np.array(words).astype(np.int64)
        except (ValueError, OverflowError):
            numbers = np.array(
                [
                    np.nan if word.lower() in MISSING else _number(table, name, row, word)
                    for row, word in enumerate(words)
                ]
            )
    bad = np.isinf(numbers) | (np.isnan(numbers) if times else False)
    if bad.any():
        row = int(np.argmax(bad))
        remedy = "give each row its place" if times else "leave the cell empty for a missing value"
        raise UserValueError(
            f"{table.where(row)}, column {name!r}: {values[row]!r} is not a finite number; {remedy}"
        )
    return numbers


def _number(table: _Table, name: str, row: int, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        remedy = (
            "write a point, not a comma, before decimals"
            if word.replace(",", "", 1).strip("+-").isdigit()
            else "leave the column out, or make it numbers; an empty cell is a missing value"
        )
        raise UserValueError(
            f"{table.where(row)}, column {name!r}: {word[:40]!r} is not a number; {remedy}"
        ) from None


def _times(table: _Table, name: str) -> tuple[Num[np.ndarray, " rows"], str]:
    """Return a column of times and their unit: numbers as they are, dates as seconds since 1970."""
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        if np.isnat(values).any():
            row = int(np.argmax(np.isnat(values)))
            raise UserValueError(f"{table.where(row)}, column {name!r}: has no time; give it")
        return values.astype("datetime64[us]").astype(np.int64) / 1e6, FROM_FIRST
    words = [str(value).strip() for value in values]
    if not is_date(words[0]):
        return _numbers(table, name, times=True), "seconds"
    for row, word in enumerate(words):
        if not is_date(word):
            raise UserValueError(
                f"{table.where(row)}, column {name!r}: {word[:40]!r} is no ISO date such as "
                "2024-05-01T12:30:00; correct it"
            )
    return np.array([seconds(word) for word in words]), FROM_FIRST


def _labels(
    table: _Table, name: str, number: Int64[np.ndarray, " rows"], ids: list[str]
) -> tuple[str, ...] | None:
    """Return the label of each sequence; None where the column is empty throughout."""
    words = [str(value).strip() for value in table.columns[name]]
    if all(word.lower() in MISSING for word in words):
        return None
    labels: dict[int, str] = {}
    for row, (sequence, word) in enumerate(zip(number.tolist(), words, strict=True)):
        if word.lower() in ("", "nan", "<na>"):
            raise UserValueError(
                f"{table.where(row)}: sequence {ids[row]!r} has no label; give it in every row"
            )
        if labels.setdefault(sequence, word) != word:
            raise UserValueError(
                f"{table.where(row)}: sequence {ids[row]!r} has label {word!r}, and "
                f"{labels[sequence]!r} before; give a sequence one label"
            )
    return tuple(labels[sequence] for sequence in range(len(labels)))


def _as_tokens(reading: Reading) -> Reading:
    tokens = reading.inputs[..., 0]
    if reading.missing is not None or (tokens != np.floor(tokens)).any():
        raise UserValueError(
            f"{reading.path}: tokens must be integers; name the column otherwise for a feature"
        )
    return replace(reading, inputs=tokens.astype(np.int64))
