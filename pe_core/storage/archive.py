"""`.npz` archives, read without unpickling and within a size, and written whole or not at all."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pe_core.errors import UserFileNotFoundError, UserValueError
from pe_core.storage.files import write_file


def read_archive(
    path: Path,
    check_names: Callable[[Sequence[str]], None] = lambda names: None,
    max_bytes: float = math.inf,
    object_remedies: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file in the order of the file.

    Args:
        path: the file.
        check_names: is called with the names before any array is read, and may raise.
        max_bytes: refuse an archive that would unpack to more, before it is unpacked.
        object_remedies: what to do about an array that holds Python objects, by its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an archive, is damaged or too large, or holds Python objects; the
            message names the file.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: no such file; check the path")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise UserValueError(
            f"{path}: not an .npz archive, or cut short, {_one_line(error)}; write it with "
            "numpy.savez"
        ) from None
    with archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        check_names(list(members))
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max_bytes:
            raise UserValueError(
                f"{path}: would unpack to {unpacked / 2**30:,.1f} GiB, more than "
                f"{max_bytes / 2**30:,.1f}; save less in one file"
            )
        return {
            name: _array(path, archive, name, member, object_remedies)
            for name, member in members.items()
        }


def write_archive(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` file whole or not at all, with the names in their order."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            # numpy.savez would take a name such as "file" for its own argument. A ZipInfo has no
            # clock: the same arrays, the same bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    write_file(path, content.getvalue())


def _array(
    path: Path,
    archive: zipfile.ZipFile,
    name: str,
    member: zipfile.ZipInfo,
    object_remedies: Mapping[str, str],
) -> np.ndarray:
    # The whole member is read first, so that its checksum is compared. Damaged bytes make the
    # parsers raise nearly anything.
    try:
        content = archive.read(member)
        _check_size(content)
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        if "allow_pickle" in str(error):
            remedy = object_remedies.get(name, "save it as numbers or strings")
            raise UserValueError(
                f"{path}: array {name} holds Python objects and is not unpickled; {remedy}"
            ) from None
        raise UserValueError(
            f"{path}: array {name} is damaged, {_one_line(error)}; write the file again with "
            "numpy.savez"
        ) from None
    return array


def _check_size(content: bytes) -> None:
    """Raise a ValueError if a header promises more numbers than follow it: NumPy would allocate
    them before it misses them.
    """
    stream = io.BytesIO(content)
    read_header = {
        1: np.lib.format.read_array_header_1_0,
        2: np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(stream)[0])
    if read_header is not None:
        shape, _, dtype = read_header(stream)
        needed, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
        if not dtype.hasobject and needed > there:
            raise UserValueError(f"its header says {needed:,} bytes, {there:,} are there")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
