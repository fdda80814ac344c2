"""Work around a race in MKL's vector functions (pytorch issue 188792).

MKL chooses the kernel of each function at its first call. Where that call runs on several threads,
one of them may take a kernel of low accuracy: float64 exponentials wrong by 3e-9 in one process out
of thirty, and right in every later call. A first call with one number is made by one thread.
"""

from __future__ import annotations

import torch


def choose_kernels() -> None:
    """Call each vector function once, in float32 and float64, on the CPU."""
    functions = (torch.exp, torch.log, torch.sqrt, torch.sin, torch.cos, torch.tanh, torch.erf)
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in functions:
            function(one)
