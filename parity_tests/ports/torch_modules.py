"""A port to torch.nn modules: nn.MultiheadAttention, max pooling; attention inside not traced.

nn.MultiheadAttention splits, scales and merges by itself. What can go wrong there instead: scaled
twice, batch_first forgotten.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from parity_tests.cases import small_config
from pe_core.encodings import LearnedTable

CONFIG = small_config(d_model=15, encodings=(LearnedTable(12),), attention_bias=True, pooling="max")


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inside: int, mistake: str | None) -> None:
        super().__init__()
        epsilon, batch_first = 1e-6 if mistake == "norm_epsilon" else 1e-5, mistake != "batch_first"
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        gelu = nn.GELU("tanh" if mistake == "gelu_tanh" else "none")
        self.ff = nn.Sequential(nn.Linear(width, inside), gelu, nn.Linear(inside, width))
        self.mistake = mistake

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        y = x if self.mistake == "post_for_pre" else self.norm1(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        if self.mistake == "post_for_pre":
            x = self.norm1(x)
            return self.norm2(x + self.ff(x))
        return self.ff(self.norm2(x)) + (0 if self.mistake == "residual_missing" else x)


@torch.no_grad()
def taps(config: Any, weights: Any, inputs: Any, mask: Any, mistake: str | None = None) -> Any:
    width, heads, inside = config["d_model"], config["num_heads"], config["d_ff"]
    layers = [Block(width, heads, inside, mistake) for _ in range(config["num_layers"])]
    layers = layers[:1] * len(layers) if mistake == "layers_shared" else layers
    project, head = nn.Linear(inputs.shape[-1], width), nn.Linear(width, config["num_classes"])
    final = nn.LayerNorm(width, 1e-6 if mistake == "norm_epsilon" else 1e-5)
    named = {"input": project, "layers": nn.ModuleList(layers), "norm": final, "head": head}
    state = {}
    for name, array in weights.items():
        if ".qkv." in name:
            q, k, v = np.split(array, 3)
            q = q / np.float32(width / heads) ** 0.5 if mistake == "scale_twice" else q
            array = np.concatenate([q, v, k] if mistake == "qkv_order" else [q, k, v])
        array = array.T if mistake == "weight_transposed" and name.endswith("out.weight") else array
        name = name.replace("qkv.", "in_proj_").replace("out.", "out_proj.")
        name = name.replace("feed_forward.up", "ff.0").replace("feed_forward.down", "ff.2")
        if mistake != "bias_missing" or not name.endswith("in_proj_bias"):
            state[name] = torch.from_numpy(array)
    nn.ModuleDict(named).load_state_dict(state, strict=False)

    padding = None if mask is None else ~torch.from_numpy(mask)
    t = {"input": project(torch.from_numpy(inputs))}
    x = t["input"] * (width**0.5 if mistake == "input_scale" else 1)
    table = state["encodings.0.table"][1 if mistake == "positions_off_by_one" else 0 :]
    x = t["encoding"] = x if mistake == "no_encoding" else x + table[: x.shape[1]]
    ignored = None if padding is None or mistake == "mask_ignored" else padding
    if ignored is not None and mistake in ("mask_inverted", "batch_first"):
        ignored = ~ignored if mistake == "mask_inverted" else ignored.T
    for n, layer in enumerate(layers):
        x = t[f"layers.{n}.output"] = layer(x, ignored)
    x = x if mistake == "missing_final_norm" else final(x)
    if padding is not None and mistake != "padding_pooled":
        x = x.masked_fill(padding[..., None], float("-inf"))
    t["pooled"] = x.max(1).values
    return t | {"head": head(t["pooled"])}
