"""Traces in files: the named arrays, what went into the model, and how they were made, in an `.npz`
that NumPy reads.

Every name in the file is an array of the trace, except `__about__` (JSON as bytes), `given/inputs`,
`given/mask` and `given/weights/<parameter>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from pe_core.errors import UserValueError
from pe_core.model.config import ModelConfig, Tokens
from pe_core.model.inputs import Described, check_call
from pe_core.model.parameters import parameters
from pe_core.model.values import require_positions_fit, require_tokens_fit
from pe_core.storage.archive import read_archive, write_archive
from pe_core.storage.model_directory import check_arrays
from pe_parity.budgets import PRECISIONS
from pe_parity.trace import Trace

ABOUT: Final = "__about__"
GIVEN: Final = "given/"
WEIGHTS: Final = "weights/"
FORMAT: Final = 1
# Far more than any trace of a model that fits a test.
MAX_BYTES: Final = 8 << 30
# Precisions that have budgets.
COMPARED: Final = PRECISIONS


@dataclass(frozen=True, eq=False)
class Given:
    """What went into a model.

    Args:
        config: what the model is.
        weights: under their canonical names.
        inputs: features or tokens.
        mask: True for real steps; None without padding.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    inputs: np.ndarray
    mask: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TraceFile:
    """A trace and its provenance.

    Args:
        path: where it was read from or is written to.
        trace: the named arrays.
        given: what went into the model; None where the file does not say.
        precision: of the computation; None where the file does not say.
        about: implementation, seed, depth and versions.
    """

    path: Path
    trace: Trace
    given: Given | None = None
    precision: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def write_trace(file: TraceFile) -> None:
    """Write a trace, completely or not at all."""
    about = {"format": FORMAT, "precision": file.precision, **file.about}
    arrays: dict[str, np.ndarray] = {}
    if file.given is not None:
        about["model"] = file.given.config.to_json()
        masks = {} if file.given.mask is None else {f"{GIVEN}mask": file.given.mask}
        weights = {f"{GIVEN}{WEIGHTS}{name}": array for name, array in file.given.weights.items()}
        arrays = {f"{GIVEN}inputs": file.given.inputs} | masks | weights
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    write_archive(file.path, {ABOUT: text} | arrays | file.trace)


def read_trace(path: Path) -> TraceFile:
    """Read a trace. A file without `__about__`, as numpy.savez writes it, has no provenance.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no archive, damaged, of another format, or arrays that are no numbers; names the
        file.
    """
    arrays = read_archive(path, max_bytes=MAX_BYTES)
    trace = {
        name: array
        for name, array in arrays.items()
        if name != ABOUT and not name.startswith(GIVEN)
    }
    if not trace:
        raise UserValueError(
            f"{path}: holds no named arrays; write it with `pe trace`, or numpy.savez(file, **taps)"
        )
    for name, array in trace.items():
        if array.dtype.kind not in "fiub":
            raise UserValueError(
                f"{path}: {name} must hold real numbers, got dtype {array.dtype}; save it as "
                "float32 or float64"
            )
    if ABOUT not in arrays:
        return TraceFile(path, trace)
    about = _about(path, arrays[ABOUT])
    return TraceFile(path, trace, _given(path, about, arrays), str(about.get("precision")), about)


def _about(path: Path, text: np.ndarray) -> dict[str, Any]:
    try:
        about = json.loads(text.astype(np.uint8).tobytes())
    except (ValueError, RecursionError, TypeError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else "no JSON"
        raise UserValueError(
            f"{path}: {ABOUT} has format {found!r}, this version reads format {FORMAT}; trace it "
            "again"
        )
    return about


def _given(path: Path, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Given | None:
    if "model" not in about:
        return None
    inputs, mask = arrays.get(f"{GIVEN}inputs"), arrays.get(f"{GIVEN}mask")
    weights = {
        name.removeprefix(GIVEN + WEIGHTS): array
        for name, array in arrays.items()
        if name.startswith(GIVEN + WEIGHTS)
    }
    try:
        config = ModelConfig.from_json(about["model"])
        check_arrays(parameters(config), weights, "the weights")
    except (TypeError, ValueError) as error:
        raise UserValueError(f"{path}: {error}") from None
    odd = [name for name, array in weights.items() if array.dtype.kind != "f"]
    if odd or inputs is None:
        what = (
            f"the weight {odd[0]} holds no floating-point numbers"
            if odd
            else f"{GIVEN}inputs are missing"
        )
        raise UserValueError(f"{path}: {what}; trace it again")
    try:
        _check_inputs(config, inputs, mask)
    except (TypeError, ValueError) as error:
        raise UserValueError(f"{path}: {error}") from None
    return Given(config, weights, inputs, mask)


def _check_inputs(config: ModelConfig, inputs: np.ndarray, mask: np.ndarray | None) -> None:
    """Raise where the model cannot be called with these inputs."""
    real = None if mask is None else Described(mask.shape, mask.dtype.kind, str(mask.dtype))
    check_call(
        config, Described(inputs.shape, inputs.dtype.kind, str(inputs.dtype)), real, None, None
    )
    if isinstance(config.inputs, Tokens):
        require_tokens_fit(config.inputs.vocab_size, int(inputs.min()), int(inputs.max()))
    for encoding in config.encodings:
        if encoding.length_limit is not None:
            require_positions_fit(encoding.length_limit, 0, inputs.shape[1] - 1)
