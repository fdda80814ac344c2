"""Planted faults: small patches of the running code, each with the place where it must be caught.

They are what really goes wrong in ports between frameworks. A fault is caught when the first name
that leaves its budget is its place.
"""

from parity_tests.faults.encodings import ENCODING_FAULTS
from parity_tests.faults.exact import EXACT_FAULTS
from parity_tests.faults.fault import Fault, around, attribute
from parity_tests.faults.model import MODEL_FAULTS
from parity_tests.faults.steps import STEP_FAULTS

FAULTS = (*MODEL_FAULTS, *ENCODING_FAULTS, *STEP_FAULTS, *EXACT_FAULTS)

__all__ = ["FAULTS", "Fault", "around", "attribute"]
