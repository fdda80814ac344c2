"""Class names and probabilities from raw data: one predictor for the command, for the result of a
run and for what a folder holds, in every framework.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data import Layout, Sequences, batches, read
from pe_core.data.loading import Source, silent
from pe_core.data.positions import checked_positions
from pe_core.data.sequences import checked_steps
from pe_core.data.table import is_frame
from pe_core.encodings import LearnedTable
from pe_core.encodings.additive import OverLength
from pe_core.errors import UserError, UserValueError, require_integer
from pe_core.model.config import ComputeConfig, Features, Inputs, ModelConfig
from pe_core.model.inputs import has_table
from pe_core.storage.model_directory import CONFIG_FILE, SavedModel, find_model, load_model
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_sequences
from pe_core.training.details import (
    AS_FEATURE,
    saved_class_names,
    saved_feature_names,
    saved_positions,
    saved_standardisation,
)
from pe_core.training.engine import ForwardEngine, ForwardEngineType
from pe_core.training.raw_inputs import cut_batches

BATCH_SIZE: Final = 64


class Predictor:
    """A trained model with all that its folder holds: the names of its classes, the standardisation
    that its training data went through, and the use of their positions.

    Args:
        engine_type: the engine of a backend.
        saved: the model.
        compute: how it is computed.
        device: where, in the words of the backend; its default when None.
        batch_size: sequences computed at a time.
        over_length: what a learned table does with positions beyond it, "clip", "wrap" or
            "interpolate"; as the model says when None.
        source: where the model comes from, for messages.

    Attributes:
        config: what the model is.
        class_names: the name of each class, in the order of the columns of `predict_proba`; the
            numbers as texts where none were saved.
        standardisation: is applied to all that `logits`, `predict` and `predict_proba` are given;
            None for tokens and for models trained without one.
        positions: what those of the training data were used for, one of `pe_core.data.positions
            .USES`; "ignore" where they had none.
        positions_unit: the unit that positions must have; None where there are none.
        feature_names: the names of the columns of a table; empty where features have none.
        seed: of the training, which the split of built-in data depends on.

    Raises:
        ValueError: details that do not fit the model.
    """

    def __init__(
        self,
        engine_type: ForwardEngineType,
        saved: SavedModel,
        *,
        compute: ComputeConfig | None = None,
        device: str | None = None,
        batch_size: int = BATCH_SIZE,
        over_length: OverLength | None = None,
        source: str = "the model",
    ) -> None:
        require_integer("batch_size", batch_size, 1)
        self.config = saved.config if over_length is None else _with(saved.config, over_length)
        self.batch_size = batch_size
        self.class_names = saved_class_names(saved, source)
        try:
            self.standardisation = saved_standardisation(saved)
            self.seed: int = saved.details.get("seed", 0)
            require_integer("seed", self.seed, 0, (1 << 63) - 1)
            self.positions, self.positions_unit = saved_positions(saved)
            self.feature_names = saved_feature_names(saved)
        except (TypeError, ValueError) as error:
            raise UserValueError(f"{source}: {error}") from None
        self._engine = engine_type(
            self.config, saved.arrays, TrainConfig(), compute or ComputeConfig(), 0, device
        )

    @classmethod
    def load(
        cls,
        engine_type: ForwardEngineType,
        directory: str | os.PathLike[str],
        *,
        compute: ComputeConfig | None = None,
        device: str | None = None,
        batch_size: int = BATCH_SIZE,
        over_length: OverLength | None = None,
    ) -> Predictor:
        """Return the predictor of a model folder, or of the folder of a finished run.

        Raises:
            FileNotFoundError: a file is missing, or the run has no model yet.
            ValueError: a file is damaged or does not fit its config.
        """
        source = str(find_model(Path(directory)) / CONFIG_FILE)
        return cls(
            engine_type,
            load_model(directory),
            compute=compute,
            device=device,
            batch_size=batch_size,
            over_length=over_length,
            source=source,
        )

    def predict(self, x: Any, *, mask: Any = None, positions: Any = None) -> np.ndarray:
        """Return the name of the likeliest class of each sequence, texts (count,).

        Args:
            x: raw sequences, as `logits` takes them.
            mask: bool (count, length), True = real step.
            positions: of the steps, as `logits` takes them.
        """
        return self.named(self.logits(x, mask=mask, positions=positions))

    def predict_proba(self, x: Any, *, mask: Any = None, positions: Any = None) -> np.ndarray:
        """Return the probability of each class, float32 (count, num_classes), in the order of
        `class_names`; float64 where the model is computed in it.

        Args:
            x: raw sequences, as `logits` takes them.
            mask: bool (count, length), True = real step.
            positions: of the steps, as `logits` takes them.
        """
        return softmax(self.logits(x, mask=mask, positions=positions))

    def logits(self, x: Any, *, mask: Any = None, positions: Any = None) -> np.ndarray:
        """Return the logits, (count, num_classes).

        Features are standardised in float64 as the training data were, and cast once.

        Args:
            x: numbers (count, length, features), or (count, length) for a model of one feature;
                integers (count, length) for tokens; or a list of sequences, which may differ in
                length: (length, features), or (length,) as above; or a data frame of one step a
                row, with columns as `pe_core.data.load` takes them.
            mask: bool (count, length), True = real step; a list says its own lengths.
            positions: numbers (count, length) in `positions_unit`, or for a list a list of numbers
                (length,); where the model was trained with positions, and only there.

        Raises:
            TypeError: no real numbers.
            ValueError: data that do not fit the model; the line says where.
        """
        if is_frame(x):
            if mask is not None or positions is not None:
                raise UserValueError(
                    "a data frame has lengths and positions of its own; leave mask and positions "
                    "out"
                )
            return self.logits_of(self.read(x))
        self._require_positions(positions)
        taken, found = self._features_given(), list[np.ndarray]()
        for part in cut_batches(x, mask, positions, taken, self.batch_size):
            try:
                found.append(self.logits_of(self._standardised(*part)))
            except UserError as error:
                if not found:
                    raise
                first = self.batch_size * len(found)
                raise type(error)(f"counted from example {first} on: {error}") from None
        return np.concatenate(found)

    def read(
        self,
        data: Source,
        *,
        layout: Layout = "steps-first",
        columns: Mapping[str, str] | None = None,
        tell: Callable[[str], object] = silent,
    ) -> Sequences:
        """Return the sequences of a file or a data frame for `logits_of`: standardised, with their
        features in the order and their positions in the unit and use of training.

        Args:
            data: a file ending in .npz, .ts, .csv or .tsv, or a data frame.
            layout: of three-dimensional inputs in an .npz file.
            columns: of a table, as `pe_core.data.load` takes them.
            tell: is called with a line on what was read.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: data that cannot be used.
        """
        return read(
            data,
            class_names=self.class_names,
            standardisation=self.standardisation,
            layout=layout,
            columns=columns,
            positions=self.positions,
            positions_unit=self.positions_unit,
            feature_names=self.feature_names,
            tell=tell,
        )

    def logits_of(self, sequences: Sequences, what: str = "x") -> np.ndarray:
        """Return the logits of sequences that are standardised already, (count, num_classes).

        Args:
            sequences: as `pe_core.data.load` returns them, or `read` with the standardisation.
            what: their name, for messages.

        Raises:
            ValueError: they do not fit the model.
        """
        check_sequences(self.config, sequences, what)
        return predict(self._engine, sequences, min(self.batch_size, sequences.count))

    def named(self, logits: np.ndarray) -> np.ndarray:
        """Return the names of the likeliest classes, texts (count,); the first of equal ones."""
        return np.array(self.class_names)[logits.argmax(axis=1)]

    def _require_positions(self, positions: Any) -> None:
        if positions is None and self.positions != "ignore":
            raise UserValueError(
                f"the model was trained with positions in {self.positions_unit}, and x comes "
                "without; pass positions, a number for each step"
            )
        if positions is not None and self.positions == "ignore":
            raise UserValueError(
                "positions are given, but the model was trained on counted steps; leave them out"
            )

    def _features_given(self) -> Inputs:
        """Return what x has of the inputs: all but the feature that is made of the positions."""
        inputs = self.config.inputs
        if isinstance(inputs, Features) and self.positions in AS_FEATURE:
            return Features(inputs.num_features - 1)
        return inputs

    def _standardised(
        self, inputs: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> Sequences:
        inputs, mask = checked_steps(inputs, mask)
        if positions is not None and self.positions in AS_FEATURE:
            column = checked_positions(positions, mask, (inputs.shape[0], inputs.shape[1]))
            inputs = np.concatenate([inputs, column[..., None]], axis=2)
            positions = positions if self.positions == "both" else None
        # In the dtype that was given: large values would lose their differences by a cast.
        if self.standardisation is not None:
            inputs = self.standardisation.apply(inputs, mask)
        return Sequences(inputs, mask=mask, positions=positions)


def _with(config: ModelConfig, over_length: OverLength) -> ModelConfig:
    """Return the config with another policy for the positions beyond its learned tables."""
    if not has_table(config.encodings):
        found = ", ".join(item.name for item in config.encodings) or "none"
        raise UserValueError(
            f"over_length {over_length} is of a learned table, the model's encoding is {found}, "
            "which takes any length; leave it out"
        )
    return replace(
        config,
        encodings=tuple(
            replace(item, over_length=over_length) if isinstance(item, LearnedTable) else item
            for item in config.encodings
        ),
    )


def predict(engine: ForwardEngine, sequences: Sequences, batch_size: int) -> np.ndarray:
    """Return the logits of all sequences, (count, num_classes)."""
    return np.concatenate(
        [engine.predict(batch)[batch.weights > 0] for batch in batches(sequences, batch_size)]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, (count, num_classes), in their dtype."""
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(logits.dtype)
