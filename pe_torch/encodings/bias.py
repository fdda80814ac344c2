"""Encodings that add a bias to the logits; formulas and sources in
`pe_parity/reference/bias.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pe_core.encodings import T5Bias
from pe_torch.encodings.kinds import LogitBias


class T5BiasEncoding(LogitBias):
    """A trained bias per head and bucket of offsets.

    Example:
        >>> import torch
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> from pe_torch import T5Bias, T5BiasEncoding
        >>> encoding = T5BiasEncoding(T5Bias(), num_heads=4)
        >>> bias = encoding.bias(torch.arange(10), torch.arange(12))
        >>> bias.shape
        torch.Size([4, 10, 12])
        >>> query, key = torch.ones(2, 4, 10, 8), torch.ones(2, 4, 12, 8)
        >>> scaled_dot_product_attention(query, key, key, attn_mask=bias).shape
        torch.Size([2, 4, 10, 8])
    """

    options_type = T5Bias
    table: nn.Parameter

    def of(self, offset: Tensor) -> Tensor:
        """Return the bias of each offset, key minus query, (heads, *offset.shape)."""
        boundaries = torch.tensor(self.options.boundaries(), device=offset.device)
        bucket = torch.bucketize(offset.abs(), boundaries, right=True)
        bucket = bucket + (offset > 0) * (self.options.num_buckets // 2)
        found = self.table[:, bucket]
        if not offset.dtype.is_floating_point:
            return found
        # A step that stands nowhere, seen where nobody could look, must not get any bucket.
        return torch.where(offset.isfinite(), found, torch.nan)
