"""Work around a race in MKL's vector functions (pytorch issue 188792).

MKL chooses the kernel of each function at its first call. Where that call runs on several threads,
one of them may take a kernel of low accuracy, for that call alone. A first call with one number is
made by one thread.
"""

from __future__ import annotations

import torch


def choose_kernels() -> None:
    """Call each vector function that training uses once, in float32 and float64, on the CPU."""
    functions = (torch.exp, torch.sin, torch.cos, torch.sqrt)
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in functions:
            function(one)
