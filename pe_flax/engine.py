"""One training step and one prediction, compiled; state out to and in from NumPy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from pe_core.data import Batch
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import check_arrays
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_batch
from pe_core.training.predictor import BATCH_SIZE, Predictor
from pe_flax.encoder import SequenceClassifier
from pe_flax.layout import canonical_variables
from pe_flax.optimizer import GROUPS, AdamState, global_norm, make_optimizer

Weights = dict[str, Array]


class _State(NamedTuple):
    """What a step changes: weights and moments lie end to end in one vector for each group of the
    optimizer.
    """

    weights: Weights
    optimizer: Any
    finite: Array


class Engine:
    """A model in training, or ready to predict.

    Steps are compiled over a few plain arrays with donated buffers: `nnx.jit` over the module would
    walk it at every call, and an optimizer over every weight apart would be a hundred small
    kernels.

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
            variables = canonical_variables(model)
            # In the order of the paths of canonical names, numbers as numbers.
            self._variables = {
                name: (variables[name][0].shape, variables[name][1])
                for name in sorted(variables, key=_path)
            }
            decays = {item.name: item.decay for item in parameters(config)}
            self._groups = {
                group: [n for n in self._variables if decays[n] == (GROUPS[group])]
                for group in GROUPS
            }
            model.train()
            parts: tuple[Any, ...] = nnx.split(model, nnx.Param, ...)
            model.eval()
            self._graphs = {True: parts[0], False: nnx.graphdef(model)}
            self._tree = jax.tree.structure(parts[1])
            self._leaves = list(variables)
            self._rest = parts[2]
            self._optimizer = make_optimizer(config, train, total_steps)
            live = self._put(arrays)
            self._state = _State(
                live,
                jax.device_put(self._optimizer.init(live), self.device),
                jax.device_put(np.array(True), self.device),
            )
        self._train_step = jax.jit(self._step, donate_argnums=0)
        self._evaluate = jax.jit(
            lambda weights, batch: self._loss(self._split(weights), batch, None)[1]
        )
        self._predict = jax.jit(
            lambda weights, batch: self._logits(self._split(weights), batch, None)
        )
        self._taps = jax.jit(self._tapped)
        self._gradients = jax.jit(self._gradient)

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
            self._state, metrics = self._train_step(self._state, content, np.uint32(step))
        return metrics

    def evaluate(self, batch: Batch) -> Array:
        """Return (loss, correct, weight, 0) of a batch on the device, not waited for."""
        content = self._checked(batch)
        with self._mode(content):
            return self._evaluate(self._state.weights, content)

    def predict(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch, (batch, num_classes)."""
        content = self._checked(batch)
        with self._mode(content):
            return np.asarray(self._predict(self._state.weights, content))

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
            (loss, _), found = self._gradients(
                self._state.weights,
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
            found = self._taps(
                self._state.weights,
                content,
                None if step is None else np.uint32(step),
            )
            return {name: np.asarray(found[name].astype(self.dtype)) for name in self._tap_order}

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
            self._state = _State(
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
        live = {name: np.asarray(arrays[name], self.dtype) for name in self._variables}
        laid = {
            name: (live[name].T if transposed else live[name]).ravel()
            for name, (_, transposed) in self._variables.items()
        }
        return {
            group: jax.device_put(np.concatenate([laid[n] for n in names]), self.device)
            for group, names in self._groups.items()
        }

    def _get(self, weights: Weights) -> dict[str, np.ndarray]:
        host = self._split(jax.device_get(weights))
        names = [item.name for item in parameters(self.config)]
        return {
            name: np.array(host[name].T if self._variables[name][1] else host[name], order="C")
            for name in names
        }

    def _split(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The weights one by one, in the module's layout; on the device or as NumPy."""
        found = {}
        for group, names in self._groups.items():
            start = 0
            for name in names:
                shape = self._variables[name][0]
                end = start + math.prod(shape)
                found[name] = weights[group][start:end].reshape(shape)
                start = end
        return found

    def _join(self, found: dict[str, Array]) -> Weights:
        return {
            group: jnp.concatenate([found[name].ravel() for name in names])
            for group, names in self._groups.items()
        }

    def _model(self, weights: dict[str, Array], training: bool) -> SequenceClassifier:
        tree = jax.tree.unflatten(self._tree, [weights[name] for name in self._leaves])
        return nnx.merge(self._graphs[training], tree, self._rest)

    def _logits(
        self,
        weights: Weights,
        batch: dict[str, Any],
        step: Any,
        taps: dict[str, Array] | None = None,
    ) -> Array:
        # On a GPU, JAX takes float32 products in TF32 unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return self._model(weights, step is not None)(
                batch["inputs"],
                mask=batch["mask"],
                positions=batch["positions"],
                taps=taps,
                dropout_step=step,
            )

    def _tapped(self, weights: Weights, batch: dict[str, Any], step: Any) -> dict[str, Array]:
        taps: dict[str, Array] = {}
        taps["loss"] = self._loss(self._split(weights), batch, step, taps)[0]
        # A compiled function returns dictionaries sorted by key.
        self._tap_order = list(taps)
        return taps

    def _loss(
        self,
        weights: Weights,
        batch: dict[str, Any],
        step: Any,
        taps: dict[str, Array] | None = None,
    ) -> tuple[Array, Array]:
        logits = self._logits(weights, batch, step, taps)
        labels, share = batch["labels"], batch["weights"].astype(logits.dtype)
        total = share.sum()
        loss = (
            optax.softmax_cross_entropy_with_integer_labels(logits, labels) * share
        ).sum() / total
        correct = (
            (logits.argmax(axis=-1).astype(labels.dtype) == labels).astype(share.dtype) * share
        ).sum()
        return loss, jnp.stack([loss, correct, total, jnp.zeros_like(loss)])

    def _gradient(
        self, weights: Weights, batch: dict[str, Any], step: Any
    ) -> tuple[tuple[Array, Array], Weights]:
        found, gradients = jax.value_and_grad(self._loss, has_aux=True)(
            self._split(weights), batch, step
        )
        return found, self._join(gradients)

    def _step(self, state: _State, batch: dict[str, Any], step: Array) -> tuple[_State, Array]:
        (loss, metrics), gradients = self._gradient(state.weights, batch, step)
        norm = global_norm(gradients)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        kept = jax.tree.map(
            partial(jnp.where, finite),
            _State(weights, optimizer, finite),
            _State(state.weights, state.optimizer, finite),
        )
        return kept, metrics.at[3].set(norm)


def load_predictor(
    directory: str | os.PathLike[str],
    *,
    compute: ComputeConfig | None = None,
    device: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Predictor:
    """Return what classifies raw data, from a model directory or the folder of a finished run.

    `predict(x)` gives the names of classes, `predict_proba(x)` their probabilities; the
    standardisation that the folder holds is applied.

    Args:
        directory: of the model or the run.
        compute: how the model is computed.
        device: where it runs, "cpu" or "gpu"; JAX's default when None.
        batch_size: sequences computed at a time.

    Raises:
        FileNotFoundError: a file is missing, or the run has no model yet.
        ValueError: a file is damaged or does not fit its config.
    """
    return Predictor.load(Engine, directory, compute=compute, device=device, batch_size=batch_size)


def _path(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]


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
