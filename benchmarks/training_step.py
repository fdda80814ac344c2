"""A training step here against the same model from the frameworks' own layers, both in one process,
as a ratio.

Run it with `python -m benchmarks.training_step [--framework torch|flax] [--rounds 300]`.

The peers: `torch.nn.TransformerEncoder` with `torch.optim.AdamW` (as it comes, and with its fused
kernel), and `nnx.MultiHeadAttention` blocks with `optax.adamw` under `nnx.jit`. Both clip gradients
to norm 1. Steps of all contestants alternate, so that the machine's mood falls on all of them
alike; the figure is the median.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import torch
from flax import nnx
from jax import numpy as jnp

import pe_flax.engine
import pe_torch.engine
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, TrainConfig
from pe_core.data import Batch
from pe_core.model.initial import initial_arrays
from pe_core.training.engine import EngineType

LENGTH, FEATURES, WIDTH, HEADS, LAYERS, HIDDEN, CLASSES, BATCH = 10, 16, 64, 4, 2, 256, 2, 32
LEARNING_RATE = 1e-3
Step = Callable[[], object]


class TorchPeer(torch.nn.Module):
    """The classifier with `torch.nn.TransformerEncoder`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.input = torch.nn.Linear(FEATURES, WIDTH)
        self.table = torch.nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.dropout = torch.nn.Dropout(dropout)
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(
            layer, LAYERS, norm=torch.nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.encoder(self.dropout(self.input(x) + self.table)).mean(dim=1))


class FlaxBlock(nnx.Module):
    """A pre-norm block with `nnx.MultiHeadAttention`."""

    def __init__(self, dropout: float, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, dropout_rate=dropout, decode=False, rngs=rngs
        )
        self.up, self.down = (
            nnx.Linear(WIDTH, HIDDEN, rngs=rngs),
            nnx.Linear(HIDDEN, WIDTH, rngs=rngs),
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the steps after this block."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(
            self.down(self.dropout(nnx.gelu(self.up(self.norm2(x)), approximate=False)))
        )


class FlaxPeer(nnx.Module):
    """The classifier with `nnx.MultiHeadAttention`."""

    def __init__(self, dropout: float) -> None:
        rngs = nnx.Rngs(0)
        self.input = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (LENGTH, WIDTH)) * 0.02)
        self.blocks = nnx.List([FlaxBlock(dropout, rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        x = self.dropout(self.input(x) + self.table[...])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def batch() -> Batch:
    """Return noise with labels."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((BATCH, LENGTH, FEATURES), np.float32)
    return Batch(
        inputs,
        random.integers(0, CLASSES, BATCH).astype(np.int32),
        np.ones(BATCH, np.float32),
        None,
    )


def ours(framework: str, dropout: float) -> Step:
    """Return our step, which also counts correct answers and guards against NaN."""
    config = ModelConfig(
        inputs=Features(FEATURES), num_classes=CLASSES, d_model=WIDTH, num_heads=HEADS,
        num_layers=LAYERS, d_ff=HIDDEN,
        encodings=(LearnedTable(LENGTH),), dropout=dropout,
    )  # fmt: skip
    makers: dict[str, EngineType] = {"torch": pe_torch.engine.Engine, "flax": pe_flax.engine.Engine}
    engine = makers[framework](
        config, initial_arrays(config), TrainConfig(learning_rate=LEARNING_RATE), ComputeConfig(), 0
    )
    content, number = batch(), iter(range(1 << 30))
    return lambda: engine.read([engine.train_step(content, next(number))])


def torch_peer(dropout: float, *, fused: bool) -> Step:
    """Return a step of the torch peer."""
    model = TorchPeer(dropout).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=fused or None
    )
    content = batch()

    def step() -> float:
        x, labels = torch.from_numpy(content.inputs), torch.from_numpy(content.labels).long()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def flax_peer(dropout: float) -> Step:
    """Return a step of the Flax peer under `nnx.jit`."""
    model = FlaxPeer(dropout)
    model.train()
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.0)
    )
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    content = batch()

    def loss_of(model: FlaxPeer, x: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    @nnx.jit
    def compiled(
        model: FlaxPeer, optimizer: nnx.Optimizer[FlaxPeer], x: jax.Array, labels: jax.Array
    ) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, x, labels)
        optimizer.update(model, gradients)
        return loss

    return lambda: float(
        compiled(model, optimizer, jnp.asarray(content.inputs), jnp.asarray(content.labels))
    )


def medians(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 20):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 20:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in taken.items()}


def main() -> None:
    """Print a line for each framework, dropout and peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--framework", choices=("torch", "flax"))
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, jax "
        f"{jax.__version__}; batch {BATCH}, length {LENGTH}"
    )
    print("framework  dropout  ours ms  peer ms  ours/peer  peer")
    for framework in ("torch", "flax") if options.framework is None else (options.framework,):
        for dropout in (0.0, 0.1):
            steps = {"ours": ours(framework, dropout)}
            if framework == "torch":
                steps |= {"nn.TransformerEncoder, AdamW": torch_peer(dropout, fused=False)}
                steps |= {"nn.TransformerEncoder, fused AdamW": torch_peer(dropout, fused=True)}
            else:
                steps |= {"nnx.MultiHeadAttention, nnx.jit": flax_peer(dropout)}
            found = medians(steps, options.rounds)
            for name in list(steps)[1:]:
                print(
                    f"{framework:9s}  {dropout:7.1f}  {found['ours']:7.2f}  {found[name]:7.2f}  "
                    f"{found['ours'] / found[name]:9.2f}  {name}"
                )


if __name__ == "__main__":
    main()
