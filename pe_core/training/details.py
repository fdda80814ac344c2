"""What a model directory keeps of the data that a model was trained on: written, and read with its
rules.
"""

from __future__ import annotations

from typing import Any, Final

from pe_core.data import Dataset, Standardisation, UseOfPositions
from pe_core.data.positions import UNITS, USES, default_unit
from pe_core.errors import UserValueError, require_one_of
from pe_core.model.config import Features
from pe_core.storage.model_directory import SavedModel

# The uses in which positions are the last feature.
AS_FEATURE: Final = ("feature", "both")


def model_details(data: Dataset) -> dict[str, Any]:
    """Return what a model directory keeps of the data: the names of the classes, the
    standardisation, and, where there are some, the names of the features and the use and unit of
    the positions.
    """
    standardisation = None if data.standardisation is None else data.standardisation.to_json()
    details: dict[str, Any] = {
        "class_names": list(data.class_names),
        "standardisation": standardisation,
    }
    if data.feature_names:
        details["feature_names"] = list(data.feature_names)
    if unit := data.positions_unit or default_unit(data.train.positions):
        details |= {"positions": data.use_of_positions, "positions_unit": unit}
    return details


def saved_class_names(saved: SavedModel, source: str) -> tuple[str, ...]:
    """Return the names of the classes; their numbers as texts where there are none."""
    count = saved.config.num_classes
    names = saved.details.get("class_names") or [str(number) for number in range(count)]
    known = {name for name in names if isinstance(name, str) and name}
    if not isinstance(names, list) or len(known) != count or len(names) != count:
        raise UserValueError(
            f"{source}: class_names must be {count} different names, got {str(names)[:80]}; "
            "correct the file"
        )
    return tuple(names)


def saved_standardisation(saved: SavedModel) -> Standardisation | None:
    """Return the standardisation; None where there is none."""
    record: Any = saved.details.get("standardisation")
    if record is None:
        return None
    found, inputs = Standardisation.from_json(record), saved.config.inputs
    if not isinstance(inputs, Features) or len(found.mean) != inputs.num_features:
        raise UserValueError(
            f"the standardisation has {len(found.mean)} features, the model takes {inputs}; save "
            "the model again"
        )
    return found


def saved_positions(saved: SavedModel) -> tuple[UseOfPositions, str | None]:
    """Return the use of positions and their unit; "ignore" and None where there are none."""
    use, unit = saved.details.get("positions", "ignore"), saved.details.get("positions_unit")
    require_one_of("use of positions", use, USES)
    if use == "ignore":
        return use, None
    require_one_of("unit of positions", unit, tuple(UNITS))
    inputs = saved.config.inputs
    if use in AS_FEATURE and not (isinstance(inputs, Features) and inputs.num_features > 1):
        raise UserValueError(
            f"positions are {use!r}, and the model takes {inputs}, none of which is made of "
            "positions; correct the file"
        )
    return use, unit


def saved_feature_names(saved: SavedModel) -> tuple[str, ...]:
    """Return the names of the features; none where they have none."""
    names: Any = saved.details.get("feature_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserValueError(
            f"feature_names must be names, got {str(names)[:80]}; correct the file"
        )
    return tuple(names)
