"""A port to Flax nnx: kernels transposed, nnx.MultiHeadAttention, post-norm; no logits traced.

nnx.MultiHeadAttention scales by itself: scaled twice instead. There is no final norm to forget.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity_tests.cases import small_config
from pe_core.encodings import Sinusoidal

CONFIG = small_config(
    d_model=18, encodings=(Sinusoidal(layout="half"),), norm="post", attention_bias=True
)


def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    w, t, rngs = {name: jnp.asarray(a) for name, a in weights.items()}, {}, nnx.Rngs(0)
    width, heads, length = config["d_model"], config["num_heads"], inputs.shape[1]
    d_head, pre, biased = width // heads, mistake == "pre_for_post", mistake != "bias_missing"

    def linear(name: str, x: Any) -> Any:
        layer = nnx.Linear(*w[f"{name}.weight"].T.shape, rngs=rngs)
        layer.kernel, layer.bias = nnx.Param(w[f"{name}.weight"].T), nnx.Param(w[f"{name}.bias"])
        return layer(x)

    def norm(name: str, x: Any) -> Any:
        layer = nnx.LayerNorm(width, epsilon=1e-6 if mistake == "norm_epsilon" else 1e-5, rngs=rngs)
        layer.scale, layer.bias = nnx.Param(w[f"{name}.weight"]), nnx.Param(w[f"{name}.bias"])
        t[name] = layer(x)
        return t[name]

    def attention(name: str, x: Any) -> Any:
        layer = nnx.MultiHeadAttention(heads, width, decode=False, use_bias=biased, rngs=rngs)
        kernels, biases = jnp.split(w[f"{name}.qkv.weight"], 3), jnp.split(w[f"{name}.qkv.bias"], 3)
        kernels = [kernel.T.reshape(width, heads, d_head) for kernel in kernels]
        biases = [bias.reshape(heads, d_head) for bias in biases]
        out = w[f"{name}.out.weight"]
        out = (out if mistake == "weight_transposed" else out.T).reshape(heads, d_head, width)
        if mistake == "heads_interleaved":
            kernels = [a.reshape(width, d_head, heads).swapaxes(1, 2) for a in kernels]
            biases = [bias.reshape(d_head, heads).T for bias in biases]
        if mistake == "heads_merged_interleaved":
            out = out.reshape(d_head, heads, width).swapaxes(0, 1)
        if mistake == "scale_twice":
            kernels[0], biases[0] = kernels[0] / d_head**0.5, biases[0] / d_head**0.5
        second, third = ("value", "key") if mistake == "qkv_order" else ("key", "value")
        parts = [layer.query, getattr(layer, second), getattr(layer, third), layer.out]
        kernels, biases = [*kernels, out], [*biases, w[f"{name}.out.bias"]]
        for part, kernel, bias in zip(parts, kernels, biases, strict=True):
            part.kernel, part.bias = nnx.Param(kernel), nnx.Param(bias) if biased else None
        seen = ~mask if mask is not None and mistake == "mask_inverted" else mask
        unmasked = mask is None or mistake == "mask_ignored"
        return layer(x, mask=None if unmasked else seen[:, None, None])

    x = t["input"] = linear("input", inputs)
    x = x * (width**0.5 if mistake == "input_scale" else 1)
    where = np.arange(length)[:, None] + (mistake == "positions_off_by_one")
    angles = where / 10000 ** (np.arange(0, width, 2) / width)
    waves = [np.sin(angles), np.cos(angles)]
    layout = np.stack(waves, -1) if mistake == "sinusoid_layout" else np.concatenate(waves, -1)
    encoding = layout.reshape(length, width).astype(np.float32)
    x = t["encoding"] = x if mistake == "no_encoding" else x + encoding
    for n in range(config["num_layers"]):
        layer = f"layers.{n}"
        y = attention(f"{layer}.attention", norm(f"{layer}.norm1", x) if pre else x)
        t[f"{layer}.attention.output"] = y
        x = x + y if pre else norm(f"{layer}.norm1", x + y)
        y = linear(f"{layer}.feed_forward.up", norm(f"{layer}.norm2", x) if pre else x)
        y = t[f"{layer}.feed_forward.hidden"] = nnx.gelu(y, approximate=mistake == "gelu_tanh")
        y = linear(f"{layer}.feed_forward.down", y) + (0 if mistake == "residual_missing" else x)
        x = t[f"{layer}.output"] = y if pre else norm(f"{layer}.norm2", y)
    over = None if mask is None or mistake == "padding_pooled" else mask[..., None]
    t["pooled"] = jnp.mean(x, axis=1, where=over)
    return t | {"head": linear("head", t["pooled"])}
