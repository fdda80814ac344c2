"""The one table of error budgets: for each quantity and precision the measured noise, and the bound
that nothing may leave.

All are relative: the norm of the difference over the norm of the referee; weights after training,
over the distance that they moved. The noise is the largest of `pe parity --calibrate`, over random
models and seeds; the fault, the smallest effect of those that the tests plant and that float32,
float64 or bfloat16 can show. Updates and weights are compared without the elements whose gradient
is smaller than its own bound here (see `pe_parity.adam_noise`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Quantity = Literal[
    "tap", "loss", "gradient", "moment", "update", "weights", "adam", "gauge", "exact"
]
# A bound further above the noise than this lets faults through that it could catch.
LOOSE: Final = 10.0


@dataclass(frozen=True)
class Budget:
    """How far a quantity may lie from the referee.

    Args:
        noise: the largest distance measured between correct implementations.
        fault: the smallest distance that a planted fault made.
        bound: between the two.
    """

    noise: float
    fault: float
    bound: float


BUDGETS: Final[dict[tuple[Quantity, str], Budget]] = {
    ("tap", "float64"): Budget(noise=2.9e-15, fault=6e-8, bound=1e-14),
    ("tap", "float32"): Budget(noise=1.6e-6, fault=1.3e-5, bound=2e-6),
    ("tap", "bfloat16"): Budget(noise=3.6e-2, fault=0.18, bound=0.1),
    ("loss", "float64"): Budget(noise=1e-15, fault=1.1e-3, bound=5e-15),
    ("loss", "float32"): Budget(noise=4.4e-7, fault=1.1e-3, bound=2e-6),
    ("loss", "bfloat16"): Budget(noise=2e-2, fault=4.2e-2, bound=3e-2),
    ("gradient", "float64"): Budget(noise=1.1e-14, fault=0.35, bound=5e-14),
    ("gradient", "float32"): Budget(noise=6.2e-6, fault=0.35, bound=1e-5),
    ("gradient", "bfloat16"): Budget(noise=0.09, fault=1.9, bound=0.5),
    ("moment", "float64"): Budget(noise=8.9e-15, fault=1.5e-7, bound=5e-14),
    ("moment", "float32"): Budget(noise=4e-6, fault=1.9, bound=2e-5),
    ("moment", "bfloat16"): Budget(noise=0.11, fault=4.5, bound=0.6),
    ("update", "float64"): Budget(noise=1.4e-11, fault=7.6e-8, bound=2e-11),
    ("update", "float32"): Budget(noise=2.4e-4, fault=1e-2, bound=1e-3),
    ("update", "bfloat16"): Budget(noise=9.3e-5, fault=1e-2, bound=5e-4),
    ("weights", "float64"): Budget(noise=4.3e-12, fault=4.2e-4, bound=1e-11),
    ("weights", "float32"): Budget(noise=1.9e-4, fault=4.2e-4, bound=2.5e-4),
    ("weights", "bfloat16"): Budget(noise=0.41, fault=1.9, bound=0.8),
    # The optimizer alone, 1,000 steps on one stream of gradients: weights against those of
    # torch.optim.AdamW in the same precision.
    ("adam", "float64"): Budget(noise=6.1e-16, fault=2.8e-9, bound=5e-15),
    ("adam", "float32"): Budget(noise=5.4e-7, fault=3.8e-6, bound=1e-6),
}


def quantity(name: str) -> Quantity:
    """Return which quantity a name in a trace belongs to."""
    head = name.split("/")[0]
    match head:
        case "loss" | "gradient" | "moment" | "update" | "weights" | "gauge" | "exact":
            return head
        case _:
            return "tap"


def budget(name: str, precision: str) -> Budget:
    """Return the budget of a name in a trace; what is only a gauge has none to keep, and what is
    exact allows no difference.
    """
    match quantity(name):
        case "gauge":
            return Budget(0.0, math.inf, math.inf)
        case "exact":
            return Budget(0.0, 0.0, 0.0)
        case kind:
            return BUDGETS[kind, precision]
