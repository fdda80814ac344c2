"""The formulas in float64 NumPy, in paper order, each with its source. The referee of both wings,
which never import it.
"""

from pe_parity.reference.encoder import cross_entropy, encode, forward

__all__ = ["cross_entropy", "encode", "forward"]
