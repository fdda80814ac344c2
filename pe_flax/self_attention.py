"""Self-attention with positional encodings as a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Num

from pe_core.encodings import EncodingOptions, Sizes, as_encodings
from pe_core.errors import UserTypeError
from pe_core.model.config import ComputeConfig
from pe_core.model.dropout_places import count_places
from pe_core.model.inputs import check_attention_call, check_attention_options, has_table
from pe_core.model.parameters import attention_parameters
from pe_flax.attention import Attention
from pe_flax.call import Call
from pe_flax.dropout import Masks
from pe_flax.encodings import make_encoding
from pe_flax.layers import fill_parameters
from pe_flax.layout import as_arrays, describe, described
from pe_flax.positions import as_segments, locate, real_steps


class SelfAttention(Attention):
    """Multi-head self-attention in which positional encodings act, for a model of one's own.

    An additive encoding is added to what attention reads.

    Args:
        d_model: width of a step.
        num_heads: attention heads; divides d_model.
        encodings: options of the encodings that act here.
        bias: biases on query, key and value.
        dropout: rate on the attention weights, drawn from the stream `dropout` of rngs.
        seed: of the initial parameters.
        rngs: its stream `params` draws the initial parameters where there is no seed.
        compute: how it is computed.

    Example:
        >>> import jax.numpy as jnp
        >>> from pe_flax import Rotary, SelfAttention, T5Bias
        >>> attention = SelfAttention(32, 4, encodings=(Rotary(), T5Bias()), seed=0)
        >>> attention(jnp.zeros((2, 10, 32))).shape
        (2, 10, 32)
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
        rngs: nnx.Rngs | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        sizes, compute = Sizes(d_model, num_heads), compute or ComputeConfig()
        encodings = as_encodings(encodings)
        check_attention_options(sizes, encodings, dropout)
        super().__init__(sizes, bias=bias, compute=compute)
        self.dropout = float(dropout)
        self.encodings = nnx.List(
            make_encoding(item, sizes, seed=seed, rngs=rngs, compute=compute)._for_layer(0)
            for item in encodings
        )
        parameters = attention_parameters(sizes, encodings, bias=bias)
        fill_parameters(self, parameters, seed, rngs)
        if dropout > 0.0 and rngs is None:
            raise UserTypeError(f"dropout={dropout} needs random numbers; pass rngs=nnx.Rngs(0)")
        self.rngs = rngs.fork() if rngs is not None and dropout > 0.0 else None
        self.deterministic = False

    def __call__(
        self,
        x: Float[Array, "batch length d_model"],
        mask: Bool[Array, "batch length"] | None = None,
        positions: Num[Array, "*batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length d_model"]:
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
        x, mask, positions, segment_ids = as_arrays(
            x=x, mask=mask, positions=positions, segment_ids=segment_ids
        )
        encodings = list(self.encodings)
        options = [item.options for item in encodings]
        check_attention_call(
            options,
            self.sizes,
            described(x),
            describe(mask),
            describe(positions),
            describe(segment_ids),
        )
        x, segment_ids = jnp.asarray(x), as_segments(segment_ids)
        real = real_steps(mask, segment_ids)
        if real is not None:
            # What padding holds cannot reach a real step.
            x = jnp.where(real[..., None], x, jnp.zeros((), x.dtype))
        masks = None
        if self.rngs is not None and not self.deterministic:
            words = jax.random.bits(self.rngs.dropout(), (count_places(1), 2), jnp.uint32)
            masks = Masks(self.dropout, words)
        steps = locate(x, positions, real, segment_ids, by_table=has_table(options))
        call = Call(steps, real, masks)
        return self._attend(x, call, encodings).astype(x.dtype)
