"""Load a task or a file: `load` returns a `Dataset`, `read` the `Sequences` of one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data.dataset import Dataset, describe_steps
from pe_core.data.npz import LAYOUTS, Layout, read_npz
from pe_core.data.plausibility import (
    warn_of_lengths,
    warn_of_missing_classes,
    warn_of_scales,
)
from pe_core.data.positions import UseOfPositions
from pe_core.data.reading import Reading
from pe_core.data.sequences import Sequences
from pe_core.data.splitting import check_fraction, split_by_class, split_order
from pe_core.data.standardisation import Standardisation
from pe_core.data.table import is_frame, read_frame, read_table
from pe_core.data.tasks import digits, dummy, order
from pe_core.data.ts import read_ts
from pe_core.errors import UserTypeError, UserValueError, nearest, require_one_of

DATA_NAMES: Final = ("dummy", "order", "digits", "digits64")
VALIDATION_FRACTION: Final = 0.2

# A file, or a data frame of pandas or polars.
Source = str | Path | Any
ENDINGS: Final = ".npz, .ts, .csv or .tsv"


def silent(line: str) -> None:
    """Say nothing."""


def load(
    data: Source,
    *,
    test: Source | None = None,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    layout: Layout = "steps-first",
    columns: Mapping[str, str] | None = None,
    positions: UseOfPositions = "encode",
    positions_unit: str | None = None,
    feature_names: Iterable[str] | None = None,
    standardisation: Standardisation | None = None,
    tell: Callable[[str], object] = silent,
) -> Dataset:
    """Load a built-in task or a training file, split by class and standardised.

    Features are standardised with statistics of the training part, and an entirely missing feature
    is filled with its mean there. Tokens, `dummy` and `order` stay as they are.

    Args:
        data: one of `DATA_NAMES`, or a training file ending in .npz, .ts, .csv or .tsv, or a data
            frame of one step a row.
        test: a second one, whose labels are matched by name to the classes of the first.
        seed: determines the task's numbers, and the split into training and validation.
        validation_fraction: the share of the training examples, of each class, held out for
            validation; 0 trains on all of them.
        layout: of three-dimensional inputs in .npz files: "steps-first", (count, length, features),
            or "channels-first", (count, features, length).
        columns: the names of the columns of tables that are "sequence", "step", "time" and "label",
            where they have other names.
        positions: what those of the files are used for: "encode" gives them to the encodings,
            "feature" makes a feature of them, "both" does both, "ignore" counts steps.
        positions_unit: the unit that they shall have; None = that of the training file.
        feature_names: the order of the features of tables; None = as they stand in the first.
        standardisation: of files, such as that of a model; None = fitted on the training part.
        tell: is called with a line on each file that was read.

    A `DataWarning` is issued for what can be used and looks wrong.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the digits are asked for and scikit-learn is missing.
        TypeError, ValueError: an unknown name, options that do not go with it, or a file that
            cannot be used.
    """
    check_fraction(validation_fraction)
    if isinstance(data, str) and data in DATA_NAMES:
        if layout != LAYOUTS[0] or columns:
            given = f"columns {dict(columns)}" if columns else f"the layout {layout}"
            raise UserValueError(f"{given} does not go with {data}; leave it out")
        if test is not None:
            raise UserValueError(
                f"a test file does not go with {data}, got {test}; leave it out, or give a "
                "training file too"
            )
        if data.startswith("digits"):
            return digits(
                seed, steps=8 if data == "digits" else 64, validation_fraction=validation_fraction
            )
        if validation_fraction != VALIDATION_FRACTION:
            raise UserValueError(
                f"{data} has parts of fixed size, got validation_fraction {validation_fraction}; "
                "leave it out"
            )
        return dummy(seed) if data == "dummy" else order(seed)
    return _from_files(
        _reading(data, layout, columns),
        None if test is None else _reading(test, layout, columns),
        seed,
        validation_fraction,
        positions,
        positions_unit,
        tuple(feature_names or ()),
        standardisation,
        tell,
    )


def read(
    path: Source,
    class_names: Iterable[str] | None = None,
    *,
    fill: Sequence[float] | None = None,
    standardisation: Standardisation | None = None,
    layout: Layout = "steps-first",
    columns: Mapping[str, str] | None = None,
    positions: UseOfPositions = "encode",
    positions_unit: str | None = None,
    feature_names: Iterable[str] | None = None,
    tell: Callable[[str], object] = silent,
) -> Sequences:
    """Read one file ending in .npz, .ts, .csv or .tsv, or a data frame, not split; labels may be
    absent.

    Args:
        path: the file.
        class_names: the classes to which labels are mapped by name, for example a model's; None =
            the file's own.
        fill: one value per feature for examples in which it is entirely missing, for example
            `Standardisation.mean`; None = that of the standardisation, or else the file's mean.
        standardisation: applied to the numbers of the file, before they are cast to float32; None =
            features stay as they are.
        layout: of three-dimensional inputs in an .npz file, as in `load`.
        columns: of a table, as in `load`.
        positions: what those of the file are used for, as in `load`.
        positions_unit: the unit that they shall have; None = their own.
        feature_names: the order of the features of a table; None = as they stand.
        tell: is called with a line on what was read.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: a file that cannot be used.
    """
    if fill is None and standardisation is not None:
        fill = standardisation.mean
    reading = _reading(path, layout, columns).placed(positions, positions_unit)
    if feature_names is not None:
        reading = reading.ordered(tuple(feature_names))
    sequences = reading.sequences(class_names, fill, standardisation)
    tell(reading.describe())
    if standardisation is not None:
        warn_of_scales(sequences, standardisation, str(reading.path))
    return sequences


def _reading(data: Source, layout: Layout, columns: Mapping[str, str] | None) -> Reading:
    require_one_of("layout", layout, LAYOUTS)
    if not isinstance(data, str | os.PathLike):
        if not is_frame(data):
            raise UserTypeError(
                f"data must be the name of a file or a data frame, got {type(data).__name__}; save "
                "arrays with numpy.savez, or make Sequences of them"
            )
        return read_frame(data, columns)
    path = Path(data)
    ending = path.suffix.lower()
    is_table = ending in (".csv", ".tsv")
    if columns and not is_table:
        raise UserValueError(f"{data}: columns are those of a .csv file; leave them out for others")
    if layout != LAYOUTS[0] and ending != ".npz":
        raise UserValueError(
            f"{data}: the layout {layout} is one of .npz files; leave it out for others"
        )
    if ending == ".npz":
        return read_npz(path, layout)
    if ending == ".ts":
        return read_ts(path)
    if is_table:
        return read_table(path, columns)
    if path.suffix or path.name != str(data):
        raise UserValueError(
            f"{data}: a data file must end in {ENDINGS}, got {path.suffix or 'no ending'!r}; "
            "convert it, for example with numpy.savez"
        )
    hint = nearest(str(data).lower(), DATA_NAMES, otherwise="choose one of them, or give a file")
    raise UserValueError(
        f"unknown data {str(data)!r}, the names are {', '.join(DATA_NAMES)} or a path ending in "
        f"{ENDINGS}; {hint}"
    )


def _from_files(
    train: Reading,
    test: Reading | None,
    seed: int,
    validation_fraction: float,
    use: UseOfPositions,
    unit: str | None,
    feature_names: tuple[str, ...],
    standardisation: Standardisation | None,
    tell: Callable[[str], object],
) -> Dataset:
    if train.labels is None:
        raise UserValueError(
            f"{train.path}: has no labels to train on; add labels, or use the file for "
            "prediction only"
        )
    if test is not None and test.labels is None:
        raise UserValueError(
            f"{test.path}: has no labels to test against; add labels, or use the file for "
            "prediction only"
        )
    if test is not None and test.num_features != train.num_features:
        raise UserValueError(
            f"{test.path}: has {describe_steps(test.num_features)}, the training file has "
            f"{describe_steps(train.num_features)}; give both the same"
        )
    # Steps without a gap are counted, and are positions where the other file has gaps.
    given = [one for one in (train, test) if one is not None and one.positions is not None]
    if use == "ignore":
        unit = None
    elif unit is None and given:
        unit = given[0].positions_unit
    train = train.placed(use, unit).ordered(feature_names)
    if test is not None:
        test = test.placed(use, unit).ordered(train.feature_names)
    labels = train.label_indices()
    held_out, kept = split_by_class(
        split_order(seed, len(labels)), labels, validation_fraction, str(train.path)
    )
    seen = labels[held_out] if validation_fraction else labels
    warn_of_missing_classes(train.class_names, labels, seen, str(train.path))
    mean = train.observed_mean(kept)
    if standardisation is not None:
        mean = np.array([float(number) for number in standardisation.mean])
    elif train.num_features is not None:
        standardisation = train.fit(kept, mean)
    every, tested = train.sequences(None, mean, standardisation), None
    tell(train.describe())
    if test is not None:
        tested = test.sequences(every.class_names, mean, standardisation)
        tell(test.describe())
        warn_of_lengths(every.lengths, tested.lengths, str(test.path))
        if standardisation is not None:
            warn_of_scales(tested, standardisation, str(test.path))
    name = train.path.stem.removesuffix("_TRAIN")
    return Dataset(
        name,
        every.take(kept),
        every.take(held_out) if len(held_out) else None,
        tested,
        standardisation,
        train.feature_names,
        unit or "",
        use,
    )
