"""Where the data of a run come from: what its config.json keeps, and `pe resume` reads again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pe_cli.reporting import console
from pe_core.data import DATA_NAMES, Dataset, Layout, Standardisation, UseOfPositions, load
from pe_core.data.loading import VALIDATION_FRACTION
from pe_core.data.npz import LAYOUTS
from pe_core.data.positions import USES
from pe_core.errors import UserValueError, require_fields, require_one_of


@dataclass(frozen=True)
class Source:
    """Where the data of a run come from.

    Args:
        data: built-in data, or the path of a file.
        test: the path of a second file, to test on.
        validation_fraction: the share of the training examples that is held out.
        layout: of the arrays in .npz files.
        columns: of tables, as the option has them: sequence=patient,label=diagnosis.
        positions: use of those in the files.
        standardisation: of the model that the run begins from; fitted on the data when None.
        positions_unit, feature_names: of that model; those of the file when None.
    """

    data: str
    test: str | None = None
    validation_fraction: float = VALIDATION_FRACTION
    layout: Layout = "steps-first"
    columns: str | None = None
    positions: UseOfPositions = "encode"
    standardisation: Standardisation | None = None
    positions_unit: str | None = None
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("data", "test", "columns", "positions_unit"):
            text = getattr(self, name)
            if not isinstance(text, str | None) or (name == "data" and text is None):
                raise UserValueError(f"source is no name of data: {name} is {str(text)[:80]}")
        require_one_of("layout", self.layout, LAYOUTS)
        require_one_of("use of positions", self.positions, USES)
        if not all(isinstance(name, str) for name in self.feature_names):
            raise UserValueError(f"feature_names are {str(self.feature_names)[:80]}, not names")

    def load(self, seed: int) -> Dataset:
        """Return the data, split by the seed, and say what was read."""
        built_in = self.data in DATA_NAMES
        data = load(
            self.data,
            test=self.test,
            seed=seed,
            validation_fraction=self.validation_fraction,
            layout=self.layout,
            columns=parse_columns(self.columns),
            positions=self.positions,
            positions_unit=self.positions_unit,
            feature_names=self.feature_names,
            standardisation=None if built_in else self.standardisation,
            tell=console.print,
        )
        if self.standardisation is None or not built_in:
            return data
        return restated(data, self.standardisation)

    def to_json(self) -> dict[str, Any]:
        """Return the source as a dictionary for JSON, in words that hold in another folder too."""
        standard = self.standardisation
        of_model = {
            "standardisation": None if standard is None else standard.to_json(),
            "positions_unit": self.positions_unit,
            "feature_names": list(self.feature_names),
        }
        return {
            "data": _absolute(self.data),
            "test": _absolute(self.test),
            "validation_fraction": self.validation_fraction,
            "layout": self.layout,
            "columns": self.columns,
            "positions": self.positions,
        } | {name: value for name, value in of_model.items() if value}

    @classmethod
    def from_run(cls, record: dict[str, Any]) -> Source:
        """Return the source that the config of a run keeps; a run from Python keeps the name of its
        data alone, which may be built-in data.

        Raises:
            ValueError: it keeps one that breaks a rule.
        """
        if "source" not in record:
            return cls(record["data"])
        if not isinstance(record["source"], dict):
            raise UserValueError(f"source is {str(record['source'])[:80]}, not an object")
        given = require_fields(cls, record["source"])
        if given.get("standardisation") is not None:
            given["standardisation"] = Standardisation.from_json(given["standardisation"])
        if "feature_names" in given:
            given["feature_names"] = tuple(given["feature_names"])
        return cls(**given)


def _absolute(name: str | None) -> str | None:
    return name if name is None or name in DATA_NAMES else str(Path(name).resolve())


def restated(data: Dataset, standardisation: Standardisation) -> Dataset:
    """Return built-in data with another standardisation than their own: that of a model, whose
    weights know inputs of its scale.
    """
    old = data.standardisation
    if data.num_features is None or len(standardisation.mean) != data.num_features:
        return data  # they do not fit the model, which is said by another check
    if old is None:
        change = standardisation
    else:
        triples = zip(standardisation.mean, old.mean, old.scale, strict=True)
        shifts = [(new - mean) / scale for new, mean, scale in triples]
        pairs = zip(standardisation.scale, old.scale, strict=True)
        change = Standardisation(tuple(shifts), tuple(new / scale for new, scale in pairs))
    return replace(
        data,
        train=change.apply(data.train),
        validation=None if data.validation is None else change.apply(data.validation),
        test=None if data.test is None else change.apply(data.test),
        standardisation=standardisation,
    )


def parse_columns(text: str | None) -> dict[str, str]:
    """Return the names of columns by what they are, from a text such as sequence=id,label=class."""
    columns = {}
    for part in text.split(",") if text else ():
        what, equals, name = part.partition("=")
        if not equals or not what.strip() or not name.strip():
            raise UserValueError(
                f"--columns must be WHAT=NAME, several with commas between, got {text!r}; for "
                "example sequence=patient,time=when"
            )
        columns[what.strip()] = name.strip()
    return columns
