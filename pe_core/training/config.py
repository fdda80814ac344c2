"""What a training run is: a frozen record, checked when made, to and from JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from pe_core.errors import (
    UserValueError,
    make_plain,
    require_fields,
    require_integer,
    require_number,
    require_one_of,
)

# Added to the norm before the division, as `torch.nn.utils.clip_grad_norm_` does.
CLIP_EPSILON: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run is, apart from its model and its data.

    Args:
        epochs: passes over the training part.
        batch_size: sequences in a step; the last batch of an epoch is filled up with rows of weight
            zero.
        learning_rate: the peak of the schedule.
        schedule: "constant", or "warmup_cosine": a linear rise over warmup_steps, then half a
            cosine to zero at the last step.
        warmup_steps: steps of the rise.
        weight_decay: decoupled decay of the linear weights; tables, norms and biases get none.
        beta1: decay rate of Adam's first moment.
        beta2: decay rate of Adam's second moment.
        epsilon: added to the root of the second moment.
        max_gradient_norm: the global norm to which gradients are clipped; None clips nothing.
        optimizer: "exact" (the same steps in both frameworks) or "stock" (`torch.optim.AdamW`,
            `optax.adamw` as they come).
        seed: of the initial weights, the order of the data and the dropout.
    """

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_gradient_norm: float | None = 1.0
    optimizer: Literal["exact", "stock"] = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        require_integer("epochs", self.epochs, 1)
        require_integer("batch_size", self.batch_size, 1)
        require_number("learning_rate", self.learning_rate, 0.0)
        require_one_of("schedule", self.schedule, ("constant", "warmup_cosine"))
        require_integer("warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps and self.schedule == "constant":
            raise UserValueError(
                f"warmup_steps={self.warmup_steps} needs schedule='warmup_cosine', got "
                "schedule='constant'"
            )
        require_number("weight_decay", self.weight_decay, 0.0)
        require_number("beta1", self.beta1, 0.0, 0.99999)
        require_number("beta2", self.beta2, 0.0, 0.99999)
        require_number("epsilon", self.epsilon, 0.0)
        if self.max_gradient_norm is not None:
            require_number("max_gradient_norm", self.max_gradient_norm, 0.0, open_minimum=True)
        require_one_of("optimizer", self.optimizer, ("exact", "stock"))
        require_integer("seed", self.seed, 0, (1 << 63) - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the config as a dictionary for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, record: Any) -> TrainConfig:
        """Return the config of a dictionary; unknown fields and broken rules raise a ValueError."""
        return cls(**require_fields(cls, record))
