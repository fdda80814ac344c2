"""Try the diagnosis on every port and mistake: `python -m parity_tests.ports.trial [PORT ...]`."""

import sys

import numpy as np

from parity_tests.ports import EXPECTED, PORTS, Port
from pe_core.training.config import TrainConfig
from pe_parity.compare import compare
from pe_parity.diagnose import diagnose
from pe_parity.padding import without_padding
from pe_parity.probe_inputs import probe_arrays, probe_batches
from pe_parity.trace import reference_trace
from pe_parity.trace_file import Given


def answer(port: Port, mistake: str | None, *, masked: bool) -> tuple[str, list[str]]:
    """Return the first name out of bounds, "" if none, and what the diagnosis says."""
    batch = probe_batches(port.config, TrainConfig(), 1, masked=masked)[0]
    given = Given(port.config, probe_arrays(port.config), batch.inputs, batch.mask)
    right = reference_trace(port.config, given.weights, batch)
    copies = {name: array.copy() for name, array in given.weights.items()}
    traced = port.taps(port.config.to_json(), copies, batch.inputs.copy(), batch.mask, mistake)
    found = {name: np.asarray(array) for name, array in traced.items() if name in right}
    right = {name: array for name, array in right.items() if name in found}
    right, found = (without_padding(one, batch.mask) for one in (right, found))
    with np.errstate(all="ignore"):
        first = compare(right, {"port": found}, "float32").first_failure
        if first is None:
            return "", []
        diagnosis = diagnose(right, found, given, "float32")
    lines = [f"{one.name}: {one.text}" for one in diagnosis.findings]
    if diagnosis.checked is not None:
        lines.append(f"({diagnosis.checked} of {diagnosis.total} names accounted for)")
    return first.name, lines


def main() -> None:
    for masked in (True, False):
        for name in sys.argv[1:] or PORTS:
            for mistake in (None, *PORTS[name].mistakes):
                first, lines = answer(PORTS[name], mistake, masked=masked)
                place, words = EXPECTED[mistake] if mistake else ("nothing", "a right port")
                print(f"{name} {mistake or ''}, {'masked' if masked else 'not masked'}")
                print(f"  expected {place}: {words}\n  first {first or 'none'}")
                print(*(f"    {line}\n" for line in lines), sep="", end="", flush=True)


if __name__ == "__main__":
    main()
