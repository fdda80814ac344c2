"""Faults of what must be the same bits: initial weights, order of the data, files, state."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

import pe_core.storage.model_directory
import pe_core.training.loop
import pe_flax
import pe_flax.engine
import pe_flax.layers
import pe_flax.layout
import pe_flax.weights
import pe_torch
import pe_torch.encoder
import pe_torch.engine
import pe_torch.weights
from parity_tests.cases import CONFIGS, ENGINES, perturbed_arrays
from parity_tests.faults.fault import Fault, around
from pe_core import ComputeConfig, Features, ModelConfig, TrainConfig
from pe_core.data import Batch, dummy
from pe_core.model.random import derive, normal
from pe_core.storage.model_directory import load_model
from pe_core.training.loop import train
from pe_core.training.run_directory import state_shapes
from pe_parity import Trace

PACKAGES: dict[str, Any] = {"torch": pe_torch, "flax": pe_flax}
CONFIG = CONFIGS["default"]
SEED = 3


def initial_weights(backend: str) -> Trace:
    """The initial parameters of a model."""
    package = PACKAGES[backend]
    return {
        f"initial/{name}": array
        for name, array in package.to_arrays(package.SequenceClassifier(CONFIG, seed=SEED)).items()
    }


def batches_of_a_run(backend: str) -> Trace:
    """The batches of two epochs, the last batch of each short."""
    found: Trace = {}
    options = TrainConfig(epochs=2, batch_size=300, seed=SEED)

    class Fed:
        """An engine that records its batches and learns nothing."""

        def train_step(self, batch: Batch, step: int) -> np.ndarray:
            found[f"batch/{step}/inputs"] = batch.inputs
            found[f"batch/{step}/weights"] = batch.weights
            return np.ones(4)

        def evaluate(self, batch: Batch) -> np.ndarray:
            return np.ones(4)

        def read(self, metrics: Any) -> np.ndarray:
            return np.stack(list(metrics))

        def weights(self) -> Trace:
            return {}

    fed: Any = Fed()
    train(
        lambda *arguments: fed,
        ModelConfig(inputs=Features(16), num_classes=2),
        dummy(0),
        train_config=options,
    )
    return found


def written_weights(backend: str) -> Trace:
    """The parameters in the file of a model."""
    package = PACKAGES[backend]
    model = package.from_arrays(CONFIG, perturbed_arrays(CONFIG))
    with tempfile.TemporaryDirectory() as folder:
        package.save(model, folder)
        return {f"file/{name}": array for name, array in load_model(folder).arrays.items()}


def restored_state(backend: str) -> Trace:
    """The state of an engine that took over another's."""
    engine = ENGINES[backend](CONFIG, perturbed_arrays(CONFIG), TrainConfig(), ComputeConfig(), 1)
    shapes = state_shapes(CONFIG)
    state = {
        name: normal(derive(SEED, number), shape).astype(np.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }
    engine.restore(state | {"adam/count": np.array(7, np.int64)})
    return {f"state/{name}": array for name, array in engine.state().items()}


def _unit_tables(draw: Any, items: Any, seed: int) -> Any:
    """Tables with the standard deviation of one that `nn.Embedding` has."""
    return {
        name: array / 0.02 if name.endswith("table") else array
        for name, array in draw(items, seed).items()
    }


def _one_third(draw: Any, items: Any, seed: int) -> Any:
    """The uniform law of `nn.Linear`, within one over the root of its inputs."""
    return {
        name: array * np.float32((sum(array.shape) / 6.0 / array.shape[1]) ** 0.5)
        if name == "head.weight"
        else array
        for name, array in draw(items, seed).items()
    }


def _first_epoch_again(order: Any, seed: int, epoch: int, count: int) -> Any:
    return order(seed, 0, count)


def _in_order(order: Any, seed: int, epoch: int, count: int) -> np.ndarray:
    return np.arange(count)


def _last_row_counts(batch_at: Any, *arguments: Any) -> Batch:
    batch = batch_at(*arguments)
    return Batch(batch.inputs, batch.labels, np.ones_like(batch.weights), batch.mask)


def _as_it_lies(arrays: Any) -> Any:
    """The memory of a transposed view under the shape of the view, as safetensors writes it."""
    return {
        name: np.ascontiguousarray(array.T).reshape(array.shape)
        if name.endswith("up.weight")
        else array
        for name, array in arrays.items()
    }


def _rounded(arrays: Any) -> Any:
    """Weights that lost the lower half of their bits on the way to the file."""
    return {
        name: (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for name, array in arrays.items()
    }


def _swapped_moments(restore: Any, engine: Any, arrays: Any) -> Any:
    other = {"m": "v", "v": "m"}
    kept = {
        name: array for name, array in arrays.items() if not name.startswith(("adam/m/", "adam/v/"))
    }
    kept |= {
        f"adam/{other[name[5]]}{name[6:]}": array
        for name, array in arrays.items()
        if name.startswith(("adam/m/", "adam/v/"))
    }
    return restore(engine, kept)


def _fresh_count(restore: Any, engine: Any, arrays: Any) -> Any:
    return restore(engine, dict(arrays) | {"adam/count": np.array(0, np.int64)})


def _on_result(change: Any) -> Any:
    return lambda function, *arguments: change(function(*arguments))


FIRST = "exact/file/input.weight"
# fmt: off
EXACT_FAULTS = (
    Fault("initial laws", "tables of unit variance", "torch", "exact/initial/encodings.0.table",
        around(pe_torch.encoder, "draw", _unit_tables), observe=initial_weights),
    Fault("initial laws", "uniform law of nn.Linear", "torch", "exact/initial/head.weight",
        around(pe_torch.encoder, "draw", _one_third), observe=initial_weights),
    Fault("initial laws", "seed ignored", "flax", "exact/initial/input.weight",
        around(pe_flax.layers, "draw", lambda draw, items, seed: draw(items, 0)),
        observe=initial_weights),
    Fault("data order", "not shuffled", "shared", "exact/batch/0/inputs",
        around(pe_core.training.loop, "epoch_order", _in_order), observe=batches_of_a_run),
    Fault("data order", "one order for all epochs", "shared", "exact/batch/4/inputs",
        around(pe_core.training.loop, "epoch_order", _first_epoch_again), observe=batches_of_a_run),
    Fault("loss weighting", "filler rows count", "shared", "exact/batch/3/weights",
        around(pe_core.training.loop, "batch_at", _last_row_counts), observe=batches_of_a_run),
    Fault("file layout", "memory as it lies", "torch", "exact/file/layers.0.feed_forward.up.weight",
        around(pe_torch.weights, "to_arrays", _on_result(_as_it_lies)), observe=written_weights),
    Fault("file layout", "half of the bits", "torch", FIRST,
        around(pe_torch.weights, "to_arrays", _on_result(_rounded)), observe=written_weights),
    Fault("file layout", "half of the bits", "flax", FIRST,
        around(pe_flax.weights, "to_arrays", _on_result(_rounded)), observe=written_weights),
    Fault("state", "moments swapped", "torch", "exact/state/adam/m/input.weight",
        around(pe_torch.engine.Engine, "restore", _swapped_moments), observe=restored_state),
    Fault("state", "moments swapped", "flax", "exact/state/adam/m/input.weight",
        around(pe_flax.engine.Engine, "restore", _swapped_moments), observe=restored_state),
    Fault("state", "count lost", "torch", "exact/state/adam/count",
        around(pe_torch.engine.Engine, "restore", _fresh_count), observe=restored_state),
    Fault("state", "count lost", "flax", "exact/state/adam/count",
        around(pe_flax.engine.Engine, "restore", _fresh_count), observe=restored_state),
)
# fmt: on
