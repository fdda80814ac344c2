"""What a call of a model accepts, decided once for every framework from shapes and kinds of numbers
alone.

Kinds are NumPy's letters: "f" floating point, "i" or "u" integer, "b" boolean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pe_core.encodings import EncodingOptions, LearnedTable, Sizes, check_encodings
from pe_core.errors import UserTypeError, UserValueError, require_integer, require_number
from pe_core.model.config import Features, ModelConfig


class Described(NamedTuple):
    """The shape of an array and its dtype, as a kind and a name."""

    shape: tuple[int, ...]
    kind: str
    dtype: str


def check_call(
    config: ModelConfig,
    x: Described,
    mask: Described | None,
    positions: Described | None,
    segment_ids: Described | None,
) -> None:
    """Raise one clear line unless the arguments of a call fit the config and each other.

    Raises:
        ValueError: a wrong rank, size or an empty batch.
        TypeError: a wrong kind of numbers.
    """
    if isinstance(config.inputs, Features):
        if len(x.shape) != 3:
            raise UserValueError(
                f"x must have the three axes (batch, length, num_features), got shape {x.shape}"
            )
        if x.kind != "f":
            raise UserTypeError(
                f"x must hold floating-point features, got {x.dtype}; convert it to float32"
            )
        if x.shape[2] != config.inputs.num_features:
            raise UserValueError(
                f"x has {x.shape[2]} features, but the model takes "
                f"num_features={config.inputs.num_features}"
            )
    else:
        if len(x.shape) != 2:
            raise UserValueError(f"x must have the two axes (batch, length), got shape {x.shape}")
        if x.kind not in "iu":
            raise UserTypeError(f"x must hold integer tokens, got {x.dtype}; convert it to int32")
    batch, length = x.shape[:2]
    _check_any_steps(x)
    if mask is not None:
        check_mask(mask, batch, length)
    if segment_ids is not None:
        if config.pooling == "cls":
            raise UserValueError(
                "segment_ids need one pooled vector per segment, but pooling='cls' has one per "
                "row; use pooling='mean'"
            )
        check_segment_ids(segment_ids, batch, length)
    if positions is not None:
        check_positions(config.encodings, positions, (batch, length))


def check_positions(
    encodings: Iterable[EncodingOptions], positions: Described, steps: tuple[int, int] | None
) -> None:
    """Raise one clear line unless positions fit the encodings and the steps.

    Args:
        encodings: that are given the positions.
        positions: described.
        steps: (batch, length); None where positions of any steps are meant.

    Raises:
        UserValueError: a wrong shape.
        UserTypeError: a wrong kind of numbers.
    """
    if positions.kind not in "iuf":
        raise UserTypeError(f"positions must be integers or floating point, got {positions.dtype}")
    for encoding in encodings:
        if positions.kind == "f" and not encoding.fractional:
            raise UserTypeError(
                f"encoding {encoding.name!r} takes whole positions, got {positions.dtype}; round "
                "them and convert them to integers"
            )
    if steps is None:
        if len(positions.shape) not in (1, 2) or 0 in positions.shape:
            raise UserValueError(
                f"positions must have shape (length,) or (batch, length), got {positions.shape}"
            )
    elif positions.shape != (steps if len(positions.shape) == 2 else steps[1:]):
        # The line is written where it is needed: writing a size fixes it in an exported program.
        _check_steps("positions", positions.shape, *steps, also=f" or ({steps[1]},)")


def check_steps(
    encodings: Sequence[EncodingOptions],
    d_model: int,
    x: Described,
    positions: Described | None,
    mask: Described | None,
) -> None:
    """Raise one clear line unless the arguments of an encoding that is called alone fit it.

    Raises:
        UserValueError: a wrong rank, size or shape.
        UserTypeError: a wrong kind of numbers.
    """
    if len(x.shape) != 3 or x.shape[2] != d_model:
        raise UserValueError(
            f"x must have shape (batch, length, d_model) with d_model={d_model}, got {x.shape}"
        )
    _check_steps_hold_features(x)
    if mask is not None:
        check_mask(mask, *x.shape[:2])
    if positions is not None:
        check_positions(encodings, positions, (x.shape[0], x.shape[1]))


def check_heads(
    encodings: Sequence[EncodingOptions],
    d_head: int,
    axes: tuple[str, ...],
    x: Described,
    positions: Described | None,
) -> None:
    """Raise one clear line unless queries or keys that are mapped alone fit the encoding.

    Args:
        encodings: the one that maps them.
        d_head: width of a head.
        axes: their names, in the order of the backend.
        x: queries or keys.
        positions: of the steps of x.

    Raises:
        UserValueError: a wrong rank, size or shape.
        UserTypeError: a wrong kind of numbers.
    """
    if len(x.shape) != len(axes) or x.shape[-1] != d_head:
        raise UserValueError(
            f"x must have shape ({', '.join(axes)}) with d_head={d_head}, got {x.shape}"
        )
    _check_steps_hold_features(x)
    if positions is not None:
        steps = x.shape[axes.index("batch")], x.shape[axes.index("length")]
        check_positions(encodings, positions, steps)


def check_pairs(encodings: Sequence[EncodingOptions], queries: Described, keys: Described) -> None:
    """Raise one clear line unless positions of queries and of keys fit the encoding and each other.

    Raises:
        UserValueError: a wrong shape, or batches of two sizes.
        UserTypeError: a wrong kind of numbers.
    """
    for positions in (queries, keys):
        check_positions(encodings, positions, None)
    batches = [item.shape[0] for item in (queries, keys) if len(item.shape) == 2]
    if len(set(batches)) > 1:
        raise UserValueError(
            f"queries and keys must have the same batch, got {batches[0]} and {batches[1]}; pass "
            "(length,) where all rows stand alike"
        )


def check_front(d_model: int, front: Described) -> None:
    """Raise one clear line unless a step that is put in front has the width of a step."""
    if front.shape != (d_model,):
        raise UserValueError(f"front must have shape (d_model,) = ({d_model},), got {front.shape}")


def _check_steps_hold_features(x: Described) -> None:
    if x.kind != "f":
        raise UserTypeError(f"x must be floating point, got {x.dtype}; convert it to float32")
    _check_any_steps(x)


def _check_any_steps(x: Described) -> None:
    if 0 in x.shape:
        raise UserValueError(
            f"x is empty, got shape {x.shape}; pass at least one sequence of one step"
        )


def check_dropout(step: Any, rows: Described | None, batch: int) -> None:
    """Raise one clear line unless the step and the rows of dropout are whole numbers that fit.

    Args:
        step: number of the training step: None, an integer, or an array, described.
        rows: where in a larger batch each sequence stands, described.
        batch: number of sequences.

    Raises:
        UserValueError: a wrong shape, or a step outside 0 .. 2**32 - 1.
        UserTypeError: a wrong kind of numbers.
    """
    if isinstance(step, Described):
        if step.kind not in "iu" or step.shape != ():
            raise UserTypeError(
                f"dropout_step must be one integer, got {step.dtype} of shape {step.shape}"
            )
    elif step is not None:
        require_integer("dropout_step", step, 0, (1 << 32) - 1)
    if rows is None:
        return
    if rows.kind not in "iu":
        raise UserTypeError(f"dropout_rows must be integers, got {rows.dtype}; convert them")
    if rows.shape != (batch,):
        raise UserValueError(
            f"dropout_rows must have shape (batch,) = ({batch},), got {rows.shape}"
        )


def check_native_rows(rows: object) -> None:
    """Raise one clear line where a framework's own dropout is told rows of a larger batch."""
    if rows is not None:
        raise UserValueError(
            "dropout_rows need masks that are a function of the row, which dropout_rng='native' "
            "has not; take dropout_rng='shared'"
        )


def check_mask(mask: Described, batch: int, length: int) -> None:
    """Raise one clear line unless a mask is boolean, (batch, length)."""
    if mask.kind != "b":
        raise UserTypeError(
            f"mask must be boolean with True for real steps, got {mask.dtype}; convert it, as in "
            "mask != 0"
        )
    _check_steps("mask", mask.shape, batch, length)


def check_segment_ids(segment_ids: Described, batch: int, length: int) -> None:
    """Raise one clear line unless segment numbers are integers, (batch, length)."""
    if segment_ids.kind not in "iu":
        raise UserTypeError(
            f"segment_ids must be integers with 0 for padding, got {segment_ids.dtype}; convert "
            "them to int32"
        )
    _check_steps("segment_ids", segment_ids.shape, batch, length)


def check_attention_call(
    encodings: Sequence[EncodingOptions],
    sizes: Sizes,
    x: Described,
    mask: Described | None,
    positions: Described | None,
    segment_ids: Described | None,
) -> None:
    """Raise one clear line unless the arguments of attention that is called alone fit it.

    Raises:
        UserValueError: a wrong rank, size or shape.
        UserTypeError: a wrong kind of numbers.
    """
    check_steps(encodings, sizes.d_model, x, positions, mask)
    if segment_ids is not None:
        check_segment_ids(segment_ids, x.shape[0], x.shape[1])


def check_attention_options(
    sizes: Sizes, encodings: Sequence[EncodingOptions], dropout: float
) -> None:
    """Raise one clear line unless encodings go together and fit the sizes of an attention layer."""
    require_integer("d_model", sizes.d_model, 1)
    require_integer("num_heads", sizes.num_heads, 1)
    if sizes.d_model % sizes.num_heads:
        raise UserValueError(
            f"d_model must be divisible by num_heads, got d_model={sizes.d_model} and "
            f"num_heads={sizes.num_heads}"
        )
    require_number("dropout", dropout, 0.0, 1.0, open_maximum=True)
    check_encodings(encodings, sizes)


def check_options(layer: str, expected: type, options: object, sizes: Sizes) -> None:
    """Raise one clear line unless a layer is given its own options and sizes that these fit.

    Args:
        layer: name of the layer's class.
        expected: the options class that the layer computes.
        options: what was given.
        sizes: what was given.
    """
    if not isinstance(options, expected) or not isinstance(options, EncodingOptions):
        raise UserTypeError(
            f"{layer} takes {expected.__name__} options first and sizes by keyword, got "
            f"{options!r}; write {layer}({expected.__name__}(...), ...)"
        )
    require_integer("num_heads", sizes.num_heads, 1)
    require_integer("d_model", sizes.d_model, 1)
    options.check(sizes)


def _check_steps(
    what: str, shape: tuple[int, ...], batch: int, length: int, also: str = ""
) -> None:
    if shape != (batch, length):
        raise UserValueError(
            f"{what} must have shape (batch, length) = ({batch}, {length}){also}, got {shape}"
        )


def has_table(encodings: Iterable[EncodingOptions]) -> bool:
    """Return whether a learned table is among the encodings: it looks at the positions itself."""
    return any(isinstance(item, LearnedTable) for item in encodings)


def check_num_segments(num_segments: int | None, *, packed: bool) -> None:
    """Raise one clear line unless a number of segments is one, of packed sequences."""
    if num_segments is None:
        return
    require_integer("num_segments", num_segments, 1)
    if not packed:
        raise UserValueError(f"num_segments={num_segments} needs segment_ids; pass both or neither")
