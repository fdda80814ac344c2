"""Read `.ts` files, the text format of the UCR and UEA archives of time series classification.

Source: the format's description in the documentation of sktime and aeon.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from pe_core.data.plausibility import warn_of_cut_digits
from pe_core.data.positions import is_date, seconds
from pe_core.data.reading import Reading, padded_reading, read_text, sorted_names
from pe_core.data.standardisation import FLOAT64_INTEGERS
from pe_core.errors import UserValueError

COMMENTS: Final = ("#", "%")
TAGS: Final = (
    "timestamps",
    "univariate",
    "dimensions",
    "equallength",
    "serieslength",
    "classlabel",
    "targetlabel",
)
# Under @timestamps true: a pair, and the colons that stand in none, as those of a date do.
PAIR: Final = re.compile(r"\(([^(),]*),([^(),]*)\)")
BETWEEN_PAIRS: Final = re.compile(r":(?![^()]*\))")


@dataclass(frozen=True)
class _Header:
    labelled: bool
    class_names: tuple[str, ...]
    univariate: bool
    dimensions: int | None
    timestamps: bool
    equal_length: bool | None
    series_length: int | None
    end: int


def read_ts(path: Path) -> Reading:
    """Read a `.ts` file as float64 (count, length, dimensions), right-padded to the longest one.

    Header names are case-insensitive, and unknown ones are ignored. Class names keep their case and
    the header's order; if it lists none, they are the distinct labels, sorted. A missing value (`?`
    or `NaN`) is interpolated linearly between the observed neighbours in its dimension; at the ends
    it takes the nearest one. Where all lines are equally long and the header does not say
    `@equalLength false`, the steps at the end that are missing in every dimension are padding. A
    dimension with no observed value in an example is marked in
    `Reading.missing` and filled with the dimension's mean, which `load` takes from the training
    part. Under `@timestamps true` a value is a pair (time, value); whole numbers are positions in
    steps, others in seconds, and dates count from the first step of their series.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: regression targets, or a line that breaks the format; names the
            file and the line.
    """
    lines = _lines(path)
    header = _header(path, lines)
    examples: list[Float64[np.ndarray, "dimensions steps"]] = []
    labels: list[str] = []
    numbers: list[int] = []
    positions: list[np.ndarray] = []
    units: set[str] = set()
    for number, line in enumerate(lines[header.end :], header.end + 1):
        if not line or line.startswith(COMMENTS):
            continue
        where = f"{path}, line {number}"
        parts = BETWEEN_PAIRS.split(line) if header.timestamps else line.split(":")
        *fields, label = parts if header.labelled else [*parts, ""]
        if header.timestamps:
            fields, (placed, unit) = _without_times(where, fields)
            positions.append(placed)
            units.add(unit)
        example = _example(where, fields, header)
        if examples:
            _check_alike(where, example, examples[0], header)
        examples.append(example)
        labels.append(label.strip())
        numbers.append(number)
    if any(np.nanmax(np.abs(example), initial=0.0) > FLOAT64_INTEGERS for example in examples):
        warn_of_cut_digits((f"{path}, line {number}", lines[number - 1]) for number in numbers)
    if not examples:
        raise UserValueError(f"{path}: no data after @data; add one line per example")
    names = (header.class_names or sorted_names(labels)) if header.labelled else ()
    return padded_reading(
        path,
        examples,
        tuple(labels) if header.labelled else None,
        names,
        tuple(numbers),
        padded=header.equal_length,
        positions=positions or None,
        positions_unit="seconds" if "seconds" in units else "steps",
    )


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).split("\n")]


def _header(path: Path, lines: list[str]) -> _Header:
    tags: dict[str, tuple[list[str], str]] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith(COMMENTS):
            continue
        if not line.startswith("@"):
            raise UserValueError(
                f"{path}, line {number}: expected a header line such as @classLabel, got "
                f"{line[:40]!r}; put data after @data"
            )
        tag, *words = line[1:].split() or [""]
        if tag.lower() == "data":
            if words:
                raise UserValueError(
                    f"{path}, line {number}: @data must stand alone; start the data on the next "
                    "line"
                )
            return _checked_header(path, tags, number)
        name = {"dimension": "dimensions"}.get(tag.lower(), tag.lower())
        if name in TAGS and name in tags and tags[name][0] != words:
            raise UserValueError(
                f"{path}, line {number}: @{tag} is given twice, with different values; keep one"
            )
        tags[name] = (words, f"{path}, line {number}")
    raise UserValueError(
        f"{path}: has no @data line; is it a .ts file of the UCR and UEA archives?"
    )


def _checked_header(path: Path, tags: dict[str, tuple[list[str], str]], end: int) -> _Header:
    def truth(name: str) -> bool:
        words, where = tags.get(name, (["false"], ""))
        if not words or words[0].lower() not in ("true", "false"):
            raise UserValueError(
                f"{where}: @{name} must be true or false, got {' '.join(words) or 'nothing'!r}; "
                "correct the header"
            )
        return words[0].lower() == "true"

    def size(name: str) -> int | None:
        words, where = tags.get(name, (None, ""))
        if words is None:
            return None
        if len(words) != 1 or not words[0].isdecimal():
            raise UserValueError(
                f"{where}: @{name} must be a whole number, got {' '.join(words) or 'nothing'!r}; "
                "correct the header"
            )
        return int(words[0])

    if truth("targetlabel"):
        raise UserValueError(
            f"{tags['targetlabel'][1]}: a regression target is not supported; use a "
            "classification problem, with @classLabel"
        )
    if "classlabel" not in tags and "targetlabel" not in tags:
        raise UserValueError(
            f"{path}: has no @classLabel line; add @classLabel true NAME NAME ..., or "
            "@classLabel false if there are no labels"
        )
    labelled = truth("classlabel")
    names = tuple(tags["classlabel"][0][1:]) if labelled else ()
    if len(set(names)) < len(names):
        raise UserValueError(
            f"{tags['classlabel'][1]}: @classLabel names a class twice, {' '.join(names)}; name "
            "each once"
        )
    return _Header(
        labelled,
        names,
        truth("univariate"),
        size("dimensions"),
        truth("timestamps"),
        truth("equallength") if "equallength" in tags else None,
        size("serieslength"),
        end,
    )


def _example(
    where: str, fields: list[str], header: _Header
) -> Float64[np.ndarray, "dimensions steps"]:
    if not fields:
        raise UserValueError(
            f"{where}: expected values, a colon and a class label; add the label, or write "
            "@classLabel false"
        )
    if header.univariate and len(fields) > 1:
        raise UserValueError(
            f"{where}: {len(fields)} dimensions, but the header says @univariate true; correct "
            "one of them"
        )
    if header.dimensions not in (None, len(fields)):
        raise UserValueError(
            f"{where}: {len(fields)} dimensions, but the header says @dimensions "
            f"{header.dimensions}; correct one of them"
        )
    series = [
        _values(f"{where}, dimension {dimension}", field)
        for dimension, field in enumerate(fields, 1)
    ]
    for dimension, values in enumerate(series, 1):
        if len(values) != len(series[0]):
            raise UserValueError(
                f"{where}: dimension {dimension} has {len(values)} values, dimension 1 has "
                f"{len(series[0])}; give all the same length"
            )
    if header.equal_length and header.series_length not in (None, len(series[0])):
        raise UserValueError(
            f"{where}: {len(series[0])} values, but the header says @seriesLength "
            f"{header.series_length}; correct one of them"
        )
    return np.array(series, np.float64)


def _without_times(where: str, fields: list[str]) -> tuple[list[str], tuple[np.ndarray, str]]:
    """Return the values of fields of pairs alone, and the times, the same in every dimension."""
    values, times = [], []
    for dimension, field in enumerate(fields, 1):
        pairs = PAIR.findall(field)
        if not pairs or PAIR.sub("", field).strip(", "):
            raise UserValueError(
                f"{where}, dimension {dimension}: expected pairs such as (0,1.5),(1,2.5) under "
                f"@timestamps true, got {field[:40]!r}; write them, or @timestamps false"
            )
        values.append(",".join(value for _, value in pairs))
        times.append([time.strip() for time, _ in pairs])
        if times[-1] != times[0]:
            raise UserValueError(
                f"{where}: dimension {dimension} has other times than dimension 1; give all "
                "dimensions a value, or ?, at the same times"
            )
    return values, _places(where, times[0] if times else [])


def _places(where: str, times: list[str]) -> tuple[np.ndarray, str]:
    """Return times as positions, and their unit."""
    if times and is_date(times[0]):
        for time in times:
            if not is_date(time):
                raise UserValueError(
                    f"{where}: {time[:40]!r} is no ISO date such as 2024-05-01 12:30:00; correct it"
                )
        found = np.array([seconds(time) for time in times])
        return found - found[0], "seconds"
    if all(time.lstrip("+-").isdigit() for time in times):
        return np.array([int(time) for time in times], np.int64), "steps"
    for time in times:
        if not (_is_number(time) and math.isfinite(float(time))):
            raise UserValueError(f"{where}: {time[:40]!r} is not a time; write a number or a date")
    return np.array([float(time) for time in times]), "seconds"


def _values(where: str, field: str) -> list[float]:
    try:
        values = list(map(float, field.replace("?", "nan").split(",")))
    except ValueError:
        wrong = next(word for word in field.split(",") if not _is_number(word.replace("?", "nan")))
        raise UserValueError(
            f"{where}: {wrong.strip()[:40]!r} is not a number; write ? for a missing value"
        ) from None
    if math.inf in values or -math.inf in values:
        raise UserValueError(f"{where}: an infinite value; write ? for a missing value")
    return values


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _check_alike(where: str, example: np.ndarray, first: np.ndarray, header: _Header) -> None:
    if len(example) != len(first):
        raise UserValueError(
            f"{where}: {len(example)} dimensions, the first example has {len(first)}; give all "
            "examples the same"
        )
    if header.equal_length and example.shape[1] != first.shape[1]:
        raise UserValueError(
            f"{where}: {example.shape[1]} values, the first example has {first.shape[1]}; "
            "complete the line, or write @equalLength false"
        )
