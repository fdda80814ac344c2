"""The table of decisions names places and tests that exist; the decisions that no other test covers
are tested here.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import pe_flax
import pe_torch
from parity_tests.cases import (
    BACKENDS,
    BATCH,
    ENGINES,
    LENGTH,
    perturbed_arrays,
    small_batch,
    small_config,
)
from pe_core import ComputeConfig, LearnedTable, TrainConfig
from pe_core.data import Batch
from pe_core.model.initial import initial_arrays
from pe_core.model.random import derive, normal
from pe_parity import BUDGETS, distance
from pe_parity.reference import attention, encoder

ROOT = Path(__file__).resolve().parent.parent
# Where at least one place of a column must lie, by the number of the column.
FOLDERS = {4: "pe_torch/", 5: "pe_flax/", 6: "parity_tests/test_"}
PLACE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")

in_each_column = pytest.mark.parametrize("column", ["reference", *BACKENDS])
in_each_backend = pytest.mark.parametrize("label", BACKENDS)


# --- The table ---


@functools.cache
def defined(file: Path) -> set[str]:
    """Functions, classes and constants of a module, and those of its classes as `Class.name`."""

    def names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    yield prefix + name
                    if isinstance(node, ast.ClassDef):
                        yield from names(node.body, f"{name}.")
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    yield prefix + name

    return set(names(ast.parse(file.read_text(encoding="utf-8")).body)) if file.is_file() else set()


def problems(table: str) -> list[str]:
    """Rows that are not whole, and places, `file.py::symbol`, that do not exist."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line[:1] == "|"][2:]
    found = []
    for row in rows:
        if len(row) != 7 or not all(cell.strip() for cell in row):
            found.append(f"{row[0]}: not 7 cells with something in each")
            continue
        found += [
            f"{row[0]}: no place in {folder}"
            for column, folder in FOLDERS.items()
            if not any(file.startswith(folder) for file, _ in PLACE.findall(row[column]))
        ]
        found += [
            f"{row[0]}: no {file}::{symbol}"
            for column, cell in enumerate(row)
            for file, symbol in PLACE.findall(cell)
            if symbol not in defined(ROOT / file) or (column == 6 and symbol[:5] != "test_")
        ]
    return found if rows else ["no decision"]


TABLE = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")


def test_every_place_and_every_test_exists() -> None:
    assert problems(TABLE) == []
    assert TABLE.count("\n| ") > 50


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("::Linear.forward`", "::Linear.backward`", "no pe_torch/layers.py::Linear.backward"),
        ("`pe_flax/layers.py::", "`pe_flax/layer.py::", "no pe_flax/layer.py::"),
        ("::test_torch_encoder`", "::parametrize`", "::parametrize"),
        ("`pe_flax/", "`pe_torch/", "no place in pe_flax/"),
        (" | none: it has no gradients | ", " | | ", "not 7 cells with something in each"),
        ("\n| ", "\n", "no decision"),
    ],
)
def test_the_check_of_the_table_can_fail(old: str, new: str, problem: str) -> None:
    assert old in TABLE
    assert any(problem in found for found in problems(TABLE.replace(old, new)))


# --- Decisions that no other test holds ---

# How far the mean of a step lies from zero, in its standard deviations.
FAR = 8.0


@in_each_backend
def test_a_mean_far_from_zero_costs_no_digits(label: str) -> None:
    config = small_config()
    arrays = perturbed_arrays(config)
    x = (normal(derive(0, 86), (BATCH, LENGTH, config.d_model)) + FAR).astype(np.float32)
    run = encoder.Run(
        config, {name: array.astype(np.float64) for name, array in arrays.items()}, {}, 0, None
    )
    exact, bound = (
        run.layer_norm("layers.0.norm1", x.astype(np.float64)),
        BUDGETS["tap", "float32"].bound,
    )
    assert (
        distance(
            BACKENDS[label].call(
                BACKENDS[label].classifier(config, arrays).encoder.layers[0].norm1, x
            ),
            exact,
            exact,
        )
        <= bound
    )
    # The variance in one pass, as Flax has it by default.
    mean, square = x.mean(axis=-1, keepdims=True), (x * x).mean(axis=-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(square - mean * mean + np.float32(1e-5))
    fast = scaled * arrays["layers.0.norm1.weight"] + arrays["layers.0.norm1.bias"]
    assert fast.dtype == np.float32
    assert distance(fast, exact, exact) > bound


def attended(
    column: str, query: Any, key: Any, value: Any, allowed: np.ndarray | None = None
) -> dict[str, Any]:
    """The taps of attention over arrays of the framework, (batch, heads, length, d_head)."""
    taps: dict[str, Any] = {}
    if column == "reference":
        taps["logits"] = attention.logits(
            query.astype(np.float64), key.astype(np.float64), query.shape[-1] ** -0.5
        )
        taps["weights"] = attention.weights(taps["logits"], allowed)
        return taps
    backend = BACKENDS[column]
    # In Flax the heads come after the steps.
    parts = (part if column == "torch" else part.swapaxes(1, 2) for part in (query, key, value))
    attend_alone(backend, parts, None if allowed is None else allowed[:, 0, 0], taps)
    return {name.removeprefix("layers.0.attention."): array for name, array in taps.items()}


def attend_alone(
    backend: Any, parts: Any, real: np.ndarray | None, taps: dict[str, Any] | None = None
) -> Any:
    """Attention over queries, keys and values of a backend's own."""
    query, key, value = parts
    length = query.shape[2 if backend.package is pe_torch else 1]
    positions = backend.package.positions.Positions(backend.array(np.arange(length)))
    real = None if real is None else backend.array(real)
    call = backend.package.call.Call(positions, real, taps=taps)
    return backend.package.attention.attend(query, key, value, query.shape[-1] ** -0.5, call)


@in_each_backend
def test_logits_and_softmax_are_float32_for_bfloat16_too(label: str) -> None:
    drawn = [4.0 * normal(derive(0, 85, part), (2, 3, LENGTH, 5)) for part in range(3)]
    # Rounded here, so that nothing is lost on the way in.
    rounded = [np.asarray(jnp.asarray(array, jnp.bfloat16).astype(jnp.float32)) for array in drawn]
    kind = torch.bfloat16 if label == "torch" else jnp.bfloat16
    parts = [BACKENDS[label].array(array) for array in rounded]
    found = attended(
        label, *(part.to(kind) if label == "torch" else part.astype(kind) for part in parts)
    )
    for name, exact in attended("reference", *rounded).items():
        assert found[name].dtype == (torch.float32 if label == "torch" else jnp.float32)
        assert (
            distance(BACKENDS[label].numpy(found[name]), exact, exact)
            <= BUDGETS["tap", "float32"].bound
        )


@in_each_backend
def test_the_scale_acts_before_the_product(label: str) -> None:
    """2^64 squared is more than a float32 holds, and half of it is not."""
    steps = BACKENDS[label].array(
        np.array([2.0**64, 0.0, 0.0, 0.0], np.float32).reshape(1, 1, 1, 4)
    )
    assert np.asarray(attended(label, steps, steps, steps)["logits"]).item() == 2.0**127


# A real logit below any constant that masks with a number chosen by eye, such as -1e9.
LOWEST = -1e25


@in_each_column
def test_a_masked_step_loses_to_any_real_one(column: str) -> None:
    query, key = np.zeros((2, 1, 1, 2, 4), np.float32)
    query[..., 0], key[..., 1, 0] = 1.0, 2.0 * LOWEST
    mask = np.array([[False, True]])
    array = BACKENDS[column].array if column != "reference" else np.asarray
    found = attended(column, array(query), array(key), array(key), mask[:, None, None])["weights"]
    assert np.array_equal(np.asarray(found)[0, 0], [[0.0, 1.0]] * 2)

    config = small_config(pooling="attention")
    arrays = perturbed_arrays(config) | {
        "pooling.query": np.eye(config.d_model, dtype=np.float32)[0]
    }
    x = np.zeros((1, 2, config.d_model), np.float32)
    x[0, 1] = LOWEST * np.arange(4, 4 + config.d_model)
    if column == "reference":
        pooled = encoder._pool(config, arrays, x.astype(np.float64), mask[:, None])[:, 0]
    else:
        pool = BACKENDS[column].classifier(config, arrays).pooling
        pooled = BACKENDS[column].call(pool, x, real=mask, segment_ids=None, num_segments=None)
    assert np.array_equal(pooled, x[:, 1])


@in_each_backend
def test_a_query_without_a_key_sends_no_gradient(label: str) -> None:
    backend, drawn = (
        BACKENDS[label],
        [normal(derive(0, 82, part), (2, 3, LENGTH, 5)).astype(np.float32) for part in range(3)],
    )
    real = np.array([True, False])[:, None].repeat(LENGTH, axis=-1)

    def total(*parts: Any) -> Any:
        return attend_alone(backend, parts, real).sum()

    if label == "torch":
        live = [backend.array(array).requires_grad_() for array in drawn]
        total(*live).backward()
        gradients = [part.grad.numpy() for part in live]
    else:
        found = jax.grad(total, argnums=(0, 1, 2))(
            *(backend.array(array.swapaxes(1, 2)) for array in drawn)
        )
        gradients = [np.asarray(gradient) for gradient in found]
    for gradient in gradients:
        assert gradient[0].any()
        assert np.array_equal(gradient[1], np.zeros_like(gradient[1]))


@in_each_backend
def test_the_first_of_equal_steps_gets_the_gradient(label: str) -> None:
    config = small_config(pooling="max")
    pool = BACKENDS[label].classifier(config, perturbed_arrays(config)).pooling
    x = np.ones((BATCH, LENGTH, config.d_model), np.float32)
    x[1, 3] = 2.0
    x[1, 5] = 2.0
    mask = np.arange(LENGTH) >= np.array([0, 0, 2, 4, 0])[:, None]
    cotangent = normal(derive(0, 84), (BATCH, config.d_model)).astype(np.float32)
    for real, first in ((mask, [0, 3, 2, 4, 0]), (None, [0, 3, 0, 0, 0])):
        of_x, _ = BACKENDS[label].pullback(
            pool, cotangent, x, real=real, segment_ids=None, num_segments=None
        )
        expected = np.zeros_like(x)
        expected[np.arange(BATCH), first] = cotangent
        assert np.array_equal(of_x, expected)


TINY = small_config(num_layers=1)


@in_each_backend
def test_weights_divide_by_their_sum_and_the_first_of_equal_logits_is_the_answer(
    label: str,
) -> None:
    arrays = initial_arrays(TINY)
    arrays["head.weight"] = np.zeros_like(arrays["head.weight"])
    batch = small_batch(TINY)
    weights = np.array([0.5, 2.0, 0.25, 1.0, 4.0], np.float32)
    labels = np.array([0, 3, 2, 1, 0], np.int32)
    engine = ENGINES[label](TINY, arrays, TrainConfig(), ComputeConfig(), 0)
    (found,) = engine.read([engine.evaluate(Batch(batch.inputs, labels, weights, None))])
    exact = np.array([math.log(TINY.num_classes), 4.5, 7.75, 0.0])
    assert np.array_equal(found[1:], exact[1:])
    assert distance(found[:1], exact[:1], exact[:1]) <= BUDGETS["loss", "float32"].bound


@in_each_backend
def test_the_reported_norm_is_that_before_clipping(label: str) -> None:
    largest, arrays, batch = 1e-3, perturbed_arrays(TINY), small_batch(TINY)
    standard = ENGINES["torch"](TINY, arrays, TrainConfig(), ComputeConfig(precision="float64"), 1)
    exact = np.sqrt(sum((gradient**2).sum() for gradient in standard.gradients(batch)[1].values()))
    assert exact > largest
    engine = ENGINES[label](
        TINY, arrays, TrainConfig(max_gradient_norm=largest), ComputeConfig(), 1
    )
    norm = engine.read([engine.train_step(batch, 0)])[0, 3]
    assert distance(norm, exact, exact) <= BUDGETS["gradient", "float32"].bound


def test_products_are_taken_at_full_precision() -> None:
    """Where JAX would take TF32, every product of the program says otherwise; torch has one switch,
    which is on by default.
    """
    batch = small_batch(TINY, masked=True)
    engines: dict[str, Any] = {
        label: engine(TINY, initial_arrays(TINY), TrainConfig(), ComputeConfig(), 1)
        for label, engine in ENGINES.items()
    }
    flax = engines["flax"]
    content = pe_flax.engine._content(batch)
    programs = {
        "step": flax._program.train_step.lower(flax._state, flax._rest, content, np.uint32(0)),
        "evaluate": flax._program.evaluate.lower(flax._state.weights, flax._rest, content),
        "predict": flax._program.predict.lower(flax._state.weights, flax._rest, content),
    }
    for name, program in programs.items():
        products = [line for line in program.as_text().splitlines() if "dot_general" in line]
        assert products, name
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), name
    engines["torch"].train_step(batch, 0)
    assert torch.get_float32_matmul_precision() == "highest"


RATE = 0.01


def tables(label: str, reads: tuple[int, ...]) -> list[np.ndarray]:
    """A table before and after each step of Adam, in each of which one row is read."""
    backend = BACKENDS[label]
    layer = backend.package.LearnedTableEncoding(LearnedTable(9), d_model=6, seed=1)
    x, cotangent = (
        np.zeros((BATCH, LENGTH, 6), np.float32),
        normal(derive(0, 83), (BATCH, LENGTH, 6)),
    )
    tree = {} if label == "torch" else {"table": layer.table[...]}
    torch_adam = pe_torch.Adam(layer.parameters(), lambda step: RATE) if label == "torch" else None
    flax_adam = pe_flax.adam(RATE)
    state = flax_adam.init(tree)
    found = [backend.package.layout.get_arrays(layer)["table"]]
    for row in reads:
        _, gradients = backend.pullback(
            layer, cotangent, x, positions=np.full(LENGTH, row, np.int32)
        )
        if torch_adam is not None:
            torch_adam.step()
        else:
            updates, state = flax_adam.update(
                {"table": jnp.asarray(gradients["table"])}, state, tree
            )
            tree = optax.apply_updates(tree, updates)
            backend.package.layout.put_arrays(layer, {"table": np.asarray(tree["table"])})
        found.append(backend.package.layout.get_arrays(layer)["table"])
    return found


def test_a_row_moves_on_after_it_was_read() -> None:
    found = {label: tables(label, (3, 5, 5)) for label in BACKENDS}
    for before, first, second, last in found.values():
        assert (first[3] != before[3]).all()
        assert (second[3] != first[3]).all()
        assert (last[3] != second[3]).all()
        assert np.array_equal(first[5], before[5])
        never = [row for row in range(9) if row not in (3, 5)]
        assert np.array_equal(last[never], before[never])
    for one, other in zip(found["torch"][1:], found["flax"][1:], strict=True):
        assert distance(one, other, other - found["flax"][0]) <= BUDGETS["weights", "float32"].bound
