"""A Flax NNX model of your own with the positional encodings of this package in it.

The task is which of two marked steps came first. Without positions a model cannot know: once they
come from a table, added to the steps, and once from rotated queries and keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import pe_flax
from pe_core.data import Dataset, order
from pe_flax import LearnedTable, Rotary

EPOCHS = 10
D_MODEL, HEADS = 32, 4
D_HEAD = D_MODEL // HEADS


class OwnModel(nnx.Module):
    """One layer of attention, with the encoding where it belongs."""

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        encoding: LearnedTable | Rotary,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.input = nnx.Linear(num_features, D_MODEL, rngs=rngs)
        self.table = (
            pe_flax.LearnedTableEncoding(encoding, d_model=D_MODEL, rngs=rngs)
            if isinstance(encoding, LearnedTable)
            else None
        )
        self.rotary = (
            pe_flax.RotaryEncoding(encoding, d_head=D_HEAD)
            if isinstance(encoding, Rotary)
            else None
        )
        self.qkv = nnx.LinearGeneral(D_MODEL, (3, HEADS, D_HEAD), rngs=rngs)
        self.norm = nnx.LayerNorm(D_MODEL, rngs=rngs)
        self.head = nnx.Linear(D_MODEL, num_classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the logits (batch, num_classes) of x (batch, length, num_features)."""
        x = self.input(x)
        if self.table is not None:
            x = self.table(x)
        # Three of (batch, length, heads, d_head).
        query, key, value = jnp.unstack(self.qkv(x), axis=2)
        if self.rotary is not None:
            query, key = self.rotary.query(query), self.rotary.key(key)
        mixed = jax.nn.dot_product_attention(query, key, value)
        x = self.norm(x + mixed.reshape(x.shape))
        return self.head(x.mean(axis=1))


@nnx.jit
def train_step(model: OwnModel, optimizer: nnx.Optimizer, x: Array, labels: Array) -> None:
    """Take one step of AdamW."""

    def loss(model: OwnModel) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def validation_accuracy(data: Dataset, encoding: LearnedTable | Rotary) -> float:
    """Train a model and return the share of validation sequences that it gets right."""
    x, labels = jnp.asarray(data.train.inputs), jnp.asarray(data.train.labels)
    model = OwnModel(x.shape[-1], len(data.class_names), encoding, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    for epoch in range(EPOCHS):
        for rows in jax.random.permutation(jax.random.key(epoch), len(x)).reshape(-1, 50):
            train_step(model, optimizer, x[rows], labels[rows])
    held_out = data.parts["validation"]
    found = np.asarray(model(jnp.asarray(held_out.inputs)).argmax(axis=-1))
    return float((found == held_out.labels).mean())


def main() -> None:
    data = order(seed=0)
    for encoding in (LearnedTable(data.length), Rotary()):
        print(f"{encoding.name}: validation accuracy {validation_accuracy(data, encoding):.3f}")


if __name__ == "__main__":
    main()
