"""`pe list`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields

from pe_core.cli.reporting import console
from pe_core.cli.wing import missing_packages, versions
from pe_core.config import FRAMEWORKS
from pe_core.data import DATA_NAMES
from pe_core.encodings import ENCODINGS


@dataclass(frozen=True)
class ListOptions:
    """`pe list` has no options."""


def run(options: ListOptions) -> int:
    """Print the encodings with their options, the built-in data and the frameworks."""
    console.print("encodings")
    console.print("  none\n      The model without positions.")
    for name, kind in ENCODINGS.items():
        choices = [f"{field.name}={field.default}" if field.default is not MISSING else field.name for field in fields(kind)]
        console.print(f"  {name}:{','.join(choices)}\n      {(inspect.getdoc(kind) or '').splitlines()[0]}", markup=False)
    console.print(f"data\n  {', '.join(DATA_NAMES)}, or a file ending in .npz or .ts")
    console.print("frameworks")
    found = versions()
    for framework in FRAMEWORKS:
        missing = missing_packages(framework)
        package = {"torch": "torch", "flax": "jax"}[framework]
        state = f"{package} {found.get(package)}" if not missing else f"not installed: pip install 'positional-encoding[{framework}]'"
        console.print(f"  {framework}: {state}", markup=False)
    return 0
