"""Adam with decoupled decay, global-norm clipping and a schedule in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from pe_core.errors import UserValueError
from pe_core.model.config import ModelConfig
from pe_core.model.parameters import parameters
from pe_core.training.config import TrainConfig
from pe_core.training.schedule import make_schedule
from pe_torch.layout import canonical_variables


class Adam(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) as torch computes it, with clipping and the learning rate
    of the step built in.

    It uses torch's fused kernel, which takes its bias corrections in float64.

    Args:
        params: parameters or groups; a group with weight_decay=0 gets no decay.
        schedule: learning rate as a function of the step, counted from 0.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        max_gradient_norm: the global norm to which gradients are clipped; None clips nothing.
        stock: leave the choice of the kernel to torch, as `torch.optim.AdamW` comes.

    Example:
        >>> import torch
        >>> from pe_torch import Adam
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Adam(model.parameters(), lambda step: 1e-3, max_gradient_norm=1.0)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> optimizer.step()

    Attributes:
        gradient_norm: the norm of the last step's gradients before clipping, on their device.
        finite: a boolean tensor that a caller may put here; a norm that is not finite turns it
            False, and from then on no step changes anything.
    """

    finite: Any  # a Tensor once it is put here; None until then

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        schedule: Callable[[int], float],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_gradient_norm: float | None = None,
        stock: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=schedule(0),
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=None if stock else True,
        )
        # A gradient scaler then divides the gradients before this step, and leaves the step out
        # where one is not finite; torch's kernel would do both after clipping and counting.
        self._step_supports_amp_scaling = False
        self.schedule = schedule
        self.max_gradient_norm = max_gradient_norm
        self.stock = stock
        self.gradient_norm = torch.zeros(())
        self.finite = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as torch does; they follow the schedule of the others."""
        # Kept in the groups, so that state_dict() carries it.
        count = self.param_groups[0]["count"] if self.param_groups else 0
        super().add_param_group({"count": count} | param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, as torch does.

        Raises:
            ValueError: it is the state of a stock optimizer, which does not count, or of one with
            other formulas.
        """
        require_plain(state_dict["param_groups"])
        if not all("count" in group for group in state_dict["param_groups"]):
            raise UserValueError(
                "the state has no count, so it is not of pe_torch.Adam; load it into "
                "torch.optim.AdamW and use import_adam"
            )
        super().load_state_dict(state_dict)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Clip, take one step at this step's learning rate, and keep the norm before clipping in
        `gradient_norm`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clipped = [
            parameter
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        with torch.no_grad():
            self.gradient_norm = torch.nn.utils.get_total_norm(
                [cast(Tensor, parameter.grad) for parameter in clipped]
            )
        if self.finite is not None:
            self.finite &= self.gradient_norm.isfinite()
            if not self.stock and self.finite.is_cuda:
                # The fused kernel changes nothing where this is one, and the host does not wait for
                # the device.
                self.found_inf = (~self.finite).float()
            elif not self.finite:
                return loss
        if self.max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                clipped, self.max_gradient_norm, self.gradient_norm
            )
        for group in self.param_groups:
            group["lr"] = self.schedule(group["count"])
            group["count"] += 1
        super().step()
        return loss


def require_plain(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise a ValueError where a group of an optimizer asks for another formula than that of
    AdamW.
    """
    for number, group in enumerate(groups):
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raise UserValueError(
                    f"group {number} of the optimizer has {option}=True, which is not supported; "
                    f"train it with {option}=False"
                )
        if group["weight_decay"] and not group.get("decoupled_weight_decay", True):
            raise UserValueError(
                f"group {number} of the optimizer has weight_decay={group['weight_decay']} in "
                "the gradient, which is not supported;"
                " use torch.optim.AdamW"
            )


def parameter_groups(
    model: nn.Module, config: ModelConfig, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the weights in two groups: those that decay, and tables, norms and biases, which do
    not; in one without decay.
    """
    if weight_decay == 0.0:
        return [{"params": list(model.parameters()), "weight_decay": 0.0}]
    decaying = {item.name for item in parameters(config) if item.decay}
    live = [(name, weight) for name, (weight, _) in canonical_variables(model).items()]
    return [
        {
            "params": [weight for name, weight in live if name in decaying],
            "weight_decay": weight_decay,
        },
        {"params": [weight for name, weight in live if name not in decaying], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, config: ModelConfig, train: TrainConfig, total_steps: int
) -> Adam:
    """Return the optimizer of a training run."""
    return Adam(
        parameter_groups(model, config, train.weight_decay),
        make_schedule(train, total_steps),
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        max_gradient_norm=train.max_gradient_norm,
        stock=train.optimizer == "stock",
    )
