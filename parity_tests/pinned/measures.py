"""What is pinned: a function per kind of number, for the script that wrote them and for the test.

Inputs are made by plain arithmetic, which is exact on every machine and needs nothing of the house.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity_tests.cases import BACKENDS, ENGINES
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, Sinusoidal, Tokens
from pe_core.data import Batch, Dataset, Sequences, batch_at, epoch_order, load, steps_per_epoch
from pe_core.model.dropout_places import DropoutPlace, dropout_place
from pe_core.model.initial import initial_arrays
from pe_core.model.random import DROPOUT, derive, dropout_keep
from pe_core.training.backends import versions
from pe_core.training.config import TrainConfig
from pe_core.training.loop import train
from pe_flax.dropout import Dropout as FlaxDropout
from pe_parity.reference import forward
from pe_torch.dropout import Dropout as TorchDropout

FOLDER = Path(__file__).parent
FLOAT64 = ComputeConfig(precision="float64")
# The second one fills both words of a key.
SEEDS = (0, (1 << 40) + 5)

TINY: dict[str, Any] = {"num_classes": 3, "d_model": 8, "num_heads": 2, "num_layers": 1, "d_ff": 12}
OF_FEATURES: dict[str, Any] = {"inputs": Features(5)} | TINY
OF_TOKENS: dict[str, Any] = {"inputs": Tokens(11)} | TINY
EVERY_LAYER = (Sinusoidal(layout="half", layers="all"), LearnedTable(9, layers="all"))
CONFIGS = {
    "plain": ModelConfig(**OF_FEATURES),
    "learned": ModelConfig(**OF_FEATURES, encodings=(LearnedTable(9),), pooling="cls"),
    "post": ModelConfig(
        **OF_FEATURES | {"num_layers": 2},
        encodings=(LearnedTable(9, layers="all"),),
        pooling="last",
        norm="post",
        activation="relu",
        attention_bias=True,
    ),
    "both": ModelConfig(
        **OF_FEATURES | {"num_layers": 2},
        encodings=EVERY_LAYER,
        pooling="attention",
        attention_bias=True,
    ),
    "tokens": ModelConfig(**OF_TOKENS, encodings=(Sinusoidal(),)),
    "tokens_max": ModelConfig(
        **OF_TOKENS,
        encodings=(Sinusoidal(base=100.0, layout="tensor2tensor"),),
        pooling="max",
    ),
    "tokens_post": ModelConfig(
        **OF_TOKENS,
        encodings=(Sinusoidal(layers="all"), LearnedTable(9)),
        pooling="cls",
        norm="post",
    ),
}

# (seed, epoch, count)
ORDERS = [(0, 0, 10), (0, 1, 10), (3, 0, 1000), (SEEDS[1], 2, 257), (7, (1 << 32) - 1, 64)]
MaskCase = tuple[int, int, DropoutPlace, int, float, tuple[int, ...]]
# (seed, step, place, layer, rate, shape); the last mask is larger than a block of torch's words.
DROPOUTS: list[MaskCase] = [
    (0, 0, "input", 0, 0.1, (2, 7, 8)),
    (0, 1, "input", 0, 0.1, (2, 7, 8)),
    (1, 0, "attention_weights", 1, 0.5, (2, 3, 5, 5)),
    (SEEDS[1], 300, "attention_output", 2, 0.3, (3, 9)),
    (5, 70000, "feed_forward_hidden", 0, 0.999, (40, 33)),
    (5, 255, "feed_forward_output", 2, 0.1, (600, 1001)),
]
# (seed, epoch)
BATCHES = [(0, 0), (4, 3)]
DATA = [("dummy", 0), ("dummy", 7), ("order", 0), ("order", 7)]


def label(*case: Any) -> str:
    """The name of a case in the file."""
    return " ".join(str(part).replace(" ", "") for part in case)


def sha256(array: np.ndarray) -> str:
    """The digest of dtype, shape and bytes."""
    array = np.ascontiguousarray(array)
    described = f"{array.dtype.str} {array.shape}\n".encode()
    return hashlib.sha256(described + array.tobytes()).hexdigest()


def sha256_each(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: sha256(array) for name, array in arrays.items()}


def sha256_all(arrays: Mapping[str, np.ndarray]) -> str:
    """One digest of several arrays under their names."""
    each = sorted(sha256_each(arrays).items())
    return hashlib.sha256(repr(each).encode()).hexdigest()


def rounded(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def to_text(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f8").tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8")


def environment() -> dict[str, Any]:
    """What the last bits of a float64 product depend on: libraries, and what the processor can."""
    names = ("numpy", "torch", "jax", "flax", "optax", "machine", "processor")
    found = {name: value for name, value in versions().items() if name in names}
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return found | {"processor_flags": hashlib.sha256(flags.encode()).hexdigest()}


def spread(*shape: int) -> np.ndarray:
    """Float32 numbers between -1 and 1, multiples of the golden ratio without their whole part."""
    parts = (np.arange(1, np.prod(shape) + 1) * 0.6180339887498949) % 1.0
    return (2.0 * parts - 1.0).astype(np.float32).reshape(shape)


def whole(numbers: np.ndarray, limit: int) -> np.ndarray:
    """Integers from 0 to below the limit."""
    return (np.abs(numbers) * np.float32(limit)).astype(np.int32)


def sequences(config: ModelConfig, count: int, *, masked: bool, start: int = 0) -> Sequences:
    """Examples of six steps; masked ones end after two to six."""
    if isinstance(config.inputs, Features):
        inputs = spread(start + count, 6, config.inputs.num_features)[start:]
    else:
        inputs = whole(spread(start + count, 6)[start:], config.inputs.vocab_size)
    mask = np.arange(6) < 2 + np.arange(count)[:, None] % 5 if masked else None
    labels = whole(spread(start + count)[start:], config.num_classes)
    return Sequences(inputs, labels, mask, tuple("abc"))


def batch(config: ModelConfig) -> Batch:
    """Four examples with padding, and a row of filler."""
    return batch_at(sequences(config, 4, masked=True), np.arange(4), 0, 5)


def weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """The initial weights moved off zeros, ones and small tables: none is without effect."""
    drawn = initial_arrays(config, 1)
    return {name: array + np.float32(0.25) * spread(*array.shape) for name, array in drawn.items()}


def batches(seed: int, epoch: int) -> list[dict[str, str]]:
    """The digests of what every batch of an epoch has; the last batch is short."""
    found = sequences(CONFIGS["plain"], 11, masked=True)
    order = epoch_order(seed, epoch, found.count)
    steps = range(steps_per_epoch(found.count, 4))
    each = [vars(batch_at(found, order, step, 4)) for step in steps]
    return [
        sha256_each({name: array for name, array in batch.items() if array is not None})
        for batch in each
    ]


def masks(case: MaskCase) -> dict[str, str]:
    """The digest of a dropout mask: of the shared random numbers, and in both frameworks."""
    seed, step, place, layer, rate, shape = case
    key = derive(seed, DROPOUT, step, dropout_place(place, layer))
    torch_masks = TorchDropout(rate, num_layers=3, seed=seed).train().begin(step)
    flax_masks = FlaxDropout(rate, num_layers=3, seed=seed).begin(step)
    assert torch_masks is not None
    assert flax_masks is not None
    kept = {
        "shared": dropout_keep(key, shape, rate),
        "torch": torch_masks.drop(torch.ones(shape), place, layer).numpy() != 0,
        "flax": np.asarray(flax_masks.drop(jnp.ones(shape), place, layer)) != 0,
    }
    return sha256_each(kept)


def data_parts(name: str, seed: int) -> dict[str, str]:
    """The digests of the arrays of a built-in data set."""
    arrays: dict[str, np.ndarray] = {}
    for part, found in load(name, seed=seed).parts.items():
        arrays |= {f"{part}/inputs": found.inputs, f"{part}/labels": np.asarray(found.labels)}
        assert found.mask is None
    return sha256_each(arrays)


def logits(column: str, config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The logits of the batch in float64, by the reference or by a framework."""
    given = batch(config)
    if column == "reference":
        return forward(config, arrays, given.inputs, mask=given.mask)
    return ENGINES[column](config, arrays, TrainConfig(), FLOAT64, 0).predict(given)


def loaded_logits(framework: str, folder: Path) -> np.ndarray:
    """The logits of a saved model in float64, by a framework."""
    backend = BACKENDS[framework]
    with backend.mode("float64"):
        model = backend.package.load(folder, compute=FLOAT64)
        given = batch(model.config)
        return backend.call(model, given.inputs, mask=given.mask)


RUNS = {
    "features": (CONFIGS["learned"], {"max_gradient_norm": 8.0, "seed": 2}),
    "tokens": (CONFIGS["tokens"], {"max_gradient_norm": 1.0, "seed": SEEDS[1]}),
}


def ending(framework: str, name: str) -> dict[str, np.ndarray]:
    """The weights after three epochs in float64, each of three batches, the last of them short."""
    config, changes = RUNS[name]
    config = ModelConfig(**vars(config) | {"dropout": 0.1})
    masked = name == "tokens"
    parts = (sequences(config, 22, masked=masked), sequences(config, 5, masked=masked, start=22))
    options: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.01,
        "schedule": "warmup_cosine",
        "warmup_steps": 2,
        "weight_decay": 0.1,
    }
    settings = TrainConfig(**options | changes)
    data = Dataset(name, *parts)
    return train(ENGINES[framework], config, data, train_config=settings, compute=FLOAT64).arrays
