"""Small models and batches that the tests share. All dimensions differ, so that no transposed or
mixed-up axis passes.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import pe_flax.engine
import pe_flax.layout
import pe_torch.engine
from pe_core import ComputeConfig, Features, LearnedTable, ModelConfig, Sinusoidal, Tokens
from pe_core.data import Batch
from pe_core.encodings import Rotary, Shaw, T5Bias
from pe_core.model.config import Precision
from pe_core.model.parameters import encoder_parameters
from pe_core.model.random import derive, normal, uniform
from pe_core.training.engine import EngineType
from pe_parity.probe_inputs import probe_arrays

ENGINES: dict[str, EngineType] = {"torch": pe_torch.engine.Engine, "flax": pe_flax.engine.Engine}

BATCH, LENGTH, FEATURES = 5, 7, 3


def small_config(**changes: Any) -> ModelConfig:
    """A model with two layers and three heads of width four."""
    options: dict[str, Any] = {
        "inputs": Features(FEATURES),
        "num_classes": 4,
        "d_model": 12,
        "num_heads": 3,
        "num_layers": 2,
        "d_ff": 20,
        "encodings": (LearnedTable(9),),
    }
    return ModelConfig(**(options | changes))


CONFIGS = {
    "default": small_config(),
    "none": small_config(encodings=(), pooling="last"),
    "sinusoidal": small_config(encodings=(Sinusoidal(),), pooling="max"),
    "post": small_config(
        norm="post",
        activation="relu",
        attention_bias=True,
        pooling="cls",
        encodings=(LearnedTable(9, layers="all"),),
    ),
    "both": small_config(
        encodings=(Sinusoidal(layout="half", layers="all"), LearnedTable(9)),
        pooling="attention",
        attention_bias=True,
    ),
    "tokens": small_config(
        inputs=Tokens(11), encodings=(Sinusoidal(layout="tensor2tensor"),), pooling="cls"
    ),
    "relative": small_config(
        d_model=24,
        encodings=(Rotary(fraction=0.5), T5Bias(num_buckets=8, max_distance=5)),
        pooling="attention",
    ),
    "shaw": small_config(encodings=(Shaw(max_distance=2),), pooling="cls"),
    "dropout": small_config(
        encodings=(LearnedTable(9), Shaw(max_distance=2, per_layer=False)), dropout=0.2
    ),
}


def perturbed_arrays(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Initial parameters moved off their special values (zeros, ones, tables near zero), so that
    each has an effect.
    """
    return probe_arrays(config, seed)


def small_batch(config: ModelConfig, *, masked: bool = False, seed: int = 0) -> Batch:
    """A batch for the config; masked has left, right, inner and no padding, and its last row is
    filler.
    """
    key = derive(seed, 98)
    if isinstance(config.inputs, Features):
        inputs = normal(key, (BATCH, LENGTH, config.inputs.num_features)).astype(np.float32)
    else:
        inputs = (uniform(key, (BATCH, LENGTH)) * config.inputs.vocab_size).astype(np.int32)
    labels = (np.arange(BATCH) % config.num_classes).astype(np.int32)
    batch = Batch(inputs, labels, np.ones(BATCH, np.float32), None)
    if not masked:
        return batch
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1, 4:] = False
    mask[2, :3] = False
    mask[3, 2:4] = False
    mask[4] = False
    weights = np.array([1, 1, 1, 1, 0], np.float32)
    return dataclasses.replace(batch, mask=mask, weights=weights)


def short_batch(config: ModelConfig, *, masked: bool = False) -> Batch:
    """One step less where the model puts one in front: the shapes within are then those of the
    others, and JAX compiles each once.
    """
    batch = small_batch(config, masked=masked)
    if config.pooling != "cls":
        return batch
    return dataclasses.replace(
        batch, inputs=batch.inputs[:, :-1], mask=None if batch.mask is None else batch.mask[:, :-1]
    )


def named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of a torch model by their canonical names."""
    variables = pe_torch.layout.canonical_variables(model)
    return {name: parameter for name, (parameter, _) in variables.items()}


class Backend:
    """One backend, for tests that treat both alike: models are the framework's own, arrays go in
    and come out as NumPy.
    """

    name: str
    package: Any

    def mode(self, precision: Precision = "float32") -> AbstractContextManager[Any]:
        """Return the context in which models of this precision are made and called."""
        return nullcontext()

    def array(self, value: np.ndarray) -> Any:
        """Return an array of the framework."""
        raise NotImplementedError

    def numpy(self, value: Any) -> np.ndarray:
        """Return a NumPy array."""
        raise NotImplementedError

    def classifier(
        self, config: ModelConfig, arrays: dict[str, np.ndarray], precision: Precision = "float32"
    ) -> Any:
        """Return a classifier in evaluation mode."""
        return self.package.from_arrays(config, arrays, compute=ComputeConfig(precision=precision))

    def encoder(
        self, config: ModelConfig, arrays: dict[str, np.ndarray], precision: Precision = "float32"
    ) -> Any:
        """Return an encoder in evaluation mode with those of the parameters that it has."""
        model = self.package.Encoder(config, compute=ComputeConfig(precision=precision))
        model.eval()
        self.package.layout.put_arrays(
            model, {item.name: arrays[item.name] for item in encoder_parameters(config)}
        )
        return model

    def call(
        self, model: Any, x: np.ndarray, *, taps: dict[str, Any] | None = None, **arguments: Any
    ) -> np.ndarray:
        """Return the output of a model, called step by step and not compiled."""
        extra = {} if taps is None else {"taps": taps}
        with torch.no_grad():
            output = self.numpy(model(self.array(x), **extra, **self.arguments(arguments)))
        if taps is not None:
            taps.update({name: self.numpy(value) for name, value in taps.items()})
        return output

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments with arrays of the framework."""
        return {
            name: self.array(value) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }

    def pullback(
        self, model: Any, cotangent: np.ndarray, x: np.ndarray, **arguments: Any
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the gradients of sum(cotangent * output): of x (empty for tokens), and of each
        parameter by its name.
        """
        raise NotImplementedError


class TorchBackend(Backend):
    name = "torch"
    package: Any = pe_torch

    def array(self, value: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.array(value))
        return tensor.long() if tensor.dtype == torch.int32 else tensor

    def numpy(self, value: Any) -> np.ndarray:
        value = value.detach()
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())

    def pullback(
        self, model: Any, cotangent: np.ndarray, x: np.ndarray, **arguments: Any
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        live = self.array(x)
        if live.dtype.is_floating_point:
            live.requires_grad_()
        model.zero_grad(set_to_none=True)
        output = model(live, **self.arguments(arguments))
        output.backward(self.array(cotangent).to(output.dtype))
        found = {
            name: np.zeros(weight.shape, np.float32)
            if weight.grad is None
            else self.numpy(weight.grad).copy()
            for name, weight in named(model).items()
        }
        return np.zeros(0) if live.grad is None else self.numpy(live.grad), found


class FlaxBackend(Backend):
    name = "flax"
    package: Any = pe_flax

    def mode(self, precision: Precision = "float32") -> AbstractContextManager[Any]:
        return jax.enable_x64(True) if precision == "float64" else nullcontext()

    def array(self, value: np.ndarray) -> Any:
        return jnp.asarray(value)

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        # Positions as users give them: JAX would cut those of 64 bits before any layer sees them.
        given = {name: arguments[name] for name in ("positions",) if name in arguments}
        return super().arguments(arguments) | given

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value)

    def pullback(
        self, model: Any, cotangent: np.ndarray, x: np.ndarray, **arguments: Any
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        live = self.array(x)
        graph, weights, *rest = nnx.split(model, nnx.Param, ...)
        of_features = jnp.issubdtype(live.dtype, jnp.floating)

        def output(weights: Any, x: Any) -> Any:
            return nnx.merge(graph, weights, *rest)(
                x if of_features else live, **self.arguments(arguments)
            )

        value, back = jax.vjp(output, weights, live if of_features else jnp.zeros(0))
        of_weights, of_x = back(jnp.asarray(cotangent, value.dtype))
        return np.asarray(of_x), pe_flax.layout.get_arrays(nnx.merge(graph, of_weights, *rest))


BACKENDS: dict[str, Backend] = {"torch": TorchBackend(), "flax": FlaxBackend()}
