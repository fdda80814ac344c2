"""A PyTorch model of your own with the positional encodings of this package in it.

The task is which of two marked steps came first. Without positions a model cannot know: once they
come from a table, added to the steps, and once from rotated queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import pe_torch
from pe_core.data import Dataset, order
from pe_torch import LearnedTable, Rotary

EPOCHS = 10
D_MODEL, HEADS = 32, 4
D_HEAD = D_MODEL // HEADS


class OwnModel(nn.Module):
    """One layer of attention, with the encoding where it belongs."""

    def __init__(
        self, num_features: int, num_classes: int, encoding: LearnedTable | Rotary
    ) -> None:
        super().__init__()
        self.input = nn.Linear(num_features, D_MODEL)
        self.table = (
            pe_torch.LearnedTableEncoding(encoding, d_model=D_MODEL)
            if isinstance(encoding, LearnedTable)
            else None
        )
        self.rotary = (
            pe_torch.RotaryEncoding(encoding, d_head=D_HEAD)
            if isinstance(encoding, Rotary)
            else None
        )
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL)
        self.norm = nn.LayerNorm(D_MODEL)
        self.head = nn.Linear(D_MODEL, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of x (batch, length, num_features)."""
        x = self.input(x)
        if self.table is not None:
            x = self.table(x)
        # Three of (batch, heads, length, d_head).
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, D_HEAD)).permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query, key = self.rotary.query(query), self.rotary.key(key)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = self.norm(x + mixed.transpose(1, 2).flatten(-2))
        return self.head(x.mean(dim=1))


def validation_accuracy(data: Dataset, encoding: LearnedTable | Rotary) -> float:
    """Train a model and return the share of validation sequences that it gets right."""
    torch.manual_seed(0)
    x, labels = torch.tensor(data.train.inputs), torch.tensor(data.train.labels).long()
    model = OwnModel(x.shape[-1], len(data.class_names), encoding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()
    held_out = data.parts["validation"]
    with torch.no_grad():
        found = model(torch.tensor(held_out.inputs)).argmax(dim=-1).numpy()
    return float((found == held_out.labels).mean())


def main() -> None:
    data = order(seed=0)
    for encoding in (LearnedTable(data.length), Rotary()):
        print(f"{encoding.name}: validation accuracy {validation_accuracy(data, encoding):.3f}")


if __name__ == "__main__":
    main()
