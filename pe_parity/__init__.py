"""Compare implementations of one model: traces, budgets, comparisons, reports. Works on named
arrays and imports no framework.
"""

from pe_parity.budgets import BUDGETS, Budget, budget, distance
from pe_parity.compare import Comparison, Row, compare
from pe_parity.trace import Trace, moved_arrays, reference_trace, trace

__all__ = [
    "BUDGETS",
    "Budget",
    "Comparison",
    "Row",
    "Trace",
    "budget",
    "compare",
    "distance",
    "moved_arrays",
    "reference_trace",
    "trace",
]
