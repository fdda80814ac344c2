"""What a learned table does with positions beyond it, in three columns."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import jax
import numpy as np
import pytest
import torch

import pe_flax
from parity_tests.cases import BACKENDS, BATCH, LENGTH, perturbed_arrays, small_batch, small_config
from parity_tests.refusals import refused
from parity_tests.small_models import assert_near, in_each_backend
from pe_core import LearnedTable
from pe_core.encodings.additive import OverLength
from pe_core.model.config import Precision
from pe_parity.reference import forward

ROWS = 3
TAKING = [policy for policy in get_args(OverLength) if policy != "error"]
MASK = np.arange(LENGTH) < np.array([7, 2, 5, 3, 0])[:, None]
PACKED = np.array([[1, 1, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 0, 0], *[[1, 1, 0, 2, 2, 2, 2]] * 3])
LINE = np.arange(LENGTH)
CALLS: dict[str, dict[str, Any]] = {
    "counted": {},
    "padded": {"mask": MASK},
    "packed": {"segment_ids": PACKED, "num_segments": 2},
    "whole": {"positions": (LINE[::-1] * 5).astype(np.int32), "mask": MASK},
    "between": {"positions": (LINE * 1.7).astype(np.float32)},
    "far": {"positions": LINE * 10**8 + np.arange(BATCH)[:, None], "mask": MASK},
}


@in_each_backend
@pytest.mark.parametrize(("policy", "call"), [*itertools.product(TAKING, CALLS)])
def test_each_policy_is_that_of_the_reference(label: str, policy: Any, call: str) -> None:
    config = small_config(num_layers=1, encodings=(LearnedTable(ROWS, over_length=policy),))
    arrays, x = perturbed_arrays(config), small_batch(config).inputs
    given = {name: item for name, item in CALLS[call].items() if name != "num_segments"}
    backend, exact = BACKENDS[label], forward(config, arrays, x, **given)
    precisions: list[Precision] = ["float32", "float64"] if call == "padded" else ["float32"]
    for precision in precisions:
        with backend.mode(precision):
            model = backend.classifier(config, arrays, precision)
            assert_near(backend.call(model, x, **CALLS[call]), exact, precision=precision)


VALUES = {
    "clip": [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0],
    "wrap": [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0],
    "interpolate": [0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3, 2.0],
}


@in_each_backend
@pytest.mark.parametrize("policy", TAKING)
def test_values(label: str, policy: Any) -> None:
    backend = BACKENDS[label]
    options = LearnedTable(ROWS, over_length=policy)
    layer = backend.package.LearnedTableEncoding(options, d_model=1, seed=0)
    backend.package.layout.put_arrays(layer, {"table": np.arange(3, dtype=np.float32)[:, None]})
    x = np.zeros((1, LENGTH, 1), np.float32)
    assert_near(backend.call(layer, x)[0, :, 0], np.array(VALUES[policy]))
    # Within the table all policies are one.
    short = backend.call(layer, x[:, :ROWS])
    assert np.array_equal(short[0, :, 0], np.arange(3, dtype=np.float32))
    with refused(ValueError, "must not be negative"):
        backend.call(layer, x, positions=LINE.astype(np.int32) - 1)


def test_compiled_without_a_look_at_the_positions() -> None:
    options = LearnedTable(ROWS, over_length="interpolate")
    layer = pe_flax.LearnedTableEncoding(options, d_model=4, seed=0)
    x: Any = np.zeros((2, LENGTH, 4), np.float32)
    positions: Any = np.stack([LINE * 3, LINE]).astype(np.int32)
    exact = layer(x, positions)
    assert_near(jax.jit(lambda x, at: layer(x, at))(x, positions), exact)
    ours = BACKENDS["torch"].package.LearnedTableEncoding(options, d_model=4, seed=0)
    vectors = torch.func.vmap(lambda x, at: ours(x[None], at)[0])
    assert_near(vectors(torch.from_numpy(x), torch.from_numpy(positions)), exact)


@in_each_backend
def test_the_error_names_the_policies(label: str) -> None:
    layer = BACKENDS[label].package.LearnedTableEncoding(LearnedTable(ROWS), d_model=4, seed=0)
    with refused(ValueError, "take over_length='clip', 'wrap' or 'interpolate'"):
        BACKENDS[label].call(layer, np.zeros((1, LENGTH, 4), np.float32))
