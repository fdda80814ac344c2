"""A Flax NNX model of your own with a positional encoding of this package in it.

The task is which of two marked steps came first. Without positions a model cannot know.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import pe_flax
from pe_core import LearnedTable
from pe_core.data import order

EPOCHS = 10


class OwnModel(nnx.Module):
    """Flax's own attention; the positions come from a table of vectors, one per position."""

    def __init__(
        self, num_features: int, num_classes: int, max_length: int, *, rngs: nnx.Rngs
    ) -> None:
        self.input = nnx.Linear(num_features, 32, rngs=rngs)
        self.positions = pe_flax.LearnedTableEncoding(
            LearnedTable(max_length), d_model=32, rngs=rngs
        )
        self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.head = nnx.Linear(32, num_classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the logits (batch, num_classes) of x (batch, length, num_features)."""
        x = self.positions(self.input(x))
        x = self.norm(x + self.attention(x))
        return self.head(x.mean(axis=1))


@nnx.jit
def train_step(model: OwnModel, optimizer: nnx.Optimizer, x: Array, labels: Array) -> None:
    """Take one step of AdamW."""

    def loss(model: OwnModel) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def main() -> None:
    data = order(seed=0)
    x, labels = jnp.asarray(data.train.inputs), jnp.asarray(data.train.labels)
    model = OwnModel(x.shape[-1], len(data.class_names), data.length, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    for epoch in range(EPOCHS):
        for rows in jax.random.permutation(jax.random.key(epoch), len(x)).reshape(-1, 50):
            train_step(model, optimizer, x[rows], labels[rows])
    found = np.asarray(model(jnp.asarray(data.validation.inputs)).argmax(axis=-1))
    print(f"validation accuracy {(found == data.validation.labels).mean():.3f}")


if __name__ == "__main__":
    main()
