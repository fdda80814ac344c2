"""Every vector function of MKL that training calls is first called by one thread.

The race itself shows in few processes, so the calls are watched, in a process of their own: at
import, and in a training step.
"""

from __future__ import annotations

import subprocess
import sys

WATCH = """
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What IMPLEMENT_VML_MKL in torch's ATen/cpu/vml.h lists; trunc is exact in every kernel.
VECTOR = set("acos asin atan cos erf erfc erfinv exp log log10 log2 sin sqrt tan tanh".split())


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.alone, self.called = set(), set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__.removeprefix("_foreach_").strip("_")
        if name in VECTOR:
            tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            for tensor in tensors:
                (self.alone if tensor.numel() == 1 else self.called).add((name, tensor.dtype))
        return operation(*args, **kwargs or {})


with Watch() as imports:
    import pe_torch
    import pe_torch.engine

assert not imports.called, imports.called
for precision in ("float32", "float64"):
    config = pe_torch.ModelConfig(
        inputs=pe_torch.Features(3), num_classes=2, d_model=8, num_heads=2, num_layers=1,
        pooling="attention", dropout=0.25,
        encodings=(pe_torch.Sinusoidal(), pe_torch.Rotary(), pe_torch.T5Bias(), pe_torch.Shaw()),
    )
    model = pe_torch.SequenceClassifier(
        config, seed=0, compute=pe_torch.ComputeConfig(precision=precision)
    )
    optimizer = pe_torch.Adam(model.parameters(), lambda step: 1e-3)
    stock = torch.optim.AdamW(model.parameters())
    with Watch() as training:
        model(torch.ones(4, 5, 3)).square().sum().backward()
        optimizer.step()
        stock.step()
    names = {name for name, _ in training.called}
    assert names == {"exp", "sin", "cos", "sqrt"}, names
    assert training.called <= imports.alone, training.called - imports.alone
print("watched")
"""


def test_training_calls_what_was_called_at_import() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WATCH], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout == "watched\n", found.stderr
