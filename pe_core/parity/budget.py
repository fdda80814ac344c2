"""The one table of error budgets: for each quantity and precision the measured noise, and the bound that nothing may leave.

All are relative: the norm of the difference over the norm of the referee; weights after training, over the distance that they moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Quantity = Literal["tap", "loss", "gradient", "update", "weights", "adam"]


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
    ("tap", "float64"): Budget(noise=1.9e-15, fault=1.3e-5, bound=1e-13),
    ("tap", "float32"): Budget(noise=6e-7, fault=1.3e-5, bound=2e-6),
    ("loss", "float64"): Budget(noise=4.7e-16, fault=4.4e-2, bound=1e-13),
    ("loss", "float32"): Budget(noise=6.4e-7, fault=4.4e-2, bound=2e-6),
    ("gradient", "float64"): Budget(noise=5.6e-15, fault=5e-1, bound=1e-12),
    ("gradient", "float32"): Budget(noise=2.9e-6, fault=5e-1, bound=5e-6),
    ("update", "float64"): Budget(noise=2.2e-10, fault=1e-2, bound=1e-9),
    ("update", "float32"): Budget(noise=8.9e-5, fault=1e-2, bound=2e-3),
    ("weights", "float64"): Budget(noise=1.5e-14, fault=4.2e-4, bound=1e-10),
    ("weights", "float32"): Budget(noise=3.3e-5, fault=4.2e-4, bound=1e-4),
    # The optimizer alone, 1,000 steps on one stream of gradients: weights against those of torch.optim.AdamW in the same precision.
    ("adam", "float64"): Budget(noise=6.1e-16, fault=2.8e-9, bound=5e-15),
    ("adam", "float32"): Budget(noise=5.4e-7, fault=3.8e-6, bound=1e-6),
}


def quantity(name: str) -> Quantity:
    """Return which quantity a name in a trace belongs to."""
    head = name.split("/")[0]
    match head:
        case "loss" | "gradient" | "update" | "weights":
            return head
        case _:
            return "tap"


def budget(name: str, precision: str) -> Budget:
    """Return the budget of a name in a trace."""
    return BUDGETS[quantity(name), precision]
