"""A port to torch.nn.functional: attention by hand, every intermediate under its name."""

from typing import Any

import torch
import torch.nn.functional as F

from parity_tests.cases import small_config
from pe_core.encodings import LearnedTable
from pe_core.model.config import Features

CONFIG = small_config(inputs=Features(7), d_model=18, encodings=(LearnedTable(13),))


def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    x, t = torch.from_numpy(inputs), {}
    (batch, length, _), width, heads = x.shape, config["d_model"], config["num_heads"]
    real = None if mask is None else torch.from_numpy(mask)
    post = mistake == "post_for_pre"

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        epsilon = 1e-6 if mistake == "norm_epsilon" else 1e-5
        t[name] = F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], epsilon)
        return t[name]

    def split(x: torch.Tensor) -> torch.Tensor:
        if mistake == "split_without_transpose":
            return x.reshape(batch, heads, length, width // heads)
        return x.view(batch, length, heads, width // heads).transpose(1, 2)

    x = t["input"] = linear("input", x) * (width**0.5 if mistake == "input_scale" else 1)
    if mistake != "no_encoding":
        x = x + w["encodings.0.table"][torch.arange(length) + (mistake == "positions_off_by_one")]
    t["encoding"] = x
    for n in range(config["num_layers"]):
        layer, at = f"layers.{n}", f"layers.{n}.attention"
        q, k, v = linear(f"{at}.qkv", x if post else norm(f"{layer}.norm1", x)).chunk(3, dim=-1)
        if mistake == "qkv_order":
            q, v, k = q, k, v
        q, k, v = t[f"{at}.query"], t[f"{at}.key"], t[f"{at}.value"] = split(q), split(k), split(v)
        scales = {"scale_missing": 1.0, "scale_by_d_model": width**-0.5}
        logits = q @ k.transpose(-2, -1) * scales.get(mistake or "", (width // heads) ** -0.5)
        t[f"{at}.logits"] = logits
        if real is not None and mistake != "mask_ignored":
            hidden = real if mistake == "mask_inverted" else ~real
            logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
        t[f"{at}.weights"] = logits.softmax(-1)
        mixed = t[f"{at}.mixed"] = t[f"{at}.weights"] @ v
        mixed = mixed if mistake == "merged_without_transpose" else mixed.transpose(1, 2)
        out = w[f"{at}.out.weight"].T if mistake == "weight_transposed" else w[f"{at}.out.weight"]
        bias = None if mistake == "bias_missing" else w[f"{at}.out.bias"]
        a = t[f"{at}.output"] = F.linear(mixed.reshape(batch, length, width), out, bias)
        x = a if mistake == "attention_residual_missing" else x + a
        x = norm(f"{layer}.norm1", x) if post else x
        h = linear(f"{layer}.feed_forward.up", x if post else norm(f"{layer}.norm2", x))
        h = F.gelu(h, approximate="tanh" if mistake == "gelu_tanh" else "none")
        t[f"{layer}.feed_forward.hidden"], h = h, linear(f"{layer}.feed_forward.down", h)
        t[f"{layer}.feed_forward.output"] = h
        x = h if mistake == "residual_missing" else x + h
        x = t[f"{layer}.output"] = norm(f"{layer}.norm2", x) if post else x
    x = x if mistake == "missing_final_norm" else norm("norm", x)
    if real is None or mistake == "padding_pooled":
        t["pooled"] = x.mean(1)
    else:
        t["pooled"] = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return t | {"head": linear("head", t["pooled"])}
