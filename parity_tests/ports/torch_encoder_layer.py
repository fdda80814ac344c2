"""A port to nn.TransformerEncoderLayer: tokens, sinusoids, a cls step; only its outputs traced.

The layer splits, scales, merges and adds by itself. Instead: scaled twice, batch_first forgotten,
one layer in all places; the mean in place of the cls step.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.cases import small_config
from pe_core.encodings import Sinusoidal
from pe_core.model.config import Tokens

CONFIG = small_config(inputs=Tokens(23), num_classes=5, encodings=(Sinusoidal(),), pooling="cls")
NAMES = {"attention.qkv.weight": "self_attn.in_proj_weight", "attention.out": "self_attn.out_proj"}
NAMES |= {"feed_forward.up": "linear1", "feed_forward.down": "linear2"}


@torch.no_grad()
def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    width, heads, layers = config["d_model"], config["num_heads"], []
    options: dict[str, Any] = {
        "activation": "relu" if mistake == "relu" else "gelu",
        "layer_norm_eps": 1e-12 if mistake == "norm_epsilon_bert" else 1e-5,
        "batch_first": mistake != "batch_first",
        "norm_first": mistake != "post_for_pre",
        "bias": mistake != "no_biases",
    }
    for n in range(config["num_layers"]):
        layer = nn.TransformerEncoderLayer(width, heads, config["d_ff"], **options).eval()
        start = f"layers.{n}."
        state = {key.removeprefix(start): a for key, a in w.items() if key.startswith(start)}
        q, k, v = state["attention.qkv.weight"].chunk(3)
        q = q / math.sqrt(width // heads) if mistake == "scale_twice" else q
        state["attention.qkv.weight"] = torch.cat(
            [q, v, k] if mistake == "qkv_order" else [q, k, v]
        )
        if mistake == "weight_transposed":
            state["attention.out.weight"] = state["attention.out.weight"].T
        for ours, theirs in NAMES.items():
            state = {key.replace(ours, theirs): array for key, array in state.items()}
        layer.load_state_dict(state, strict=False)
        layers.append(layer)
    layers = layers[-1:] * len(layers) if mistake == "layers_shared" else layers

    x = w["input.table"][torch.from_numpy(inputs)]
    x = x * (math.sqrt(width) if mistake == "input_scale" else 1)
    x = torch.cat([w["cls"].expand(len(x), 1, width), x], dim=1)
    where = torch.arange(x.shape[1])[:, None] - (0 if mistake == "cls_has_position" else 1)
    angle = where * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    waves = [angle.sin(), angle.cos()]
    layout = torch.cat(waves, -1) if mistake == "sinusoid_layout" else torch.stack(waves, -1)
    encoding = layout.reshape(-1, width)
    encoding[0] *= 1 if mistake == "cls_has_position" else 0
    x = x if mistake == "no_encoding" else x + encoding
    padding = None
    if mask is not None and mistake != "mask_ignored":
        padding = F.pad(torch.from_numpy(mask), (1, 0), value=True)
        padding = padding if mistake == "mask_inverted" else ~padding
        padding = padding.T if mistake == "batch_first" else padding
    t = {}
    for n, layer in enumerate(layers):
        x = t[f"layers.{n}.output"] = layer(x, src_key_padding_mask=padding)
    if mistake != "missing_final_norm":
        x = F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], layer.norm1.eps)
    t["pooled"] = x.mean(1) if mistake == "mean_for_cls" else x[:, 0]
    return t | {"head": F.linear(t["pooled"], w["head.weight"], w["head.bias"])}
