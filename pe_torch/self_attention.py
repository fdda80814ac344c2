"""Self-attention with positional encodings as a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from pe_core.encodings import EncodingOptions, Sizes, as_encodings
from pe_core.model.config import ComputeConfig
from pe_core.model.initial import draw
from pe_core.model.inputs import check_attention_call, check_attention_options, has_table
from pe_core.model.parameters import attention_parameters
from pe_torch.attention import Attention
from pe_torch.call import Call
from pe_torch.dropout import Masks
from pe_torch.encodings import make_encoding
from pe_torch.encodings.kinds import bare
from pe_torch.layers import random_seed
from pe_torch.layout import as_arrays, as_batch_first, describe, described, put_arrays
from pe_torch.positions import as_segments, locate, real_steps


class SelfAttention(Attention):
    """Multi-head self-attention in which positional encodings act, for a model of one's own.

    An additive encoding is added to what attention reads.

    Args:
        d_model: width of a step.
        num_heads: attention heads; divides d_model.
        encodings: options of the encodings that act here.
        bias: biases on query, key and value.
        dropout: rate on the attention weights, drawn from torch's generator.
        seed: of the initial parameters; torch's own generator draws them when None.
        compute: how it is computed.
        batch_first: False takes and gives (length, batch, d_model), as `torch.nn.Transformer` does
            by default; positions, mask and segment_ids stay (batch, length).

    Example:
        >>> import torch
        >>> from pe_torch import Rotary, SelfAttention, T5Bias
        >>> attention = SelfAttention(32, 4, encodings=(Rotary(), T5Bias()))
        >>> attention(torch.zeros(2, 10, 32)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        encodings: Sequence[EncodingOptions] = (),
        bias: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        compute: ComputeConfig | None = None,
        batch_first: bool = True,
    ) -> None:
        sizes, compute = Sizes(d_model, num_heads), compute or ComputeConfig()
        encodings = as_encodings(encodings)
        check_attention_options(sizes, encodings, dropout)
        super().__init__(sizes, bias=bias, compute=compute)
        self.dropout = float(dropout)
        self.batch_first = batch_first
        seed = random_seed() if seed is None else seed
        self.encodings = nn.ModuleList(
            make_encoding(item, sizes, seed=seed, compute=compute)._for_layer(0)
            for item in encodings
        )
        # Drawn by the names here: two encodings of one kind start apart.
        put_arrays(self, draw(attention_parameters(sizes, encodings, bias=bias), seed))

    def forward(  # type: ignore[override]  # a layer alone makes the call that a model shares
        self,
        x: Float[Tensor, "batch length d_model"],
        *,
        mask: Bool[Tensor, "batch length"] | None = None,
        positions: Num[Tensor, "*batch length"] | None = None,
        segment_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length d_model"]:
        """Return the attended steps, in the dtype of x.

        Args:
            x: steps.
            mask: True for real steps; None when all are.
            positions: (length,) or (batch, length), integer or floating point; counted per sequence
                when None.
            segment_ids: for packed sequences, runs of equal numbers, 0 for padding.

        Raises:
            UserValueError, UserTypeError: one line with the rule, the value and the remedy.
        """
        as_arrays(x=x, mask=mask, positions=positions, segment_ids=segment_ids)
        x = as_batch_first(x, self.batch_first)
        encodings = [bare(item) for item in self.encodings]
        options = [item.options for item in encodings]
        check_attention_call(
            options,
            self.sizes,
            described(x),
            describe(mask),
            describe(positions),
            describe(segment_ids),
        )
        segment_ids = as_segments(segment_ids)
        real = real_steps(mask, segment_ids)
        if real is not None:
            # What padding holds cannot reach a real step.
            x = x.masked_fill(~real[..., None], 0.0)
        drops = self.training and self.dropout > 0.0
        masks = Masks(self.dropout, [], native=True) if drops else None
        steps = locate(x, positions, real, segment_ids, by_table=has_table(options))
        call = Call(steps, real, masks)
        return as_batch_first(super().forward(x, call, encodings).to(x.dtype), self.batch_first)
