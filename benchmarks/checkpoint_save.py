"""Measure a checkpoint of 4 MiB in milliseconds, from arrays in memory to names on the disk.

Run it with `python -m benchmarks.checkpoint_save [--folder FOLDER] [--rounds 30]`.

The saves are those of a run that has as many checkpoints as it keeps, so each removes the oldest.
For comparison, the same bytes are written to one new file and synced.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pe_core.storage.checkpoint import KEPT, Checkpoint, save_checkpoint
from pe_core.storage.tensors import tensor_bytes

BYTES, ARRAYS = 1 << 22, 32


def state() -> dict[str, np.ndarray]:
    """Return arrays of float32, 4 MiB together."""
    random = np.random.default_rng(0)
    return {
        f"param/{number}": random.normal(size=BYTES // ARRAYS // 4).astype(np.float32)
        for number in range(ARRAYS)
    }


def write_bare(path: Path, content: list[memoryview]) -> None:
    """Write one file, sync it, and nothing more."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Print the median and the worst."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", help="where to write; the system's folder for temporary files when not given"
    )
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    arrays = state()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder)
        saves = [
            milliseconds(
                partial(save_checkpoint, path / "checkpoints", Checkpoint(step, arrays, {}))
            )
            for step in range(KEPT + options.rounds)
        ]
        content = [tensor_bytes(array) for array in arrays.values()]
        bare = [
            milliseconds(partial(write_bare, path / "bare", content))
            for _ in range(1 + options.rounds)
        ]
        print(
            f"a checkpoint of {BYTES / 2**20:g} MiB in {ARRAYS} arrays, in {path.parent}, over "
            f"{options.rounds} saves"
        )
        for what, found in (
            ("saves", saves[KEPT:]),
            ("the bare disk", bare[1:]),
        ):
            print(
                f"{what:<14} median {statistics.median(found):6.2f} ms, worst {max(found):6.2f} ms"
            )


if __name__ == "__main__":
    main()
