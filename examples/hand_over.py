"""A run that starts in PyTorch and ends in Flax, beside the same run in PyTorch alone.

The same from the shell: `pe train --framework torch --data dummy --stop-at 40 --out RUN`, then
`pe resume RUN --framework flax`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pe_flax.engine
import pe_torch.engine
from pe_core.data import dummy
from pe_core.training.loop import train
from pe_torch import Features, LearnedTable, ModelConfig, TrainConfig


def main() -> None:
    data, options = dummy(seed=0), TrainConfig(epochs=4)  # 32 steps an epoch
    config = ModelConfig(
        inputs=Features(16), num_classes=2, num_layers=1, encodings=(LearnedTable(data.length),)
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(pe_torch.engine.Engine, config, data, train_config=options, out=out, stop_at=40)
        handed_over = train(
            pe_flax.engine.Engine, config, data, train_config=options, out=out, resume=True
        )
    alone = train(pe_torch.engine.Engine, config, data, train_config=options)
    print("epoch  torch, then Flax  torch alone")
    for one, other in zip(handed_over.records, alone.records, strict=True):
        print(f"{one.epoch + 1:5d}  {one.train_loss:16.6f}  {other.train_loss:11.6f}")


if __name__ == "__main__":
    main()
