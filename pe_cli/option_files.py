"""Options that stand in files: one of the user's, the config of a run or the one of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from pe_core.data import DATA_NAMES
from pe_core.encodings import EncodingOptions, encoding_to_json
from pe_core.errors import UserFileNotFoundError, UserValueError
from pe_core.model.config import ModelConfig
from pe_core.storage.model_directory import CONFIG_FILE, load_model
from pe_core.training.details import saved_positions

# What the data decide of a model, and its encodings, which are one option of the command.
NO_OPTIONS: Final = ("inputs", "num_classes", "encodings")
# What the source of a run has from the model that it began from, which is an option.
OF_MODEL: Final = ("standardisation", "positions_unit", "feature_names")


def read_options(source: str, path: Path) -> dict[str, Any]:
    """Return the options in a file, with underscores or hyphens in their names.

    Args:
        source: the option that names the file, for messages.
        path: a YAML or JSON file, or the folder of a run or of a model, whose config.json is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold options.
    """
    if (path / CONFIG_FILE).is_file():
        path = path / CONFIG_FILE
    if not path.is_file():
        raise UserFileNotFoundError(f"{source}: no such file; check the path")
    try:
        record = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:160]
        raise UserValueError(f"{source}: not valid YAML or JSON ({text}); correct it") from None
    if not isinstance(record, dict):
        found = "nothing" if record is None else str(record)[:40]
        rule = "must hold options such as epochs: 5"
        raise UserValueError(f"{source}: {rule}, got {found}; write one NAME: VALUE a line")
    if isinstance(record.get("model"), dict):
        try:
            return _options_of_run(record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserValueError(
                f"{source}: is not the config of a run ({str(error)[:160]}); correct it"
            ) from None
    return {str(name): value for name, value in record.items()}


def model_options(source: str, directory: Path) -> dict[str, Any]:
    """Return the options of a saved model, in which the encoding is left open: the model has its
    own. Its use of positions is among them.
    """
    saved = load_model(directory)
    of_data = {"positions": saved_positions(saved)[0], "encoding": ""}
    return _options_of_model(saved.config) | of_data


def _options_of_model(config: ModelConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name not in NO_OPTIONS}


def _options_of_run(record: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `pe train` that give such a run; those of a model alone, where the
    record is of one.
    """
    config = ModelConfig.from_json(record["model"])
    if len(config.encodings) > 1:
        raise UserValueError(
            f"the model has the encodings {encoding_text(config)}, and --encoding names one"
        )
    options = {"encoding": encoding_text(config)} | _options_of_model(config)
    options |= {**record.get("train", {}), **record.get("compute", {})}
    options |= {"framework": record["framework"]} if "framework" in record else {}
    data = {"data": record["data"]} if record.get("data") in DATA_NAMES else {}
    options |= data | {**record.get("source", {})} | {**record.get("from", {})}
    if "seed" in record:
        options["seed"] = record["seed"]
    for name in OF_MODEL:
        options.pop(name, None)
    # A file may be called null, and `max_gradient_norm` is None by name.
    return {
        name: value
        for name, value in options.items()
        if value is not None or name == "max_gradient_norm"
    }


def encoding_text(config: ModelConfig) -> str:
    """Return the encodings of a model as the option has them, several joined by +."""
    return "+".join(map(_option, config.encodings)) or "none"


def _option(encoding: EncodingOptions) -> str:
    values = encoding_to_json(encoding)
    del values["name"]
    tail = ",".join(f"{name}={value}" for name, value in values.items() if value is not None)
    return f"{encoding.name}:{tail}" if tail else encoding.name
