"""What others wrote computes the same encodings of attention: transformers, x-transformers, and the
papers' formulas in loops.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, T5Config, Wav2Vec2BertConfig
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

from parity_tests.cases import BACKENDS, BATCH, LENGTH, perturbed_arrays, small_batch, small_config
from parity_tests.small_models import assert_near
from pe_core import ComputeConfig, ModelConfig
from pe_core.encodings import Rotary, Shaw, Sizes, T5Bias
from pe_core.model.random import derive, normal, uniform
from pe_parity.reference import encode
from pe_parity.reference.bias import T5BiasFormula
from pe_parity.reference.rotary import rotate

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it calls torch.jit.script
    from x_transformers import x_transformers

IMPLEMENTATIONS: list[tuple[str, Any]] = [
    ("reference", "float64"),
    *((name, precision) for name in BACKENDS for precision in ("float64", "float32")),
]
everyone = pytest.mark.parametrize(("name", "precision"), IMPLEMENTATIONS)


def drawn(shape: tuple[int, ...], precision: str, number: int = 0) -> np.ndarray:
    return normal(derive(0, 97, number), shape).astype(precision)


def taps_of(name: str, precision: Any, config: ModelConfig, **arguments: Any) -> dict[str, Any]:
    """Return the intermediates of attention in the first layer of a model."""
    taps: dict[str, Any] = {}
    arrays, x = perturbed_arrays(config), small_batch(config).inputs
    if name == "reference":
        encode(config, arrays, x, taps=taps, **arguments)
    else:
        backend = BACKENDS[name]
        with backend.mode(precision):
            backend.call(backend.encoder(config, arrays, precision), x, taps=taps, **arguments)
    parts = ("query", "key", "value", "logits", "weights", "mixed", "output")
    found = {part: taps[f"layers.0.attention.{part}"] for part in parts}
    return found | {"x": taps["layers.0.norm1"]}


# --- Rotary ---

ROTARIES = [
    (Rotary(), 8),
    (Rotary(pairing="half"), 8),
    (Rotary(base=100.0), 6),
    (Rotary(base=100.0, pairing="half"), 6),
    (Rotary(fraction=0.25), 16),
    (Rotary(fraction=0.7, pairing="half"), 12),
]
POSITIONS = {
    "counted": np.arange(9, dtype=np.int32),
    "each row its own": np.arange(27, dtype=np.int32)[::-1].copy().reshape(3, 9),
    "float": (40 * uniform(derive(0, 96), (3, 9)) - 20).astype(np.float32),
}


def rotated(
    name: str, precision: Any, options: Rotary, x: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Return x (batch, heads, length, d_head) as an implementation rotates it, as queries and as
    keys alike.
    """
    if name == "reference":
        return rotate(options, x, positions if positions.ndim == 1 else positions[:, None])
    backend, lays_heads_last = BACKENDS[name], name == "flax"
    with backend.mode(precision):
        layer = backend.package.RotaryEncoding(options, d_head=x.shape[-1], num_heads=x.shape[1])
        given = backend.array(x.swapaxes(1, 2) if lays_heads_last else x)
        found, keys = map(backend.numpy, layer(given, given, backend.array(positions)))
    np.testing.assert_array_equal(keys, found)
    return found.swapaxes(1, 2) if lays_heads_last else found


def their_rotations(options: Rotary, x: torch.Tensor, angles: torch.Tensor) -> list[torch.Tensor]:
    """Return x rotated by angles (batch, length, rotated / 2), as each library does that knows the
    pairing; Llama and GPT-J rotate all channels.
    """
    whole = 2 * angles.shape[-1] == x.shape[-1]
    if options.pairing == "half":
        twice = torch.cat([angles, angles], dim=-1)
        modules = [modeling_gpt_neox, *([modeling_llama] if whole else [])]
        return [one.apply_rotary_pos_emb(x, x, twice.cos(), twice.sin())[0] for one in modules]
    found = [x_transformers.apply_rotary_pos_emb(x, angles.repeat_interleave(2, -1))]
    if whole:
        heads_last = x.transpose(1, 2)
        turned = modeling_gptj.apply_rotary_pos_emb(heads_last, angles.sin(), angles.cos())
        found.append(turned.transpose(1, 2))
    return found


@everyone
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize(("options", "d_head"), ROTARIES)
def test_rotary(
    options: Rotary, d_head: int, positions: np.ndarray, name: str, precision: Any
) -> None:
    x = drawn((3, 2, 9, d_head), precision)
    count = options.rotated(Sizes(d_head)) // 2
    # Their layers take angles in float32 (see below); their rotations do not care.
    angles = np.atleast_2d(positions)[..., None] * options.base ** -(np.arange(count) / count)
    found = rotated(name, precision, options, x, positions)
    for theirs in their_rotations(options, *map(torch.from_numpy, (x.astype(float), angles))):
        assert_near(found, theirs.numpy(), precision=precision)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize(("options", "d_head"), ROTARIES)
def test_frequencies_of_rotary_layers(options: Rotary, d_head: int, positions: np.ndarray) -> None:
    """Their whole layers, which take angles in float32."""
    x = drawn((3, 2, 9, d_head), "float32")
    where = torch.from_numpy(np.atleast_2d(positions))
    if options.pairing == "half":
        rope = {
            "rope_type": "default",
            "rope_theta": options.base,
            "partial_rotary_factor": options.fraction,
        }
        config = GPTNeoXConfig(hidden_size=d_head, num_attention_heads=1, rope_parameters=rope)
        cosine, sine = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)(torch.zeros(1), where)
        given = torch.from_numpy(x)
        theirs = modeling_gpt_neox.apply_rotary_pos_emb(given, given, cosine, sine)[1]
    else:
        layer = x_transformers.RotaryEmbedding(options.rotated(Sizes(d_head)), base=options.base)
        theirs = x_transformers.apply_rotary_pos_emb(torch.from_numpy(x), *layer(where))
    ours = rotated("reference", "float64", options, x.astype(np.float64), positions)
    assert_near(theirs.numpy(), ours, precision="float32")


def test_rotary_of_the_paper() -> None:
    """Su et al. 2021, section 3.2: a product of queries and keys in complex numbers."""
    options, positions = Rotary(base=50.0), POSITIONS["float"].astype(np.float64)
    query, key = (drawn((3, 2, 9, 6), "float64", number) for number in (0, 1))
    products = np.zeros((3, 2, 9, 9))
    for (batch, head, i, j), _ in np.ndenumerate(products):
        for k in range(3):
            left = complex(*query[batch, head, i, 2 * k : 2 * k + 2])
            right = complex(*key[batch, head, j, 2 * k : 2 * k + 2])
            angle = (positions[batch, i] - positions[batch, j]) * 50.0 ** (-2 * k / 6)
            turn = complex(np.cos(angle), np.sin(angle))
            products[batch, head, i, j] += (left * right.conjugate() * turn).real
    maps = [rotate(options, x, positions[:, None]) for x in (query, key)]
    assert_near(maps[0] @ maps[1].swapaxes(-1, -2), products, precision="float64")


# --- T5 ---

BUCKETS = [(32, 128), (8, 20), (4, 2), (10, 40), (64, 100), (16, 120)]


def t5_bias(
    name: str, precision: Any, options: T5Bias, heads: int, queries: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bias (heads, queries, keys) and the table (heads, num_buckets)."""
    if name == "reference":
        table = drawn((heads, options.num_buckets), "float64")
        offset = keys[None, :] - queries[:, None]
        return T5BiasFormula().of(options, {"table": table}, offset), table
    backend = BACKENDS[name]
    with backend.mode(precision):
        compute = ComputeConfig(precision=precision)
        layer = backend.package.T5BiasEncoding(options, num_heads=heads, seed=0, compute=compute)
        found = layer.bias(backend.array(queries), backend.array(keys))
        return backend.numpy(found), backend.numpy(layer.table[...])


@everyone
@pytest.mark.parametrize(("num_buckets", "max_distance"), BUCKETS)
def test_t5_bias(num_buckets: int, max_distance: int, name: str, precision: Any) -> None:
    """Offsets from -149 to 149, beyond the last bucket of either side."""
    options, heads, steps = T5Bias(num_buckets, max_distance), 3, np.arange(150)
    found, table = t5_bias(name, precision, options, heads, steps, steps)
    config = T5Config(
        num_heads=heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
    )
    weight = torch.nn.Parameter(torch.from_numpy(table.T.copy()))
    t5 = T5Attention(config, has_relative_attention_bias=True)
    other = x_transformers.RelativePositionBias(
        1.0, num_buckets=num_buckets, max_distance=max_distance, heads=heads
    )
    t5.relative_attention_bias.weight = other.relative_attention_bias.weight = weight
    assert_near(found, t5.compute_bias(150, 150)[0].detach().numpy(), precision=precision)
    assert_near(found, other(150, 150).detach().numpy(), precision=precision)


@everyone
def test_t5_attention(name: str, precision: Any) -> None:
    """A whole layer: the bias is added to logits that are scaled, which T5 leaves to the weights of
    its queries. Its output has no bias.
    """
    options = T5Bias(num_buckets=8, max_distance=5)
    config = small_config(encodings=(options,), num_layers=1)
    theirs = T5Attention(
        T5Config(
            d_model=config.d_model,
            d_kv=config.d_head,
            num_heads=config.num_heads,
            relative_attention_num_buckets=options.num_buckets,
            relative_attention_max_distance=options.max_distance,
            attn_implementation="eager",
        ),
        has_relative_attention_bias=True,
    )
    arrays = {item: torch.from_numpy(array) for item, array in perturbed_arrays(config).items()}
    query, key, value = arrays["layers.0.attention.qkv.weight"].double().chunk(3)
    parts = {"q": query * config.d_head**-0.5, "k": key, "v": value}
    parts["o"] = arrays["layers.0.attention.out.weight"]
    parts["relative_attention_bias"] = arrays["encodings.0.table"].T
    theirs.double().eval().load_state_dict({f"{part}.weight": one for part, one in parts.items()})
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1, 4:], mask[2, :3], mask[3, 2:4] = False, False, False
    found = taps_of(name, precision, config, mask=mask, positions=np.arange(LENGTH))
    x, hidden = found["x"].astype(np.float64), np.where(mask, 0.0, -np.inf)[:, None, None]
    with torch.no_grad():
        output, _, weights = theirs(*map(torch.from_numpy, (x, hidden)))
    per_query = found["weights"].swapaxes(1, 2)[mask]
    assert_near(per_query, weights.transpose(1, 2).numpy()[mask], precision=precision)
    output = output + arrays["layers.0.attention.out.bias"].double()
    assert_near(found["output"][mask], output.numpy()[mask], precision=precision)


@everyone
def test_t5_boundaries_are_exact(name: str, precision: Any) -> None:
    """Bucket 8 + 3 begins at 8 (27/8)^(3/9) = 12 and bucket 8 + 6 at 18. In float32, as in the
    released code, the logarithm may fall short and put 12 and 18 one bucket lower.
    """
    before = -np.array([11, 12, 17, 18], np.int32)
    found, table = t5_bias(name, precision, T5Bias(34, 27), 2, np.zeros(1, np.int32), before)
    np.testing.assert_array_equal(found[:, 0], table[:, [10, 11, 13, 14]])


# --- Shaw ---


def wav2vec2_bert(config: ModelConfig, max_distance: int) -> Wav2Vec2BertSelfAttention:
    """Return its attention in float64, with the parameters of the first layer of a model."""
    theirs = Wav2Vec2BertSelfAttention(
        Wav2Vec2BertConfig(
            hidden_size=config.d_model,
            num_attention_heads=config.num_heads,
            position_embeddings_type="relative_key",
            left_max_position_embeddings=max_distance,
            right_max_position_embeddings=max_distance,
            attn_implementation="eager",
        )
    )
    arrays = {item: torch.from_numpy(array) for item, array in perturbed_arrays(config).items()}
    state = {"distance_embedding.weight": arrays["encodings.0.layers.0.keys"]}
    for part in ("weight", "bias"):
        state[f"linear_out.{part}"] = arrays[f"layers.0.attention.out.{part}"]
        thirds = arrays[f"layers.0.attention.qkv.{part}"].chunk(3)
        state |= {f"linear_{one}.{part}": third for one, third in zip("qkv", thirds, strict=True)}
    theirs.load_state_dict(state)
    return theirs.double().eval()


@everyone
@pytest.mark.parametrize(("max_distance", "masked"), [(2, True), (9, False)])
def test_shaw_keys(max_distance: int, masked: bool, name: str, precision: Any) -> None:
    options = Shaw(max_distance, values=False)
    config = small_config(encodings=(options,), num_layers=1, attention_bias=True)
    mask = np.ones((BATCH, LENGTH), bool)
    if masked:
        mask[1, 4:], mask[2, :3], mask[3, 2:4] = False, False, False
    found = taps_of(name, precision, config, mask=mask, positions=np.arange(LENGTH))
    x, hidden = found["x"].astype(np.float64), np.where(mask, 0.0, -np.inf)[:, None, None]
    with torch.no_grad():
        output, weights = wav2vec2_bert(config, max_distance)(*map(torch.from_numpy, (x, hidden)))
    # Padded queries see offsets there and none here; nothing reads them.
    per_query = found["weights"].swapaxes(1, 2)[mask]
    assert_near(per_query, weights.transpose(1, 2).numpy()[mask], precision=precision)
    assert_near(found["output"][mask], output.numpy()[mask], precision=precision)


@everyone
@pytest.mark.parametrize("max_distance", [2, 9])
def test_shaw_of_the_paper(max_distance: int, name: str, precision: Any) -> None:
    """Shaw et al. 2018, equations 3 to 5, in loops over i and j; positions in any order."""
    config = small_config(encodings=(Shaw(max_distance),), num_layers=1)
    arrays = perturbed_arrays(config)
    keys, values = (arrays[f"encodings.0.layers.0.{part}"] for part in ("keys", "values"))
    positions = np.array([3, 9, 0, 5, 4, 4, 20])
    found = taps_of(name, precision, config, positions=positions)
    query, key, value = (found[part].astype(np.float64) for part in ("query", "key", "value"))
    e, z = np.zeros(found["logits"].shape), np.zeros(query.shape)
    offset = [[min(max(j - i, -max_distance), max_distance) for j in positions] for i in positions]
    for batch, head, i in np.ndindex(query.shape[:3]):
        for j in range(LENGTH):
            step = key[batch, head, j] + keys[max_distance + offset[i][j]]
            e[batch, head, i, j] = query[batch, head, i] @ step / np.sqrt(config.d_head)
        weights = np.exp(e[batch, head, i]) / np.exp(e[batch, head, i]).sum()
        for j in range(LENGTH):
            step = value[batch, head, j] + values[max_distance + offset[i][j]]
            z[batch, head, i] += weights[j] * step
    assert_near(found["logits"], e, precision=precision)
    assert_near(found["mixed"], z, precision=precision)
