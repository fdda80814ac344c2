"""A PyTorch model of your own with a positional encoding of this package in it.

The task is which of two marked steps came first. Without positions a model cannot know.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

import pe_torch
from pe_core import LearnedTable
from pe_core.data import order

EPOCHS = 10


class OwnModel(nn.Module):
    """Torch's own encoder layer; the positions come from a table of vectors, one per position."""

    def __init__(self, num_features: int, num_classes: int, max_length: int) -> None:
        super().__init__()
        self.input = nn.Linear(num_features, 32)
        self.positions = pe_torch.LearnedTableEncoding(LearnedTable(max_length), d_model=32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of x (batch, length, num_features)."""
        x = self.layer(self.positions(self.input(x)))
        return cast(Tensor, self.head(x.mean(dim=1)))


def main() -> None:
    torch.manual_seed(0)
    data = order(seed=0)
    x, labels = torch.tensor(data.train.inputs), torch.tensor(data.train.labels).long()
    model = OwnModel(x.shape[-1], len(data.class_names), data.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        found = model(torch.tensor(data.validation.inputs)).argmax(dim=-1).numpy()
    print(f"validation accuracy {(found == data.validation.labels).mean():.3f}")


if __name__ == "__main__":
    main()
