"""Whether data fit a model: features, tokens, classes and lengths."""

from __future__ import annotations

import numpy as np

from pe_core.data import Batch, Dataset, Sequences
from pe_core.data.plausibility import warn, warn_of_losses
from pe_core.encodings.additive import POLICIES
from pe_core.errors import UserTypeError, UserValueError
from pe_core.model.config import Features, ModelConfig, Tokens
from pe_core.model.inputs import has_table
from pe_core.model.values import require_positions_fit, require_tokens_fit


def check_data(config: ModelConfig, data: Dataset) -> None:
    """Raise a ValueError unless the data fit the model: kind and number of features, tokens,
    classes, lengths of tables.
    """
    for part, sequences in data.parts.items():
        check_sequences(config, sequences, f"the {part} part of {data.name}")
    if len(data.class_names) != config.num_classes:
        raise UserValueError(
            f"{data.name} has {len(data.class_names)} classes, but the model has "
            f"num_classes={config.num_classes}"
        )


def check_batch(config: ModelConfig, batch: Batch) -> None:
    """Raise a ValueError unless labels and tokens of a batch fit the model: one that `Sequences`
    did not make may hold any, and a framework would cut them or take them for others.
    """
    labels = batch.labels
    outside = (labels < 0) | (labels >= config.num_classes)
    if outside.any():
        row = int(np.argmax(outside))
        raise UserValueError(
            f"label {labels[row]} of row {row} is outside 0 .. {config.num_classes - 1}; correct it"
        )
    if isinstance(config.inputs, Tokens) and batch.inputs.dtype.itemsize > 4:
        tokens = batch.inputs if batch.mask is None else np.where(batch.mask, batch.inputs, 0)
        require_tokens_fit(config.inputs.vocab_size, int(tokens.min()), int(tokens.max()))


def check_sequences(config: ModelConfig, sequences: Sequences, what: str) -> None:
    """Raise a ValueError unless the sequences fit the model's inputs and learned tables; warn where
    float32 loses most of a feature that was not standardised.
    """
    check_inputs(config, sequences, what)
    if sequences.positions is not None:
        _check_positions(config, sequences, what)
        return
    longest = int(sequences.lengths.max())
    for encoding in config.encodings:
        limit = encoding.length_limit
        if limit is not None and longest > limit:
            raise UserValueError(
                f"{what} has a sequence of {longest} steps, but encoding {encoding.name!r} has "
                f"max_length={limit}; train with the encoding {encoding.name}:max_length={longest} "
                "or sinusoidal, or cut the sequences"
                + (f", or take over_length {', '.join(POLICIES)}" if has_table([encoding]) else "")
            )


def check_inputs(config: ModelConfig, sequences: Sequences, what: str) -> None:
    """Raise a ValueError unless features or tokens fit the model, whatever its tables; warn where
    float32 loses most of a feature that was not standardised.
    """
    if isinstance(config.inputs, Features):
        if sequences.num_features != config.inputs.num_features:
            found = (
                "tokens" if sequences.num_features is None else f"{sequences.num_features} features"
            )
            raise UserValueError(
                f"{what} has {found}, but the model takes "
                f"num_features={config.inputs.num_features}; give data with as many"
            )
    elif sequences.num_features is not None:
        raise UserValueError(
            f"{what} has {sequences.num_features} features, but the model takes tokens; give "
            "integers (count, length)"
        )
    else:
        try:
            require_tokens_fit(
                config.inputs.vocab_size, int(sequences.inputs.min()), int(sequences.inputs.max())
            )
        except ValueError as error:
            raise UserValueError(f"{what}: {error}") from None
    if sequences.exact is not None:
        remedy = "standardise it (pe_core.data.Standardisation), or subtract an offset from it"
        warn_of_losses(sequences.exact, sequences.inputs, sequences.mask, what, remedy=remedy)


def _check_positions(config: ModelConfig, sequences: Sequences, what: str) -> None:
    """Raise a ValueError or TypeError unless the encodings can take the positions."""
    positions, mask = sequences.positions, sequences.mask
    assert positions is not None
    if not config.encodings:
        warn(
            "the data have positions, but the model has no encoding that would see them; give it "
            "one, or make a feature of them (--positions feature)"
        )
    real = positions if mask is None else positions[mask]
    for encoding in config.encodings:
        if real.dtype.kind == "f" and not encoding.fractional:
            raise UserTypeError(
                f"{what} has fractional positions, but encoding {encoding.name!r} takes whole "
                "ones; round them to integers, or take another encoding"
            )
        if encoding.length_limit is not None:
            try:
                require_positions_fit(encoding.length_limit, real.min(), real.max())
            except UserValueError as error:
                raise UserValueError(f"{what}: {error}") from None
