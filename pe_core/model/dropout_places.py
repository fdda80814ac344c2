"""Where a model drops out: each place has a number, which is folded into the key of a step."""

from __future__ import annotations

from typing import Final, Literal, get_args

DropoutPlace = Literal[
    "input", "attention_weights", "attention_output", "feed_forward_hidden", "feed_forward_output"
]

PLACES: Final[tuple[DropoutPlace, ...]] = get_args(DropoutPlace)


def dropout_place(place: DropoutPlace, layer: int) -> int:
    """Return the number of a place in a layer: the input is 0, then four to a layer."""
    return 0 if place == "input" else 4 * layer + PLACES.index(place)


def count_places(num_layers: int) -> int:
    """Return how many places a model has."""
    return 1 + 4 * num_layers
