"""What a model makes of sequences with labels, and the stop at a number that is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from pe_core.data import Batch, Sequences, batches
from pe_core.training.engine import Engine
from pe_core.training.predictor import predict


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is NaN or infinite; in training, the weights are those before that
    step.
    """


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a trained model makes of the test part.

    Attributes:
        class_names: the name of each class.
        loss: the mean cross-entropy.
        labels, predictions: of each example, int (count,), indices into `class_names`.
    """

    class_names: tuple[str, ...]
    loss: float
    labels: Int32[np.ndarray, " count"]
    predictions: Int64[np.ndarray, " count"]

    @property
    def accuracy(self) -> float:
        """The share of examples whose class was predicted."""
        return float((self.labels == self.predictions).mean())

    @property
    def confusion(self) -> Int64[np.ndarray, "classes classes"]:
        """How many examples of each class (row) were taken for each class (column)."""
        counts = np.zeros((len(self.class_names),) * 2, np.int64)
        np.add.at(counts, (self.labels, self.predictions), 1)
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON, with classes by name."""
        names = self.class_names
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "class_names": list(names),
            "confusion": self.confusion.tolist(),
            "labels": [names[index] for index in self.labels],
            "predictions": [names[index] for index in self.predictions],
        }


def evaluate(engine: Engine, sequences: Sequences, batch_size: int) -> tuple[float, float]:
    """Return the mean loss and the accuracy over sequences with labels."""
    rows = engine.read([engine.evaluate(batch) for batch in batches(sequences, batch_size)])
    found = means(rows, "evaluated")
    return found["evaluated_loss"], found["evaluated_accuracy"]


def evaluate_checked(
    engine: Engine, sequences: Sequences, batch_size: int, when: str
) -> tuple[float, float]:
    """Return the mean loss and the accuracy.

    Raises:
        NotFiniteError: the loss is not finite; the first bad tensor is named.
    """
    loss, accuracy = evaluate(engine, sequences, batch_size)
    _require_finite(engine, sequences, batch_size, when, loss)
    return loss, accuracy


def evaluate_in_full(engine: Engine, sequences: Sequences, batch_size: int) -> Evaluation:
    """Return what the model makes of the test part.

    Raises:
        NotFiniteError: the loss is not finite; the first bad tensor is named.
    """
    labels = np.asarray(sequences.labels)
    logits = predict(engine, sequences, batch_size).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    loss = float(losses.mean())
    _require_finite(engine, sequences, batch_size, "the test part", loss)
    return Evaluation(sequences.class_names, loss, labels, logits.argmax(axis=1))


def means(rows: np.ndarray, prefix: str) -> dict[str, Any]:
    """Return the mean loss and the accuracy of rows of metrics, as PREFIX_loss and
    PREFIX_accuracy.
    """
    loss, correct, weight = rows[:, 0], rows[:, 1], rows[:, 2]
    return {
        f"{prefix}_loss": float((loss * weight).sum() / weight.sum()),
        f"{prefix}_accuracy": float(correct.sum() / weight.sum()),
    }


def step_not_finite(
    engine: Engine, batch: Batch, step: int, epoch: int, row: np.ndarray
) -> NotFiniteError:
    """Return an error that says which step and which tensor; the engine still has the weights from
    before the step.
    """
    bad = _first_bad(engine, batch, step) or _first_bad_gradient(engine, batch, step)
    return NotFiniteError(
        f"step {step} (epoch {epoch}): loss {row[0]:g}, gradient norm {row[3]:g}; the first "
        f"tensor that is not finite is {bad}; "
        "the weights are those before this step: lower the learning rate, clip the gradients, or "
        "look at the inputs of this batch"
    )


def _require_finite(
    engine: Engine, sequences: Sequences, batch_size: int, when: str, loss: float
) -> None:
    if not np.isfinite(loss):
        found = (_first_bad(engine, batch, None) for batch in batches(sequences, batch_size))
        bad = next((name for name in found if name is not None), "the loss")
        raise NotFiniteError(
            f"{when}: loss {loss:g} in evaluation; the first tensor that is not finite is {bad}; "
            "lower the learning rate"
        )


def _first_bad(engine: Engine, batch: Batch, step: int | None) -> str | None:
    return next(
        (name for name, array in engine.taps(batch, step).items() if not np.isfinite(array).all()),
        None,
    )


def _first_bad_gradient(engine: Engine, batch: Batch, step: int) -> str:
    loss, gradients = engine.gradients(batch, step)
    if not np.isfinite(loss):
        return "the loss"
    bad = next((name for name, array in gradients.items() if not np.isfinite(array).all()), None)
    return "the norm of all gradients together" if bad is None else f"the gradient of {bad}"
