"""What a checkpoint of 4 MiB costs, in milliseconds, from arrays in memory to names on the disk.

Run it with `python -m benchmarks.checkpoint_save [--folder FOLDER] [--rounds 30]`.

The first saves need new room on the disk; later ones write over the oldest checkpoint, as in a run
that goes on for a while. Beside them, what the bare disk takes: the same bytes written over a file,
and synced.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pe_core.storage.checkpoint import KEPT, Checkpoint, save_checkpoint
from pe_core.storage.files import write_synced
from pe_core.storage.tensors import array_bytes

BYTES, ARRAYS = 1 << 22, 32


def state() -> dict[str, np.ndarray]:
    """Return arrays of float32, 4 MiB together."""
    random = np.random.default_rng(0)
    return {
        f"param/{number}": random.normal(size=BYTES // ARRAYS // 4).astype(np.float32)
        for number in range(ARRAYS)
    }


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
        content = [array_bytes(array) for array in arrays.values()]
        bare = [
            milliseconds(lambda: write_synced(path / "bare", *content))
            for _ in range(1 + options.rounds)
        ]
        print(
            f"a checkpoint of {BYTES / 2**20:g} MiB in {ARRAYS} arrays, in {path.parent}, over "
            f"{options.rounds} saves"
        )
        for what, found in (
            ("first saves", saves[:KEPT]),
            ("later saves", saves[KEPT:]),
            ("the bare disk", bare[1:]),
        ):
            print(
                f"{what:<14} median {statistics.median(found):6.2f} ms, worst {max(found):6.2f} ms"
            )


if __name__ == "__main__":
    main()
