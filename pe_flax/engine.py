"""A model in training or ready to predict: its state on a device, to and from NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pe_core.data import Batch
from pe_core.encodings.additive import OverLength
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import check_arrays
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_batch
from pe_core.training.predictor import BATCH_SIZE, Predictor
from pe_flax.encoder import SequenceClassifier
from pe_flax.optimizer import AdamState
from pe_flax.program import State, Weights, program


class Engine:
    """A model in training, or ready to predict.

    Args:
        config: what the model is.
        arrays: its weights.
        train: what the run is.
        compute: how it is computed.
        total_steps: steps of the whole run, for the schedule.
        device: where it runs, "cpu" or "gpu"; JAX's default when None.
    """

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        train: TrainConfig,
        compute: ComputeConfig,
        total_steps: int,
        device: str | None = None,
    ) -> None:
        self.config = config
        self.compute = compute
        self.dtype = np.dtype(compute.array_dtype)
        self.device = jax.devices(device)[0] if device else jax.devices()[0]
        with self._mode():
            model = SequenceClassifier(config, seed=train.seed, compute=compute)
            self._program = program(model, train, compute, total_steps)
            # The key of the dropout, which a seed decides.
            rest = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param)))
            self._rest = jax.device_put(rest, self.device)
            live = self._put(arrays)
            self._state = State(
                live,
                jax.device_put(self._program.optimizer.init(live), self.device),
                jax.device_put(np.array(True), self.device),
            )

    @staticmethod
    def set_threads(count: int) -> None:
        """Compute with so many threads on the processor, where JAX has computed nothing yet: XLA
        makes its threads once in a process.
        """
        os.environ["NPROC"] = str(count)

    def train_step(self, batch: Batch, step: int) -> Array:
        """Take one step and return (loss, correct, weight, gradient norm) on the device, not waited
        for.

        A loss or norm that is not finite leaves the weights as they were, in this step and in all
        that follow.
        """
        content = self._checked(batch)
        with self._mode(content):
            self._state, metrics = self._program.train_step(
                self._state, self._rest, content, np.uint32(step)
            )
        return metrics

    def evaluate(self, batch: Batch) -> Array:
        """Return (loss, correct, weight, 0) of a batch on the device, not waited for."""
        content = self._checked(batch)
        with self._mode(content):
            return self._program.evaluate(self._state.weights, self._rest, content)

    def predict(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch, (batch, num_classes)."""
        content = self._checked(batch)
        with self._mode(content):
            return np.asarray(self._program.predict(self._state.weights, self._rest, content))

    def read(self, metrics: Sequence[Array]) -> np.ndarray:
        """Wait for metrics and return them as rows of float64."""
        return np.stack(jax.device_get(list(metrics))).astype(np.float64)

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the loss and the gradient of every weight, in evaluation mode, or with the dropout
        of a step.
        """
        content = self._checked(batch)
        with self._mode(content):
            (loss, _), found = self._program.gradients(
                self._state.weights,
                self._rest,
                content,
                None if step is None else np.uint32(step),
            )
            return float(loss), self._get(found)

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        """Return the named intermediates of a forward pass and the loss, in evaluation mode, or
        with the dropout of a step.
        """
        content = self._checked(batch)
        with self._mode(content):
            found = self._program.taps(
                self._state.weights,
                self._rest,
                content,
                None if step is None else np.uint32(step),
            )
            order = self._program.tap_order
            return {name: np.asarray(found[name].astype(self.dtype)) for name in order}

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights under their canonical names."""
        return self._get(self._state.weights)

    def state(self) -> dict[str, np.ndarray]:
        """Return weights, moments and the count of steps, `param/<name>`, `adam/m/<name>`,
        `adam/v/<name>`, `adam/count`.
        """
        moments = _adam_state(self._state.optimizer)
        trees = {"param": self._state.weights, "adam/m": moments.mu, "adam/v": moments.nu}
        arrays = {
            f"{kind}/{name}": array
            for kind, tree in trees.items()
            for name, array in self._get(tree).items()
        }
        return arrays | {"adam/count": np.array(moments.count, np.int64)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state."""

        def tree(kind: str) -> Weights:
            prefix = f"{kind}/"
            return self._put(
                {
                    name.removeprefix(prefix): array
                    for name, array in arrays.items()
                    if name.startswith(prefix)
                }
            )

        with self._mode():
            count = jnp.asarray(np.int32(arrays["adam/count"]))

            def replaced(state: Any) -> Any:
                if hasattr(state, "mu"):
                    return state._replace(count=count, mu=tree("adam/m"), nu=tree("adam/v"))
                return state._replace(count=count) if hasattr(state, "count") else state

            optimizer = jax.tree.map(
                replaced, self._state.optimizer, is_leaf=lambda item: hasattr(item, "count")
            )
            self._state = State(
                tree("param"), optimizer, jax.device_put(np.array(True), self.device)
            )

    def _checked(self, batch: Batch) -> dict[str, Any]:
        check_batch(self.config, batch)
        return _content(batch)

    def _mode(self, batch: Mapping[str, Any] | None = None) -> AbstractContextManager[Any]:
        positions = None if batch is None else batch["positions"]
        # The flag does not change float32, and positions such as seconds since 1970 need it.
        wide = positions is not None and positions.dtype.itemsize > 4
        wide = wide or self.compute.precision == "float64"
        return jax.enable_x64(True) if wide else nullcontext()

    def _put(self, arrays: Mapping[str, np.ndarray]) -> Weights:
        check_arrays(parameters(self.config), arrays, "the dictionary of arrays")
        live = {name: np.asarray(arrays[name], self.dtype) for name in self._program.variables}
        laid = {
            name: (live[name].T if transposed else live[name]).ravel()
            for name, (_, transposed) in self._program.variables.items()
        }
        return {
            group: jax.device_put(np.concatenate([laid[n] for n in names]), self.device)
            for group, names in self._program.groups.items()
        }

    def _get(self, weights: Weights) -> dict[str, np.ndarray]:
        host = self._program.split(jax.device_get(weights))
        laid = self._program.variables
        return {
            item.name: np.array(
                host[item.name].T if laid[item.name][1] else host[item.name], order="C"
            )
            for item in parameters(self.config)
        }


def load_predictor(
    directory: str | os.PathLike[str],
    *,
    compute: ComputeConfig | None = None,
    device: str | None = None,
    batch_size: int = BATCH_SIZE,
    over_length: OverLength | None = None,
) -> Predictor:
    """Return what classifies raw data, from a model directory or the folder of a finished run.

    `predict(x)` gives the names of classes, `predict_proba(x)` their probabilities; the
    standardisation that the folder holds is applied.

    Args:
        directory: of the model or the run.
        compute: how the model is computed.
        device: where it runs, "cpu" or "gpu"; JAX's default when None.
        batch_size: sequences computed at a time.
        over_length: what a learned table does with positions beyond it, "clip", "wrap" or
            "interpolate"; as the model says when None.

    Raises:
        FileNotFoundError: a file is missing, or the run has no model yet.
        ValueError: a file is damaged or does not fit its config.
    """
    return Predictor.load(
        Engine,
        directory,
        compute=compute,
        device=device,
        batch_size=batch_size,
        over_length=over_length,
    )


def _content(batch: Batch) -> dict[str, Any]:
    """Return the arrays of a checked batch; JAX takes no other byte order than the machine's."""
    inputs = batch.inputs
    if inputs.dtype.kind in "iu":
        # What padding holds may be beyond int32, and is not looked at.
        kept = inputs if batch.mask is None else np.where(batch.mask, inputs, 0)
        inputs = kept.astype(np.int32, copy=False)
    return {
        "inputs": inputs.astype(inputs.dtype.newbyteorder("="), copy=False),
        "labels": batch.labels.astype(np.int32, copy=False),
        "weights": batch.weights.astype(batch.weights.dtype.newbyteorder("="), copy=False),
        "mask": batch.mask,
        "positions": _narrowed(batch.positions),
    }


def _narrowed(positions: np.ndarray | None) -> np.ndarray | None:
    """Return positions in 32 bits where these hold them; others need JAX's 64 bits, see `_mode`."""
    if positions is None or positions.dtype.itemsize <= 4:
        return positions
    narrow = positions.astype(np.int32 if positions.dtype.kind == "i" else np.float32)
    return narrow if np.array_equal(narrow, positions) else positions


def _adam_state(optimizer: Any) -> AdamState:
    """The state of Adam within that of a chain, ours or optax's own."""
    found = [
        item
        for item in jax.tree.leaves(optimizer, is_leaf=lambda item: hasattr(item, "mu"))
        if hasattr(item, "mu")
    ]
    return found[0]
