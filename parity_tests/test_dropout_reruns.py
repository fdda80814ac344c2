"""A forward that is run again is the same forward, and nothing counts the forwards: keys come from
the framework's generator, or from the step that the caller gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pe_flax
import pe_torch
from parity_tests.cases import small_batch, small_config
from parity_tests.small_models import assert_near

CONFIG = small_config(dropout=0.4, num_layers=1, encodings=(pe_torch.Rotary(), pe_torch.Shaw(2)))
X = small_batch(CONFIG).inputs


def torch_model() -> pe_torch.SequenceClassifier:
    return pe_torch.SequenceClassifier(CONFIG, seed=0).train()


def flax_model() -> pe_flax.SequenceClassifier:
    model = pe_flax.SequenceClassifier(CONFIG, seed=0)
    model.train()
    return model


# --- Run again ---


def torch_gradients(
    model: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    forward(torch.from_numpy(X).requires_grad_()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_model_is_the_model(reentrant: bool) -> None:
    model = torch_model()
    plain = torch_gradients(model, model)
    again = torch_gradients(model, lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert len(plain) == len(again) > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_a_checkpointed_sequence_is_the_sequence() -> None:
    layers = torch.nn.Sequential(
        *(pe_torch.SelfAttention(16, 2, encodings=CONFIG.encodings, dropout=0.4) for _ in range(3))
    )
    widen = torch.nn.Linear(X.shape[-1], 16)
    plain = torch_gradients(layers, lambda x: layers(widen(x)))
    again = torch_gradients(
        layers, lambda x: checkpoint_sequential(layers, 2, widen(x), use_reentrant=False)
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def flax_gradients(forward: Callable[[Any, jax.Array], jax.Array]) -> list[jax.Array]:
    model = flax_model()
    nnx.reseed(model, dropout=1)
    loss = lambda model, x: (forward(model, x) ** 2).sum()  # noqa: E731
    return jax.tree.leaves(nnx.jit(nnx.grad(loss))(model, jnp.asarray(X)))


def functional(model: Any, x: jax.Array) -> jax.Array:
    """Call a model through `jax.checkpoint`, which knows no modules."""
    graph, state = nnx.split(model)
    return jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))(state, x)


@pytest.mark.parametrize("remat", [nnx.remat(pe_flax.SequenceClassifier.__call__), functional])
def test_a_rematerialized_model_is_the_model(remat: Callable[..., jax.Array]) -> None:
    plain = flax_gradients(lambda model, x: model(x))
    for one, other in zip(plain, flax_gradients(remat), strict=True):
        assert_near(other, one, "gradient")


# --- Without a step ---


def test_masks_follow_the_generator_and_no_counter() -> None:
    model, x = torch_model(), torch.from_numpy(X)
    torch.manual_seed(3)
    run = [model(x) for _ in range(3)]
    assert not torch.equal(run[0], run[1])
    # Neither a copy, nor the file, nor a model that has run before starts anywhere else.
    fresh = torch_model()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh, model):
        torch.manual_seed(3)
        assert all(torch.equal(other(x), logits) for logits in run)
    replicas = [copy.deepcopy(model) for _ in range(2)]
    assert not torch.equal(*(replica(x) for replica in replicas))


def test_masks_follow_the_stream_of_flax() -> None:
    model, x = flax_model(), jnp.asarray(X)
    call = nnx.jit(lambda model, x: model(x))
    nnx.reseed(model, dropout=3)
    run = [call(model, x) for _ in range(2)]
    assert not np.array_equal(run[0], run[1])
    nnx.reseed(model, dropout=3)
    assert all(np.array_equal(call(model, x), logits) for logits in run)
    assert np.array_equal(call(model, x), call(nnx.clone(model), x)) is False


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_samples_of_a_vmap_are_dropped_as_asked(randomness: str) -> None:
    model, x = torch_model(), torch.from_numpy(X[:1]).expand(3, -1, -1)
    found = torch.func.vmap(lambda one: model(one[None])[0], randomness=randomness)(x)
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], found[1]) is (randomness == "same")


# --- Rows of a larger batch ---


@pytest.mark.parametrize("label", ["torch", "flax"])
def test_parts_of_a_batch_have_the_masks_of_the_whole(label: str) -> None:
    model: Any = torch_model() if label == "torch" else flax_model()
    call = model if label == "torch" else nnx.jit(lambda *args, **given: model(*args, **given))
    convert: Any = torch.from_numpy if label == "torch" else jnp.asarray

    def logits(rows: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        given = {} if rows is None else {"dropout_rows": convert(rows)}
        found = call(convert(x), dropout_step=convert(np.array(5)), **given)
        return np.asarray(found.detach() if label == "torch" else found)

    everything = logits(None, X)
    for rows in (np.arange(len(X)), np.array([2, 0]), np.array([1, 4])):
        assert_near(logits(rows, X[rows]), everything[rows])


def one_of_two(rank: int, folder: str) -> None:
    """Write the gradients of half a batch, averaged over two processes."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    model = DistributedDataParallel(torch_model())
    rows = torch.arange(rank, 4, 2)
    x = torch.from_numpy(X)[:4][rows]
    model(x, dropout_step=5, dropout_rows=rows).square().mean().backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/gradients")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    model = torch_model()
    model(torch.from_numpy(X)[:4], dropout_step=5).square().mean().backward()
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    theirs = torch.load(tmp_path / "gradients", weights_only=True)
    for parameter, found in zip(model.parameters(), theirs, strict=True):
        assert_near(found, parameter.grad, "gradient")
