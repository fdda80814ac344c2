"""Train on from a saved model: a longer table where the data are longer, and a new head where the
classes differ.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from pe_core.data import Dataset
from pe_core.encodings import EncodingOptions
from pe_core.errors import UserValueError
from pe_core.model.config import ModelConfig
from pe_core.model.initial import initial_arrays
from pe_core.storage.model_directory import SavedModel
from pe_core.training.data_checks import check_inputs

# What the positions beyond the end of a table get: its rows, stretched over the new length, or new
# rows behind them.
Lengthen: TypeAlias = Literal["interpolate", "new"]
HEAD = ("head.weight", "head.bias")
# Of a table that positions in the data ask for.
MAX_ROWS: Final = 100_000


@dataclass(frozen=True)
class Start:
    """What a run begins from.

    Args:
        config: what the model is.
        arrays: its weights.
        notes: what is not as in the saved model, a line each.
    """

    config: ModelConfig
    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def start_from(
    saved: SavedModel,
    data: Dataset,
    *,
    seed: int = 0,
    dropout: float | None = None,
    max_length: int = 0,
    lengthen: Lengthen | None = None,
) -> Start:
    """Return the weights of a saved model, fitted to other data.

    Args:
        saved: the model.
        data: what it shall be trained on.
        seed: of new rows and of a new head.
        dropout: another rate than that of the model.
        max_length: at least so many rows for its tables; the length of the data decides beyond it.
        lengthen: what a table gets that is too short, "interpolate" or "new".

    Raises:
        ValueError: inputs of another kind, or a table that is too short where lengthen is None.
    """
    for part, sequences in data.parts.items():
        # Lengths and positions are a matter of the tables below.
        check_inputs(saved.config, sequences, f"the {part} part of {data.name}")
    names = tuple(data.class_names)
    needed = data.table_length
    if data.train.positions is None:  # padding needs no rows
        needed = max(int(part.lengths.max()) for part in data.parts.values())
    needed = max(max_length, needed)
    config = replace(
        saved.config,
        num_classes=len(names),
        encodings=tuple(_longer(item, needed, lengthen) for item in saved.config.encodings),
        dropout=saved.config.dropout if dropout is None else dropout,
    )
    arrays = initial_arrays(config, seed)
    notes = [
        f"{old.name} has {new.length_limit} rows, of which the model had {old.length_limit}: "
        + ("all are interpolated" if lengthen == "interpolate" else "the others are new")
        for old, new in zip(saved.config.encodings, config.encodings, strict=True)
        if old != new
    ]
    for name, new in arrays.items():
        if name not in HEAD:
            arrays[name] = _fitted(saved.arrays[name], new, lengthen)
    known = tuple(saved.details.get("class_names") or ())
    if sorted(known) == sorted(names) or (not known and saved.config.num_classes == len(names)):
        order = [known.index(name) for name in names] if known else slice(None)
        arrays |= {name: saved.arrays[name][order] for name in HEAD}
    else:
        found = ", ".join(known) or f"{saved.config.num_classes} without names"
        notes.append(f"the head is new: the classes are {', '.join(names)}; the model had {found}")
    return Start(config, arrays, tuple(notes))


def _longer(encoding: EncodingOptions, length: int, lengthen: Lengthen | None) -> EncodingOptions:
    limit = encoding.length_limit
    if limit is None or length <= limit:
        return encoding
    if length > MAX_ROWS:
        raise UserValueError(
            f"the data need {length:,} rows of the table of encoding {encoding.name!r}, more than "
            f"{MAX_ROWS:,}; cut the sequences, or count steps with positions ignore"
        )
    if lengthen is None:
        raise UserValueError(
            f"the data need {length} rows, the encoding {encoding.name} of the model has "
            f"{limit} rows; give --lengthen interpolate or --lengthen new"
        )
    known = {field.name for field in fields(encoding)}  # type: ignore[arg-type]
    if "max_length" not in known:
        raise UserValueError(
            f"the encoding {encoding.name} ends at {limit} steps and has no max_length to change, "
            f"and the data have {length}; cut the sequences"
        )
    return replace(encoding, max_length=length)  # type: ignore[type-var]


def _fitted(old: np.ndarray, new: np.ndarray, lengthen: Lengthen | None) -> np.ndarray:
    """Return a weight of the model; a table that is too short gets more rows."""
    if old.shape == new.shape:
        return old
    assert old.shape[1:] == new.shape[1:]
    if lengthen == "new":
        return np.concatenate([old, new[len(old) :]])
    return interpolated(old, len(new))


def interpolated(
    table: Float[np.ndarray, "rows ..."], count: int
) -> Float[np.ndarray, "count ..."]:
    """Stretch a table linearly over so many rows: the first and the last stay, in the dtype of the
    table.
    """
    places = np.linspace(0.0, len(table) - 1.0, count)
    below = np.minimum(places.astype(np.int64), max(len(table) - 2, 0))
    above = np.minimum(below + 1, len(table) - 1)
    share = (places - below).reshape(-1, *[1] * (table.ndim - 1))
    wide = table.astype(np.float64)
    return ((1.0 - share) * wide[below] + share * wide[above]).astype(table.dtype)
