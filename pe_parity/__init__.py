"""Comparing, as a library: traces, budgets, comparisons and reports. Knows arrays and names, not
frameworks.
"""

from pe_parity.budgets import BUDGETS, Budget, budget
from pe_parity.compare import Comparison, Row, compare, distance
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
