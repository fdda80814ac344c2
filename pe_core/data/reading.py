"""`Reading`: a data file before labels become indices and missing features are filled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Integer, Num

from pe_core.data.dataset import describe_steps
from pe_core.data.plausibility import span, warn_of_inputs, warn_of_losses
from pe_core.data.positions import USES, UseOfPositions, checked_positions, converted
from pe_core.data.sequences import Sequences, checked_steps, require_finite
from pe_core.data.standardisation import Standardisation
from pe_core.errors import UserError, UserFileNotFoundError, UserValueError, require_one_of

LISTED_NAMES: Final = 20
LISTED_COUNTS: Final = 10


@dataclass(frozen=True, eq=False)
class Reading:
    """The contents of a data file, in the dtypes of the file.

    Attributes:
        path: the file, for messages.
        inputs: (count, length, features), or integers (count, length) for tokens.
        mask: bool (count, length), True = real step; None = every step is real.
        labels: the name of each example's class; None where the file has no labels.
        class_names: the names of the classes in the file's order; empty where it has no labels.
        missing: bool (count, features), True = the feature is entirely missing from the example and
            its inputs are 0; None = none is.
        lines: the line of each example in a text file, from 1.
        taken: how the file was understood, where it may be understood otherwise.
        feature_names: the names of the columns of a table; empty where features have none.
        positions: (count, length), where each step stands; None = steps are counted.
        positions_unit: the unit of the positions.
    """

    path: Path
    inputs: np.ndarray
    mask: np.ndarray | None
    labels: tuple[str, ...] | None
    class_names: tuple[str, ...]
    missing: Bool[np.ndarray, "count features"] | None = None
    lines: tuple[int, ...] | None = None
    taken: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    positions: np.ndarray | None = None
    positions_unit: str = "steps"

    @property
    def num_features(self) -> int | None:
        """The number of features of a step; None for tokens."""
        return self.inputs.shape[2] if self.inputs.ndim == 3 else None

    def describe(self) -> str:
        """Say in one line what was read: count, lengths, features or tokens, and classes."""
        count, longest = self.inputs.shape[:2]
        lengths = np.full(count, longest) if self.mask is None else self.mask.sum(axis=1)
        if self.num_features is None:
            real = self.inputs if self.mask is None else self.inputs[self.mask]
            width = f"a vocabulary of {int(real.max()) + 1:,} tokens"
        else:
            width = f"{self.num_features:,} feature{'s'[: self.num_features - 1]}"
        parts = [
            f"{count:,} sequence{'s'[: count - 1]} of length {span(lengths)}, {width}",
            "no labels" if self.labels is None else self._describe_classes(),
            *([] if self.positions is None else [f"positions in {self.positions_unit}"]),
            *self.taken,
        ]
        return f"{self.path.name}: {'; '.join(parts)}"

    def _describe_classes(self) -> str:
        sizes = np.bincount(self.label_indices(), minlength=len(self.class_names))
        if len(sizes) > LISTED_COUNTS:
            return f"{len(sizes):,} classes of {span(sizes)} each"
        counted = zip(self.class_names, sizes, strict=True)
        return f"classes {', '.join(f'{name} ({size:,})' for name, size in counted)}"

    def placed(self, use: UseOfPositions, unit: str | None = None) -> Reading:
        """Return the contents with their positions put to a use.

        Args:
            use: one of `USES`.
            unit: the unit that they must have, where others have positions too: steps are counted
                where there are none. None = their own unit, if there are any.

        Raises:
            ValueError: there are none where they are needed, or the unit is of another kind.
        """
        require_one_of("use of positions", use, USES)
        if self.positions is None:
            if unit == "steps":
                _, mask = checked_steps(self.inputs, self.mask)
                real = np.ones(self.inputs.shape[:2], np.bool_) if mask is None else mask
                counted = np.where(real, np.cumsum(real, axis=1) - 1, 0)
                return replace(self, positions=counted, positions_unit=unit).placed(use, unit)
            if unit is not None or use in ("feature", "both"):
                needed = "to make a feature of" if unit is None else f"in {unit}, as in training"
                raise UserValueError(f"{self.path}: has no positions {needed}; add them")
            return self
        if use == "ignore":
            told = f"positions in {self.positions_unit} not used"
            return replace(self, positions=None, taken=(*self.taken, told))
        unit = unit or self.positions_unit
        positions = converted(self.positions, self.positions_unit, unit, str(self.path))
        placed = replace(self, positions=positions, positions_unit=unit)
        if use == "encode":
            return placed
        if self.num_features is None:
            raise UserValueError(
                f"{self.path}: tokens have no features, so positions cannot be one; leave "
                f"positions={use} out"
            )
        with self.naming():
            _, mask = checked_steps(self.inputs, self.mask)
            column = checked_positions(positions, mask, self.inputs.shape[:2])[..., None]
        names = (*self.feature_names, f"positions in {unit}") if self.feature_names else ()
        missing = None if self.missing is None else np.pad(self.missing, ((0, 0), (0, 1)))
        return replace(
            placed,
            inputs=np.concatenate([self.inputs, column], axis=2),
            missing=missing,
            feature_names=names,
            positions=positions if use == "both" else None,
            taken=(*self.taken, f"positions in {unit} as a feature"),
        )

    def ordered(self, names: tuple[str, ...]) -> Reading:
        """Return the contents with features in the order of these names; as they are where either
        has none.

        Raises:
            ValueError: the features have other names.
        """
        if not names or not self.feature_names or names == self.feature_names:
            return self
        if set(names) != set(self.feature_names):
            raise UserValueError(
                f"{self.path}: the features are {', '.join(self.feature_names[:LISTED_NAMES])}, in "
                f"training they were {', '.join(names[:LISTED_NAMES])}; give the same columns"
            )
        columns = [self.feature_names.index(name) for name in names]
        missing = None if self.missing is None else self.missing[:, columns]
        inputs = self.inputs[..., columns]
        return replace(self, inputs=inputs, missing=missing, feature_names=names)

    def observed_mean(
        self, rows: Integer[np.ndarray, " rows"]
    ) -> Float64[np.ndarray, " features"] | None:
        """Return the mean of each feature over these examples, float64 (features,), without padding
        and missing features; None where the file misses none.
        """
        if self.missing is None:
            return None
        observed = np.repeat(~self.missing[rows][:, None, :], self.inputs.shape[1], axis=1)
        if self.mask is not None:
            observed &= self.mask[rows][..., None]
        total = np.where(observed, self.inputs[rows], 0.0).sum(axis=(0, 1), dtype=np.float64)
        return total / np.maximum(observed.sum(axis=(0, 1)), 1)

    def sequences(
        self,
        class_names: Iterable[str] | None = None,
        fill: Sequence[float] | Float[np.ndarray, " features"] | None = None,
        standardisation: Standardisation | None = None,
    ) -> Sequences:
        """Return the contents as `Sequences`, cast once: after a standardisation.

        Args:
            class_names: the classes to which labels are mapped by name; None = the file's own.
            fill: one value per feature for examples in which it is entirely missing; None = the
                file's mean.
            standardisation: applied to the numbers of the file; None = features stay as they are.

        Raises:
            ValueError, TypeError: a label is not among the classes, or `Sequences` refuses the
                contents; names the file.
        """
        names = self.class_names if class_names is None else tuple(class_names)
        labels = None if self.labels is None else self.label_indices(names)
        if standardisation is not None and self.num_features != len(standardisation.mean):
            raise UserValueError(
                f"{self.path} has {describe_steps(self.num_features)}, but the model takes "
                f"num_features={len(standardisation.mean)}; give data with as many"
            )
        with self.naming():
            inputs, mask = checked_steps(self.filled(fill), self.mask)
            warn_of_inputs(inputs, mask, str(self.path))
            if standardisation is not None:
                given, inputs = inputs, standardisation.apply(inputs, mask)
                warn_of_losses(given, inputs, mask, str(self.path))
            return Sequences(inputs, labels, mask, names, self.positions)

    def fit(
        self,
        rows: Integer[np.ndarray, " rows"],
        fill: Float[np.ndarray, " features"] | None,
    ) -> Standardisation:
        """Fit a standardisation on the numbers of the file, in these examples.

        Raises:
            ValueError, TypeError: a real step of the file is not finite, or an array is unsuitable;
                names the file.
        """
        with self.naming():
            inputs, mask = checked_steps(self.filled(fill), self.mask)
            require_finite(inputs, mask)
            return Standardisation.fit(inputs[rows], None if mask is None else mask[rows])

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the file in errors that the user can mend."""
        try:
            yield
        except UserError as error:
            raise type(error)(f"{self.path}: {error}") from None

    def filled(self, fill: Sequence[float] | np.ndarray | None) -> Num[np.ndarray, "..."]:
        """Return the inputs with one value per feature where it is entirely missing from an
        example; None = the file's mean.
        """
        if self.missing is None:
            return self.inputs
        values = (
            self.observed_mean(np.arange(len(self.inputs)))
            if fill is None
            else np.asarray(fill, np.float64)
        )
        if values is None or values.shape != (self.num_features,):
            raise UserValueError(
                f"fill must hold {self.num_features} numbers, got {fill!r}; give one per feature"
            )
        return np.where(self.missing[:, None, :], values, self.inputs)

    def label_indices(
        self, class_names: tuple[str, ...] | None = None
    ) -> Int32[np.ndarray, " count"]:
        """Return the number of each example's class, int32 (count,), among these classes; None =
        the file's own.

        Raises:
            ValueError: a label is not among the classes; names the file.
        """
        names = self.class_names if class_names is None else class_names
        labels = self.labels or ()
        index = {name: number for number, name in enumerate(names)}
        # Some published .ts files capitalise a class differently in the header and in the data.
        folded = {name.casefold(): number for number, name in enumerate(names)}
        if len(folded) < len(index):
            folded = {}
        indices = np.zeros(len(labels), np.int32)
        for row, label in enumerate(labels):
            found = index.get(label, folded.get(label.casefold()))
            if found is None:
                place = f"example {row}" if self.lines is None else f"line {self.lines[row]}"
                listed = ", ".join(names[:LISTED_NAMES]) + (
                    ", ..." if len(names) > LISTED_NAMES else ""
                )
                raise UserValueError(
                    f"{self.path}, {place}: label {label!r} is not among the classes {listed}; "
                    "correct it, or leave the example out"
                )
            indices[row] = found
        return indices


def read_text(path: Path) -> str:
    """Return a text file with newlines of one kind.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: no such file; check the path")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Comments in the archive hold names in older encodings. Latin-1 decodes every byte and
        # leaves numbers unchanged.
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def padded_reading(
    path: Path,
    examples: list[Num[np.ndarray, "features steps"]],
    labels: tuple[str, ...] | None,
    names: tuple[str, ...],
    lines: tuple[int, ...] | None,
    taken: tuple[str, ...] = (),
    *,
    padded: bool | None = None,
    positions: list[Num[np.ndarray, " steps"]] | None = None,
    positions_unit: str = "steps",
) -> Reading:
    """Return examples of different lengths with gaps, NaN, as a reading without either.

    Args:
        path: the file.
        examples: (features, steps) each.
        labels: the name of each example's class; None where there are none.
        names: of the classes.
        lines: the line of each example.
        taken: how the file was understood.
        padded: steps at the end of an example that no feature has observed are padding; None = they
            are where there are several examples, all equally long.
        positions: of the steps of each example.
        positions_unit: their unit.
    """
    if padded is None:
        padded = len(examples) > 1 and len({example.shape[1] for example in examples}) == 1
    if padded:
        examples = [_without_padding(example) for example in examples]
    lengths = np.array([example.shape[1] for example in examples])
    shape = (len(examples), int(lengths.max()), len(examples[0]))
    inputs = np.zeros(shape, examples[0].dtype)
    missing = np.zeros((len(examples), len(examples[0])), np.bool_)
    places = None if positions is None else np.zeros(shape[:2], np.result_type(*positions))
    for row, example in enumerate(examples):
        if places is not None and positions is not None:
            places[row, : example.shape[1]] = positions[row][: example.shape[1]]
        missing[row] = np.isnan(example).all(axis=1)
        at = np.arange(example.shape[1]) if positions is None else positions[row]
        inputs[row, : example.shape[1]] = _interpolated(example, at).T
    return Reading(
        path,
        inputs,
        right_padded_mask(lengths, inputs.shape[1]),
        labels,
        names,
        missing if missing.any() else None,
        lines,
        taken,
        positions=places,
        positions_unit=positions_unit,
    )


def _without_padding(
    example: Num[np.ndarray, "features steps"],
) -> Num[np.ndarray, "features observed"]:
    """Return an example without the steps at its end that no feature has observed; the whole of one
    without any observation.
    """
    observed = np.flatnonzero(~np.isnan(example).all(axis=0))
    return example[:, : observed[-1] + 1] if len(observed) else example


def _interpolated(
    example: Num[np.ndarray, "features steps"], positions: Num[np.ndarray, " places"]
) -> Num[np.ndarray, "features steps"]:
    """Interpolate an example's gaps between positions, or steps where these go back; a feature
    without any value becomes 0.
    """
    gaps: Bool[np.ndarray, "features steps"] = np.isnan(example)
    if not gaps.any():
        return example
    steps, filled = positions[: example.shape[1]], np.where(gaps, 0.0, example)
    if not (np.diff(steps) > 0).all():
        steps = np.arange(example.shape[1])
    for feature in np.flatnonzero(gaps.any(axis=1) & ~gaps.all(axis=1)):
        observed = ~gaps[feature]
        filled[feature] = np.interp(steps, steps[observed], example[feature, observed])
    return filled


def sorted_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort the distinct names: by value if all are finite numbers, otherwise as text."""
    names = sorted(set(labels))
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(names)
    return tuple(
        sorted(names, key=values.__getitem__) if all(map(math.isfinite, values.values())) else names
    )


def right_padded_mask(
    lengths: Integer[np.ndarray, " count"], length: int
) -> Bool[np.ndarray, "count length"] | None:
    """Return the mask of right-padded sequences, bool (count, length); None if none is padded."""
    if (lengths == length).all():
        return None
    return np.arange(length) < lengths[:, None]
