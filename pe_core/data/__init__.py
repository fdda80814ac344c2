"""Data: sequences with masks and labels, seeded tasks, file readers, standardisation, and batches
in a reproducible order.
"""

from pe_core.data.batching import Batch, batch_at, batches, epoch_order, steps_per_epoch
from pe_core.data.dataset import Dataset
from pe_core.data.loading import DATA_NAMES, load, read
from pe_core.data.npz import Layout
from pe_core.data.plausibility import DataWarning
from pe_core.data.positions import UseOfPositions
from pe_core.data.sequences import Sequences
from pe_core.data.standardisation import Standardisation
from pe_core.data.tasks import digits, dummy, order, order_markers, swapped

__all__ = [
    "DATA_NAMES",
    "Batch",
    "DataWarning",
    "Dataset",
    "Layout",
    "Sequences",
    "Standardisation",
    "UseOfPositions",
    "batch_at",
    "batches",
    "digits",
    "dummy",
    "epoch_order",
    "load",
    "order",
    "order_markers",
    "read",
    "steps_per_epoch",
    "swapped",
]
