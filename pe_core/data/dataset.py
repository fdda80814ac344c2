"""`Dataset`: the training, validation and test parts of a task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pe_core.data.positions import UseOfPositions
from pe_core.data.sequences import Sequences
from pe_core.data.standardisation import Standardisation
from pe_core.errors import UserValueError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task's training, validation and test parts.

    Attributes:
        name: the task's name, or the name of the file.
        train, validation, test: the parts; validation is None where nothing is held out, test where
            the task has none. Lengths may differ, features and classes may not.
        standardisation: applied to all parts, fitted on `train`; None where none was applied.
        positions_unit: the unit of the positions; empty where steps are counted in all parts.
        use_of_positions: what those of the files are used for, one of `positions.USES`.
        feature_names: the names of the columns of a table; empty where features have none.

    Raises:
        ValueError: a part has no labels, the parts differ in features or classes, or `train` holds
            only one class.
    """

    name: str
    train: Sequences
    validation: Sequences | None
    test: Sequences | None = None
    standardisation: Standardisation | None = None
    feature_names: tuple[str, ...] = ()
    positions_unit: str = ""
    use_of_positions: UseOfPositions = "encode"

    def __post_init__(self) -> None:
        for part, sequences in self.parts.items():
            if sequences.labels is None:
                raise UserValueError(
                    f"the {part} part of {self.name} has no labels; add labels, or use the data "
                    "for prediction only"
                )
            if sequences.num_features != self.train.num_features:
                raise UserValueError(
                    f"the {part} part of {self.name} has {describe_steps(sequences.num_features)}, "
                    f"the train part {describe_steps(self.train.num_features)}; give both the same"
                )
            if (sequences.positions is None) != (self.train.positions is None):
                has, lacks = ("train", part) if sequences.positions is None else (part, "train")
                raise UserValueError(
                    f"the {has} part of {self.name} has positions, the {lacks} part has none; give "
                    "both, or ignore them"
                )
            if sequences.class_names != self.train.class_names:
                raise UserValueError(
                    f"the {part} part of {self.name} has classes "
                    f"{', '.join(sequences.class_names)}, the train part "
                    f"{', '.join(self.train.class_names)}; give both the same, in the same order"
                )
        present = np.unique(np.asarray(self.train.labels))
        if len(present) < 2:
            raise UserValueError(
                f"the train part of {self.name} holds one class only, "
                f"{self.class_names[present[0]]!r}; give it examples of two or more"
            )

    @property
    def parts(self) -> dict[str, Sequences]:
        """The parts that exist, by name, in the order train, validation, test."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: sequences for name, sequences in named.items() if sequences is not None}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the labels."""
        return self.train.class_names

    @property
    def num_features(self) -> int | None:
        """The number of features of a step; None for tokens."""
        return self.train.num_features

    @property
    def length(self) -> int:
        """The number of steps of the longest part: what a table of counted positions must hold."""
        return max(sequences.length for sequences in self.parts.values())

    @property
    def table_length(self) -> int:
        """The number of rows that a table of positions must have."""
        given = [part.positions.max() for part in self.parts.values() if part.positions is not None]
        return 1 + math.ceil(max(given)) if given else self.length

    @property
    def trained_length(self) -> int:
        """The number of rows of such a table that training reads."""
        positions = self.train.positions
        return (
            int(self.train.lengths.max()) if positions is None else 1 + math.ceil(positions.max())
        )

    @property
    def vocab_size(self) -> int | None:
        """The largest token of all parts plus 1; None for features."""
        if self.num_features is not None:
            return None
        return 1 + max(int(sequences.inputs.max()) for sequences in self.parts.values())


def describe_steps(num_features: int | None) -> str:
    """Say what the steps of a data set are, for messages."""
    return "tokens" if num_features is None else f"{num_features} features"
