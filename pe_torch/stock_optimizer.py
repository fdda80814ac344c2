"""The state of torch's own Adam in and out: weights, moments and the count of steps, by name and
never by index.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pe_core.errors import UserValueError
from pe_core.model.parameters import parameters
from pe_core.training.state import COUNT, WEIGHTS, state_parts
from pe_torch.engine import MOMENTS
from pe_torch.layout import canonical_name, canonical_variables, to_numpy
from pe_torch.optimizer import require_plain
from pe_torch.weights import load_arrays, require_classifier, to_arrays


def import_adam(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Return the state of an engine that goes on where a stock optimizer is, as `Engine.restore`
    takes it.

    What the optimizer was asked for, such as its decay rates, stays behind: the engine's
    `TrainConfig` must say the same.

    Args:
        model: the classifier in training, in a wrapper of torch or not.
        optimizer: a `torch.optim.Adam` or `AdamW` over the weights of the model.

    Raises:
        TypeError: the model is no classifier.
        ValueError: the optimizer is another one, or its state is not that of one Adam over all
        weights.
    """
    model = require_classifier(model)
    live = _weights(model, optimizer)
    keys = {"step", *MOMENTS.values()}
    states = {
        name: optimizer.state[weight]
        for name, weight in live.items()
        if keys <= optimizer.state.get(weight, {}).keys()
    }
    missing = [name for name in live if name not in states]
    if missing and any(optimizer.state.values()):
        raise UserValueError(
            f"the optimizer has no state for {', '.join(missing)}; give every weight a gradient "
            "before the first step"
        )
    steps = {name: float(state["step"]) for name, state in states.items()}
    if len(set(steps.values())) > 1:
        low, high = (choose(steps, key=lambda name: steps[name]) for choose in (min, max))
        raise UserValueError(
            f"steps differ: {steps[low]:g} of {low}, {steps[high]:g} of {high}; give every "
            "weight a gradient at every step"
        )
    arrays = {f"{WEIGHTS}/{name}": array for name, array in to_arrays(model).items()}
    for kind, key in MOMENTS.items():
        for item in parameters(model.config):
            # A fresh optimizer has no moments yet.
            moment = (
                _moment(item.name, live[item.name], key, states[item.name][key])
                if states
                else torch.zeros_like(live[item.name])
            )
            arrays[f"adam/{kind}/{item.name}"] = to_numpy(moment)
    return arrays | {COUNT: np.array(int(max(steps.values(), default=0)), np.int64)}


def export_adam(
    arrays: Mapping[str, np.ndarray], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[str, ...]:
    """Put the state of an engine into a model and a stock optimizer, in place, and return the names
    of the counters that were set.

    A learning rate scheduler counts by itself: make it with `last_epoch` at the count.

    Args:
        arrays: as `Engine.state` returns it.
        model: a classifier, in a wrapper of torch or not, that gets the weights in its dtype.
        optimizer: a `torch.optim.Adam` or `AdamW` over the weights of the model.

    Raises:
        TypeError: the model is no classifier.
        ValueError: the state is not that of this model, or the optimizer is another one.
    """
    model = require_classifier(model)
    parts, count = state_parts(model.config, arrays)
    live = _weights(model, optimizer)
    load_arrays(model, parts[WEIGHTS])
    counters = []
    for number, group in enumerate(optimizer.param_groups):
        for name in (
            name
            for name, weight in live.items()
            if any(weight is other for other in group["params"])
        ):
            weight = live[name]
            moments = {
                key: torch.from_numpy(np.array(parts[f"adam/{kind}"][name])).to(weight)
                for kind, key in MOMENTS.items()
            }
            # Where torch itself puts it: beside the weight for the kernels that read it there.
            device = weight.device if group["fused"] or group["capturable"] else None
            optimizer.state[weight] = {
                "step": torch.tensor(float(count), dtype=torch.float32, device=device)
            } | moments
            counters.append(f"state[{name}]['step']")
        if "count" in group:
            # Ours asks its schedule at this one.
            group["count"] = count
            counters.append(f"param_groups[{number}]['count']")
    return tuple(counters)


def _weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The weights by name, once the optimizer is known to be a plain Adam over exactly them."""
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise UserValueError(
            f"the optimizer is {type(optimizer).__name__}, its state is not Adam's; pass a "
            "torch.optim.Adam or AdamW"
        )
    require_plain(optimizer.param_groups)
    live = {name: weight for name, (weight, _) in canonical_variables(model).items()}
    names = {id(weight): name for name, weight in live.items()}
    held = set()
    for group in optimizer.param_groups:
        # Present when the optimizer was made from named parameters; a state that was loaded brings
        # the names that it was saved with.
        labels = group.get("param_names", [None] * len(group["params"]))
        for weight, label in zip(group["params"], labels, strict=True):
            if id(weight) not in names:
                raise UserValueError(
                    f"the optimizer holds a weight of shape {tuple(weight.shape)} that is not "
                    "the model's;"
                    " make it over model.named_parameters()"
                )
            saved = names[id(weight)] if label is None else canonical_name(label)
            if saved != names[id(weight)]:
                raise UserValueError(
                    f"the state of {names[id(weight)]} was saved for {saved}; torch loads by index:"
                    " make the optimizer over the weights in the order that was saved"
                )
            held.add(names[id(weight)])
    missing = [name for name in live if name not in held]
    if missing:
        raise UserValueError(
            f"the optimizer does not hold {', '.join(missing)}; make it over "
            "model.named_parameters()"
        )
    return live


def _moment(name: str, weight: nn.Parameter, key: str, moment: torch.Tensor) -> torch.Tensor:
    if moment.shape != weight.shape or moment.dtype != weight.dtype:
        # torch checks neither when it loads a state.
        found, needed = (
            f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            for tensor in (moment, weight)
        )
        raise UserValueError(
            f"{key} of {name} is {found}, its weight is {needed}; load the state of this model"
        )
    return moment
