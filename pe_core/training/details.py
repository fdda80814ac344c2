"""What a model directory keeps of the data that a model was trained on."""

from __future__ import annotations

from typing import Any

from pe_core.data import Dataset
from pe_core.data.positions import default_unit


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
