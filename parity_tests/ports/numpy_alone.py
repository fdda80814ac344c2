"""A port to NumPy alone, after docs/divergence.md; logits traced."""

import math
from typing import Any

import numpy as np

from parity_tests.cases import small_config
from pe_core.encodings import LearnedTable

CONFIG = small_config(d_model=21, encodings=(LearnedTable(11),), attention_bias=True)
erf = np.vectorize(math.erf, otypes=[np.float32])


def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    t, post, (batch, length, _) = {}, mistake == "post_for_pre", inputs.shape
    width, heads = config["d_model"], config["num_heads"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        epsilon = 1e-6 if mistake == "norm_epsilon" else 1e-5
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        if mistake == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))

    if mistake == "weight_transposed":
        weights |= {name: a.T for name, a in weights.items() if name.endswith("out.weight")}
    if mistake == "bias_missing":
        weights |= {name: 0 * a for name, a in weights.items() if name.endswith("qkv.bias")}
    x = t["input"] = linear("input", inputs)
    x = x * np.float32(width**0.5 if mistake == "input_scale" else 1)
    table = weights["encodings.0.table"][1 if mistake == "positions_off_by_one" else 0 :]
    x = t["encoding"] = x if mistake == "no_encoding" else x + table[:length]
    for n in range(config["num_layers"]):
        layer, at = f"layers.{n}", f"layers.{n}.attention"
        qkv = linear(f"{at}.qkv", x if post else norm(f"{layer}.norm1", x))
        if mistake == "split_without_transpose":
            query, key, value = (a.reshape(batch, heads, length, -1) for a in np.split(qkv, 3, -1))
        else:
            qkv = qkv.reshape(batch, length, 3, heads, -1)
            query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        if mistake == "qkv_order":
            query, key, value = key, query, value
        scales = {"scale_missing": 1, "scale_by_d_model": math.sqrt(width)}
        scale = scales.get(mistake or "", math.sqrt(width // heads))
        logits = t[f"{at}.logits"] = query @ key.swapaxes(2, 3) / np.float32(scale)
        if mask is not None and mistake != "mask_ignored":
            seen = ~mask if mistake == "mask_inverted" else mask
            logits = np.where(seen[:, None, None], logits, np.float32(-1e9))
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = powers / powers.sum(-1, keepdims=True) @ value
        mixed = mixed if mistake == "merged_without_transpose" else mixed.swapaxes(1, 2)
        x = x + linear(f"{at}.out", mixed.reshape(batch, length, width))
        x = norm(f"{layer}.norm1", x) if post else x
        y = linear(f"{layer}.feed_forward.up", x if post else norm(f"{layer}.norm2", x))
        y = t[f"{layer}.feed_forward.hidden"] = gelu(y)
        y = linear(f"{layer}.feed_forward.down", y)
        x = y if mistake == "residual_missing" else x + y
        x = t[f"{layer}.output"] = norm(f"{layer}.norm2", x) if post else x
    x = x if mistake == "missing_final_norm" else norm("norm", x)
    whole = mask is None or mistake == "padding_pooled"
    t["pooled"] = x.mean(1) if whole else x.mean(1, where=mask[..., None])
    return t | {"head": linear("head", t["pooled"])}
