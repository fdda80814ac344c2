"""Class names and probabilities from raw data: one predictor for the command, for the result of a
run and for what a folder holds, in every framework.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.data import Sequences, Standardisation, batches
from pe_core.data.sequences import checked_steps
from pe_core.errors import UserError, UserValueError, require_integer
from pe_core.model.config import ComputeConfig, Features
from pe_core.storage.model_directory import CONFIG_FILE, SavedModel, find_model, load_model
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_sequences
from pe_core.training.engine import ForwardEngine, ForwardEngineType
from pe_core.training.raw_inputs import cut_batches

BATCH_SIZE: Final = 64


class Predictor:
    """A trained model with all that its folder holds: the names of its classes, and the
    standardisation that its training data went through.

    Args:
        engine_type: the engine of a backend.
        saved: the model.
        compute: how it is computed.
        device: where, in the words of the backend; its default when None.
        batch_size: sequences computed at a time.
        source: where the model comes from, for messages.

    Attributes:
        config: what the model is.
        class_names: the name of each class, in the order of the columns of `predict_proba`; the
            numbers as texts where none were saved.
        standardisation: is applied to all that `logits`, `predict` and `predict_proba` are given;
            None for tokens and for models trained without one.
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
        source: str = "the model",
    ) -> None:
        require_integer("batch_size", batch_size, 1)
        self.config = saved.config
        self.batch_size = batch_size
        self.class_names = _class_names(saved, source)
        try:
            self.standardisation = _standardisation(saved)
            self.seed: int = saved.details.get("seed", 0)
            require_integer("seed", self.seed, 0, (1 << 63) - 1)
        except (TypeError, ValueError) as error:
            raise UserValueError(f"{source}: {error}") from None
        self._engine = engine_type(
            saved.config, saved.arrays, TrainConfig(), compute or ComputeConfig(), 0, device
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
            source=source,
        )

    def predict(self, x: Any, *, mask: Any = None) -> np.ndarray:
        """Return the name of the likeliest class of each sequence, texts (count,).

        Args:
            x: raw sequences, as `logits` takes them.
            mask: bool (count, length), True = real step.
        """
        return self.named(self.logits(x, mask=mask))

    def predict_proba(self, x: Any, *, mask: Any = None) -> np.ndarray:
        """Return the probability of each class, float32 (count, num_classes), in the order of
        `class_names`; float64 where the model is computed in it.

        Args:
            x: raw sequences, as `logits` takes them.
            mask: bool (count, length), True = real step.
        """
        return softmax(self.logits(x, mask=mask))

    def logits(self, x: Any, *, mask: Any = None) -> np.ndarray:
        """Return the logits, (count, num_classes).

        Features are standardised in float64 as the training data were, and cast once.

        Args:
            x: numbers (count, length, features), or (count, length) for a model of one feature;
                integers (count, length) for tokens; or a list of sequences, which may differ in
                length: (length, features), or (length,) as above.
            mask: bool (count, length), True = real step; a list says its own lengths.

        Raises:
            TypeError: no real numbers.
            ValueError: data that do not fit the model; the line says where.
        """
        found: list[np.ndarray] = []
        for inputs, real in cut_batches(x, mask, self.config.inputs, self.batch_size):
            try:
                found.append(self.logits_of(self._standardised(inputs, real)))
            except UserError as error:
                if not found:
                    raise
                first = self.batch_size * len(found)
                raise type(error)(f"counted from example {first} on: {error}") from None
        return np.concatenate(found)

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

    def _standardised(self, inputs: np.ndarray, mask: np.ndarray | None) -> Sequences:
        inputs, mask = checked_steps(inputs, mask)
        # In the dtype that was given: large values would lose their differences by a cast.
        if self.standardisation is not None:
            inputs = self.standardisation.apply(inputs, mask)
        return Sequences(inputs, mask=mask)


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


def _class_names(saved: SavedModel, source: str) -> tuple[str, ...]:
    count = saved.config.num_classes
    names = saved.details.get("class_names") or [str(number) for number in range(count)]
    known = {name for name in names if isinstance(name, str) and name}
    if not isinstance(names, list) or len(known) != count or len(names) != count:
        raise UserValueError(
            f"{source}: class_names must be {count} different names, got {str(names)[:80]}; "
            "correct the file"
        )
    return tuple(names)


def _standardisation(saved: SavedModel) -> Standardisation | None:
    record: Any = saved.details.get("standardisation")
    if record is None:
        return None
    found, inputs = Standardisation.from_json(record), saved.config.inputs
    if not isinstance(inputs, Features) or len(found.mean) != inputs.num_features:
        raise UserValueError(
            f"the standardisation has {len(found.mean)} features, the model takes {inputs}; save "
            "the model again"
        )
    return found
