"""Mistakes in other people's ports are named, from whatever names a port traces; a right port has
none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import jax
import jaxtyping
import numpy as np
import pytest

from parity_tests.ports import PORTS
from pe_core.training.config import TrainConfig
from pe_parity import Trace, reference_trace
from pe_parity.diagnose import Diagnosis, diagnose
from pe_parity.probe_inputs import probe_arrays, probe_batches
from pe_parity.trace_file import Given

# What the diagnosis says of each mistake, whichever name shows it first.
WORDS = {
    "input_scale": r"input is multiplied by sqrt\(d_model\)",
    "no_encoding": "no positional encoding is added",
    "positions_off_by_one": "positions are off by 1",
    "cls_has_position": "the encoding counts the cls step",
    "sinusoid_layout": "sinusoidal.* has layout",
    "norm_epsilon": "LayerNorm has epsilon 1e-06, .*, not 1e-05$",
    "norm_epsilon_bert": "LayerNorm has epsilon 1e-12, .*, not 1e-05$",
    "post_for_pre": "post-norm.*, and the final norm of pre-norm stays",
    "pre_for_post": r"pre-norm\), not its output$",
    "qkv_order": "(query|key) and (key|value) are swapped",
    "split_without_transpose": r"reshaped to \(batch, heads, length, d_head\) without a transpose",
    "heads_interleaved": "heads are interleaved",
    "batch_first_missing": "batch_first",
    "batch_first": "batch_first",
    "scale_missing": r"multiplied by [\d.]+, sqrt\(d_head\)",
    "scale_by_d_model": r"multiplied by [\d.]+, 1 / sqrt\(num_heads\)",
    "scale_twice": r"multiplied by [\d.]+, 1 / sqrt\(d_head\)",
    "mask_ignored": "attention ignores the mask",
    "mask_inverted": "the mask of attention is inverted",
    "merged_without_transpose": "merged by a reshape alone",
    "heads_merged_interleaved": "merged with their axes in the wrong order",
    "weight_transposed": "attention.out.weight of every layer is used transposed",
    "bias_missing": r"(?<!every )bias of .* is missing|every bias of attention is missing",
    "no_biases": "every bias in the layers is missing",
    "attention_residual_missing": "residual connection around attention is missing",
    "residual_missing": "residual connection around the feed-forward layer is missing",
    "gelu_tanh": "tanh approximation of GELU",
    "relu": "the activation is ReLU",
    "layers_shared": "every layer has the weights of the last",
    "missing_final_norm": "the final norm is missing",
    "padding_pooled": "pooling ignores the mask",
    "mean_for_cls": "pooling gives the mean over all steps",
}
EVERY: tuple[str, ...] = ()
CASES = [(name, mistake) for name, port in PORTS.items() for mistake in ("", *port.mistakes)]
# One port is diagnosed from its result alone, too.
CASES_AND_NAMES = [
    (name, mistake, names)
    for name, mistake in CASES
    for names in ((EVERY, ("head",)) if name == "numpy_alone" else (EVERY,))
]


@pytest.fixture(autouse=True, scope="module")
def _unchecked_shapes() -> Iterator[None]:
    """Other tests check shapes at every call of the reference, and a diagnosis makes a thousand;
    ports are written for JAX as it comes.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def given(name: str) -> tuple[Trace, Given]:
    config = PORTS[name].config
    (batch,) = probe_batches(config, TrainConfig(), 1, masked=True)
    arrays = probe_arrays(config)
    right = reference_trace(config, arrays, batch)
    return right, Given(config, arrays, batch.inputs, batch.mask)


@pytest.mark.parametrize(("name", "mistake", "names"), CASES_AND_NAMES)
def test_a_mistake_of_a_port_is_named(name: str, mistake: str, names: tuple[str, ...]) -> None:
    port, (right, put) = PORTS[name], given(name)
    weights = {name: array.copy() for name, array in put.weights.items()}
    traced = port.taps(port.config.to_json(), weights, put.inputs.copy(), put.mask, mistake or None)
    shown = {key: np.asarray(traced[key]) for key in names or traced if key in right}
    found = diagnose(right, shown, put, "float32")
    if not mistake:
        assert found == Diagnosis(())
        return
    assert found.checked == found.total > 0, found
    for one in found.findings:
        assert re.search(WORDS[mistake], one.text), found
