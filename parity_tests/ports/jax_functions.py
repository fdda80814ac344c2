"""A port to plain JAX: one sequence with einsum, vmap over the batch; attention pooling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity_tests.cases import small_config
from pe_core.encodings import LearnedTable
from pe_core.model.config import Tokens

CONFIG = small_config(
    inputs=Tokens(29), d_model=15, encodings=(LearnedTable(14),), pooling="attention"
)


def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    p = {name: jnp.asarray(array) for name, array in weights.items()}
    width, heads, length = config["d_model"], config["num_heads"], inputs.shape[1]
    post, d_head = mistake == "post_for_pre", config["d_model"] // config["num_heads"]

    def norm(name: str, x: jax.Array) -> jax.Array:
        epsilon = 1e-6 if mistake == "norm_epsilon" else 1e-5
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + epsilon)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def split(x: jax.Array) -> jax.Array:
        if mistake == "split_without_transpose":
            return x.reshape(heads, length, d_head)
        return x.reshape(length, heads, d_head).swapaxes(0, 1)

    def one(tokens: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
        t = {}
        x = t["input"] = p["input.table"][tokens]
        x = x * (width**0.5 if mistake == "input_scale" else 1)
        table = p["encodings.0.table"][int(mistake == "positions_off_by_one") :][:length]
        x = t["encoding"] = x if mistake == "no_encoding" else x + table
        for n in range(config["num_layers"]):
            layer, at = f"layers.{n}", f"layers.{n}.attention"
            y = x if post else norm(f"{layer}.norm1", x)
            q, k, v = jnp.split(y @ p[f"{at}.qkv.weight"].T, 3, axis=-1)
            if mistake == "qkv_order":
                q, v, k = q, k, v
            q, k, v = split(q), split(k), split(v)
            scales = {"scale_missing": 1.0, "scale_by_d_model": width**-0.5}
            scale = scales.get(mistake or "", d_head**-0.5)
            logits = t[f"{at}.logits"] = jnp.einsum("hqd,hkd->hqk", q, k) * scale
            if mistake != "mask_ignored":
                seen = ~real if mistake == "mask_inverted" and mask is not None else real
                logits = jnp.where(seen, logits, -1e9)
            mixed = jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(logits), v)
            mixed = mixed if mistake == "merged_without_transpose" else mixed.swapaxes(0, 1)
            out = p[f"{at}.out.weight"]
            out = out if mistake == "weight_transposed" else out.T
            x = x + mixed.reshape(length, width) @ out + p[f"{at}.out.bias"]
            x = norm(f"{layer}.norm1", x) if post else x
            y = x if post else norm(f"{layer}.norm2", x)
            y = y @ p[f"{layer}.feed_forward.up.weight"].T + p[f"{layer}.feed_forward.up.bias"]
            y = jax.nn.gelu(y, approximate=mistake == "gelu_tanh")
            y = y @ p[f"{layer}.feed_forward.down.weight"].T
            y = y if mistake == "bias_missing" else y + p[f"{layer}.feed_forward.down.bias"]
            x = y if mistake == "residual_missing" else x + y
            x = t[f"{layer}.output"] = norm(f"{layer}.norm2", x) if post else x
        x = x if mistake == "missing_final_norm" else norm("norm", x)
        scores = x @ p["pooling.query"] / width**0.5
        scores = scores if mistake == "padding_pooled" else jnp.where(real, scores, -1e9)
        t["pooled"] = jax.nn.softmax(scores) @ x
        return t | {"head": t["pooled"] @ p["head.weight"].T + p["head.bias"]}

    real = np.ones(inputs.shape, bool) if mask is None else mask
    return jax.vmap(one)(jnp.asarray(inputs), jnp.asarray(real))
