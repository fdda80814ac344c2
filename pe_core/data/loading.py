"""Load a task or a file: `load` returns a `Dataset`, `read` the `Sequences` of one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from pe_core.data.dataset import Dataset, describe_steps
from pe_core.data.npz import LAYOUTS, Layout, read_npz
from pe_core.data.plausibility import (
    warn_of_lengths,
    warn_of_missing_classes,
    warn_of_scales,
)
from pe_core.data.reading import Reading
from pe_core.data.sequences import Sequences
from pe_core.data.splitting import check_fraction, split_by_class, split_order
from pe_core.data.standardisation import Standardisation
from pe_core.data.tasks import digits, dummy, order
from pe_core.data.ts import read_ts
from pe_core.errors import UserValueError, nearest, require_one_of

DATA_NAMES: Final = ("dummy", "order", "digits", "digits64")
VALIDATION_FRACTION: Final = 0.2

_READERS: Final[dict[str, Callable[[Path], Reading]]] = {".npz": read_npz, ".ts": read_ts}


def _silent(line: str) -> None:
    """Say nothing."""


def load(
    data: str | Path,
    *,
    test: str | Path | None = None,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    layout: Layout = "steps-first",
    tell: Callable[[str], object] = _silent,
) -> Dataset:
    """Load a built-in task or a training file, split by class and standardised.

    Features are standardised with statistics of the training part, and an entirely missing feature
    is filled with its mean there. Tokens, `dummy` and `order` stay as they are.

    Args:
        data: one of `DATA_NAMES`, or a training file ending in .npz or .ts.
        test: a second file, whose labels are matched by name to the classes of the first.
        seed: determines the task's numbers, and the split into training and validation.
        validation_fraction: the share of the training examples, of each class, held out for
            validation.
        layout: of three-dimensional inputs in .npz files: "steps-first", (count, length, features),
            or "channels-first", (count, features, length).
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
        if layout != LAYOUTS[0]:
            raise UserValueError(f"the layout {layout} does not go with {data}; leave it out")
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
        _reading(data, layout),
        None if test is None else _reading(test, layout),
        seed,
        validation_fraction,
        tell,
    )


def read(
    path: str | Path,
    class_names: Iterable[str] | None = None,
    *,
    fill: Sequence[float] | None = None,
    standardisation: Standardisation | None = None,
    layout: Layout = "steps-first",
    tell: Callable[[str], object] = _silent,
) -> Sequences:
    """Read one file ending in .npz or .ts, not split; labels may be absent.

    Args:
        path: the file.
        class_names: the classes to which labels are mapped by name, for example a model's; None =
            the file's own.
        fill: one value per feature for examples in which it is entirely missing, for example
            `Standardisation.mean`; None = that of the standardisation, or else the file's mean.
        standardisation: applied to the numbers of the file, before they are cast to float32; None =
            features stay as they are.
        layout: of three-dimensional inputs in an .npz file, as in `load`.
        tell: is called with a line on what was read.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: a file that cannot be used.
    """
    if fill is None and standardisation is not None:
        fill = standardisation.mean
    reading = _reading(path, layout)
    sequences = reading.sequences(class_names, fill, standardisation)
    tell(reading.describe())
    if standardisation is not None:
        warn_of_scales(sequences, standardisation, str(path))
    return sequences


def _reading(data: str | Path, layout: Layout) -> Reading:
    require_one_of("layout", layout, LAYOUTS)
    path = Path(data)
    reader = _READERS.get(path.suffix.lower())
    if layout != LAYOUTS[0]:
        if reader is not read_npz:
            raise UserValueError(
                f"{data}: the layout {layout} is one of .npz files; leave it out for others"
            )
        return read_npz(path, layout)
    if reader is not None:
        return reader(path)
    if path.suffix or path.name != str(data):
        raise UserValueError(
            f"{data}: a data file must end in .npz or .ts, got {path.suffix or 'no ending'!r}; "
            "convert it, for example with numpy.savez"
        )
    hint = nearest(str(data).lower(), DATA_NAMES, otherwise="choose one of them, or give a file")
    raise UserValueError(
        f"unknown data {str(data)!r}, the names are {', '.join(DATA_NAMES)} or a path ending in "
        f".npz or .ts; {hint}"
    )


def _from_files(
    train: Reading,
    test: Reading | None,
    seed: int,
    validation_fraction: float,
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
    labels = train.label_indices()
    held_out, kept = split_by_class(
        split_order(seed, len(labels)), labels, validation_fraction, str(train.path)
    )
    warn_of_missing_classes(train.class_names, labels, labels[held_out], str(train.path))
    mean = train.observed_mean(kept)
    standardisation = None
    if train.num_features is not None:
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
    return Dataset(name, every.take(kept), every.take(held_out), tested, standardisation)
