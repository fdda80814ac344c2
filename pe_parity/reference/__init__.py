"""The model in float64 NumPy, in paper order, each formula with its source: the standard for every
backend, none of which imports it.
"""

from pe_core.encodings import LearnedTable, Rotary, Shaw, Sinusoidal, T5Bias
from pe_parity.reference.additive import LearnedTableFormula, SinusoidalFormula
from pe_parity.reference.bias import T5BiasFormula
from pe_parity.reference.contextual import ShawFormula
from pe_parity.reference.encoder import cross_entropy, encode, forward
from pe_parity.reference.kinds import (
    Additive,
    Contextual,
    LogitBias,
    Positions,
    QueryKey,
    Steps,
    register,
)
from pe_parity.reference.rotary import RotaryFormula

register(LearnedTable, LearnedTableFormula())
register(Sinusoidal, SinusoidalFormula())
register(Rotary, RotaryFormula())
register(T5Bias, T5BiasFormula())
register(Shaw, ShawFormula())

__all__ = [
    "Additive",
    "Contextual",
    "LogitBias",
    "Positions",
    "QueryKey",
    "Steps",
    "cross_entropy",
    "encode",
    "forward",
    "register",
]
