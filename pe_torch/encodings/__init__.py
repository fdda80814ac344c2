"""Positional encodings as layers of their own, for this model or any other."""

from pe_torch.encodings.additive import LearnedTableEncoding, SinusoidalEncoding, make_encoding

__all__ = ["LearnedTableEncoding", "SinusoidalEncoding", "make_encoding"]
