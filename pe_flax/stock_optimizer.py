"""The state of optax's own Adam in and out: weights, moments and every count of steps, by name and
never by index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pe_core.errors import UserValueError
from pe_core.model.parameters import parameters
from pe_core.storage.model_directory import check_arrays
from pe_core.training.state import COUNT, FIRST, SECOND, WEIGHTS, state_parts
from pe_flax.layout import canonical_variables, get_arrays, put_arrays
from pe_flax.optimizer import AdamState
from pe_flax.weights import load_arrays, require_classifier, to_arrays


def import_adam(model: nnx.Module, optimizer: nnx.Optimizer) -> dict[str, np.ndarray]:
    """Return the state of an engine that goes on where a stock optimizer is, as `Engine.restore`
    takes it.

    What the optimizer was asked for, such as its decay rates, stays behind: the engine's
    `TrainConfig` must say the same. float64 needs `jax_enable_x64`, as the model does.

    Args:
        model: the model in training.
        optimizer: an `nnx.Optimizer` over the weights of the model, with `optax.adam` or `adamw`
            alone or in a chain.

    Raises:
        TypeError: the model is no classifier.
        ValueError: the optimizer is another one, or its state is not that of one Adam over all
        weights.
    """
    model = require_classifier(model)
    moments, counters = _adam(model, optimizer)
    counts = {name: int(counter[...]) for name, counter in counters.items()}
    if len(set(counts.values())) > 1:
        low, high = (choose(counts, key=lambda name: counts[name]) for choose in (min, max))
        raise UserValueError(
            f"counts differ: {counts[low]} in {low}, {counts[high]} in {high}; set all to the "
            "number of steps that were taken"
        )
    arrays = {f"{WEIGHTS}/{name}": array for name, array in to_arrays(model).items()}
    for part, tree in moments.items():
        found = get_arrays(tree)
        arrays |= {f"{part}/{item.name}": found[item.name] for item in parameters(model.config)}
    return arrays | {COUNT: np.array(max(counts.values()), np.int64)}


def export_adam(
    arrays: Mapping[str, np.ndarray], model: nnx.Module, optimizer: nnx.Optimizer
) -> tuple[str, ...]:
    """Put the state of an engine into a model and a stock optimizer, in place, and return the names
    of the counters that were set.

    Args:
        arrays: as `Engine.state` returns it.
        model: gets the weights, in its dtype.
        optimizer: an `nnx.Optimizer` over the weights of the model, with `optax.adam` or `adamw`
            alone or in a chain.

    Raises:
        TypeError: the model is no classifier.
        ValueError: the state is not that of this model, or the optimizer is another one.
    """
    model = require_classifier(model)
    parts, count = state_parts(model.config, arrays)
    moments, counters = _adam(model, optimizer)
    load_arrays(model, parts[WEIGHTS])
    for part, tree in moments.items():
        put_arrays(tree, parts[part])
    for counter in counters.values():
        counter[...] = jnp.asarray(count, counter.dtype)
    return tuple(counters)


def _adam(model: Any, optimizer: nnx.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two moments, and every counter by where it stands, once the optimizer is known to be a
    plain Adam over exactly the weights.
    """
    states = dict(_states(optimizer.opt_state, "opt_state"))
    found = [where for where, state in states.items() if hasattr(state, "mu")]
    if len(found) != 1:
        raise UserValueError(
            f"the optimizer has {len(found)} states of Adam, in "
            f"{', '.join(found) or 'opt_state'}; make it with one"
        )
    (where,) = found
    moments = {FIRST: states[where].mu, SECOND: states[where].nu}
    weights = canonical_variables(model)
    for field, tree in zip(("mu", "nu"), moments.values(), strict=True):
        # optax.masked leaves a hole where a weight has no state.
        held = {
            name: pair
            for name, pair in canonical_variables(tree).items()
            if hasattr(pair[0], "shape")
        }
        shapes = {
            name: variable.shape[::-1] if transposed else variable.shape
            for name, (variable, transposed) in held.items()
        }
        check_arrays(parameters(model.config), shapes, f"{where}.{field}")
        for name, (variable, _) in held.items():
            needed = weights[name][0].dtype
            if variable.dtype != needed:
                raise UserValueError(
                    f"{where}.{field} of {name} is {variable.dtype}, its weight is {needed}; "
                    "leave mu_dtype at None"
                )
    return moments, {"step": optimizer.step} | {
        f"{where}.count": state.count for where, state in states.items()
    }


def _states(state: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every state that counts, by where it stands; one that holds more than Adam's moments and
    counts does not travel.
    """
    if isinstance(state, optax.ScaleByAdamState | AdamState) or getattr(state, "_fields", None) == (
        "count",
    ):
        yield where, state
    elif type(state) is tuple:
        for number, item in enumerate(state):
            yield from _states(item, f"{where}[{number}]")
    elif isinstance(state, optax.MaskedState):
        yield from _states(state.inner_state, f"{where}.inner_state")
    elif isinstance(state, optax.schedules.InjectStatefulHyperparamsState):
        yield where, state
        for name, item in state.hyperparams_states.items():
            yield from _states(item, f"{where}.hyperparams_states[{name!r}]")
        yield from _states(state.inner_state, f"{where}.inner_state")
    elif jax.tree.leaves(state):
        raise UserValueError(
            f"{where} is {type(state).__name__}, whose state does not travel; use optax.adam or "
            "adamw, alone or in a chain with"
            " clipping, decay and schedules"
        )
