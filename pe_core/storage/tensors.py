"""Files of tensors in the safetensors format, written with a SHA-256 of each tensor and read
strictly: all that a header claims is compared with the file before any array is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.errors import UserValueError
from pe_core.storage.files import DamagedError, require_plain, write_parts
from pe_core.storage.strict_json import MAX_JSON_BYTES, parse_json

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}
CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
METADATA: Final = "__metadata__"
ENTRY: Final = {"dtype", "shape", "data_offsets"}
# What NumPy can hold.
MAX_AXES: Final = 32
MAX_SIZE: Final = 1 << 62


@dataclass(frozen=True)
class TensorFile:
    """A file whose header is in order.

    Args:
        path: the file.
        shapes: of the tensors, by name.
        metadata: texts in the header; of our files, the SHA-256 of each tensor by its name.
        header_digest: the SHA-256 of the header, which through the digests vouches for the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    header_digest: str
    _places: dict[str, tuple[np.dtype[Any], int]]

    def read(self) -> dict[str, np.ndarray]:
        """Return the tensors as they are in the file; `require_digests` checks them."""
        arrays = {}
        with self.path.open("rb") as file:
            for name, (dtype, place) in self._places.items():
                shape = self.shapes[name]
                file.seek(place)
                arrays[name] = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
        return arrays


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write tensors to a new file and return the SHA-256 of its header.

    The arrays go to the file as they lie in memory: a copy of a large state costs more than its
    digest.

    Raises:
        ValueError: an array is of another dtype than float32, float64 and int64.
    """
    # The format has no strides: memory in another order would be read as if it were in this one.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in contiguous.items():
        if array.dtype not in CODES:
            raise UserValueError(
                f"{name} has dtype {array.dtype}; convert it to float32, float64 or int64"
            )
    # Wide numbers first, so that each tensor lies at a multiple of its width.
    order = sorted(contiguous, key=lambda name: (-contiguous[name].itemsize, name))
    header: dict[str, Any] = {METADATA: {name: tensor_digest(contiguous[name]) for name in order}}
    end = 0
    for name in order:
        array = contiguous[name]
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    payload = (tensor_bytes(contiguous[name]) for name in order)
    write_parts(path, [struct.pack("<Q", len(text)), text, *payload])
    return hashlib.sha256(text).hexdigest()


def open_tensors(path: Path) -> TensorFile:
    """Read the header of a file and check all that it says: the tensors lie end to end and fill the
    file.

    Raises:
        DamagedError: which field or tensor is wrong.
    """
    require_plain(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise DamagedError(f"{path} is damaged: {len(prefix)} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_JSON_BYTES, size - 8):
            raise DamagedError(f"{path} is damaged: it claims a header of {length} bytes")
        text = file.read(length)
    header = parse_json(text, path)
    if not isinstance(header, dict):
        raise DamagedError(f"{path} is damaged: its header is not an object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise DamagedError(
            f"{path} is damaged: {METADATA} is {str(metadata)[:80]}, not texts by name"
        )
    layout = {name: _entry(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, first, last) in sorted(layout.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise DamagedError(
                f"{path} is damaged: {name[:80]} begins at byte {first}, not at {end}"
            )
        end = last
    start = 8 + length
    if size != start + end:
        raise DamagedError(f"{path} is damaged: it is {size} bytes, not {start + end}")
    shapes = {name: shape for name, (_, shape, _, _) in layout.items()}
    places = {name: (dtype, start + first) for name, (dtype, _, first, _) in layout.items()}
    return TensorFile(path, shapes, metadata, hashlib.sha256(text).hexdigest(), places)


def require_digests(
    path: Path, arrays: Mapping[str, np.ndarray], digests: Mapping[str, str]
) -> None:
    """Raise a DamagedError that names the first tensor that is not the one that was saved."""
    for name, array in arrays.items():
        if digests.get(name) != tensor_digest(array):
            raise DamagedError(
                f"{path} is damaged (the SHA-256 of {name} is not the one it was saved with); "
                "restore it from a copy"
            )


def require_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a DamagedError that names the first tensor with NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DamagedError(
                f"{path}: {name} holds NaN or infinity; restore it from a copy or train again"
            )


def tensor_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    sha = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    sha.update(tensor_bytes(array))
    return sha.hexdigest()


def tensor_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array, without a copy if it is contiguous."""
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Return dtype, shape, first and last byte of a tensor."""
    what = f"{path} is damaged: {name[:80]}"
    if not isinstance(entry, dict) or set(entry) != ENTRY:
        raise DamagedError(f"{what} is not described by dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise DamagedError(
            f"{what} has dtype {str(entry['dtype'])[:40]}, known are {', '.join(DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _sizes(shape):
        raise DamagedError(f"{what} has shape {str(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise DamagedError(f"{what} has data_offsets {str(offsets)[:80]}")
    first, last = offsets
    if last - first != dtype.itemsize * math.prod(shape):
        raise DamagedError(
            f"{what} takes {last - first} bytes, but {entry['dtype']} of shape {str(shape)[:80]} "
            "is another number"
        )
    return dtype, tuple(shape), first, last


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_AXES
        and all(type(item) is int and 0 <= item < MAX_SIZE for item in value)
    )
