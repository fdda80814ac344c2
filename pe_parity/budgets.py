"""Every rule of equality: when two numbers of two implementations count as the same.

`RULES` has one rule per quantity of a trace: what a difference is divided by, which elements are
not compared, and for each precision the bound. A bound lies between the noise, the largest distance
between correct implementations that `pe parity --calibrate` measured over random models and seeds,
and the fault, the smallest effect of the planted faults of the tests that the precision can show.
Below the table stand the rules that compare other things than one name of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np

Quantity = Literal[
    "tap", "loss", "gradient", "moment", "update", "weights", "adam", "gauge", "exact"
]
Scale = Literal["own", "average", "moved"]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Budget:
    """How far a quantity may lie from the baseline, relative to its scale.

    Args:
        noise: the largest distance measured between correct implementations.
        fault: the smallest distance that a planted fault made.
        bound: between the two.
    """

    noise: float
    fault: float
    bound: float


@dataclass(frozen=True)
class Rule:
    """How a quantity is compared.

    Args:
        scale: the norm that a difference is divided by. `own`: that of the baseline's array.
            `average`: that, or the norm of an array of this size with the root mean square of all
            arrays of its family, whichever is larger: a gradient that is small because its terms
            cancel carries the rounding of those terms. `moved`: that of the distance that training
            moved the parameter.
        budgets: for each precision.
        above_noise: compare only elements whose gradient was always above its own bound. Adam
            divides a gradient by its own size, so where that is rounding, or near epsilon, the step
            has any size and sign, in correct implementations too.
    """

    scale: Scale
    budgets: Mapping[str, Budget]
    above_noise: bool = False


PRECISIONS: Final = ("float64", "float32", "bfloat16")
RULES: Final[dict[Quantity, Rule]] = {
    "tap": Rule(
        "own",
        {
            "float64": Budget(noise=2.9e-15, fault=6e-8, bound=1e-14),
            "float32": Budget(noise=1.6e-6, fault=1.3e-5, bound=2e-6),
            "bfloat16": Budget(noise=3.6e-2, fault=0.18, bound=0.1),
        },
    ),
    "loss": Rule(
        "own",
        {
            "float64": Budget(noise=1e-15, fault=1.1e-3, bound=5e-15),
            "float32": Budget(noise=4.4e-7, fault=1.1e-3, bound=2e-6),
            "bfloat16": Budget(noise=2e-2, fault=4.2e-2, bound=3e-2),
        },
    ),
    "gradient": Rule(
        "average",
        {
            "float64": Budget(noise=1.1e-14, fault=0.35, bound=5e-14),
            "float32": Budget(noise=6.2e-6, fault=0.35, bound=1e-5),
            "bfloat16": Budget(noise=0.09, fault=1.9, bound=0.5),
        },
    ),
    "moment": Rule(
        "average",
        {
            "float64": Budget(noise=8.9e-15, fault=1.5e-7, bound=5e-14),
            "float32": Budget(noise=4e-6, fault=1.9, bound=2e-5),
            "bfloat16": Budget(noise=0.11, fault=4.5, bound=0.6),
        },
    ),
    "update": Rule(
        "own",
        {
            "float64": Budget(noise=1.4e-11, fault=7.6e-8, bound=2e-11),
            "float32": Budget(noise=2.4e-4, fault=1e-2, bound=1e-3),
            "bfloat16": Budget(noise=9.3e-5, fault=1e-2, bound=5e-4),
        },
        above_noise=True,
    ),
    "weights": Rule(
        "moved",
        {
            "float64": Budget(noise=4.3e-12, fault=4.2e-4, bound=1e-11),
            "float32": Budget(noise=1.9e-4, fault=4.2e-4, bound=2.5e-4),
            "bfloat16": Budget(noise=0.41, fault=1.9, bound=0.8),
        },
        above_noise=True,
    ),
    # The optimizer alone, 1,000 steps on one stream of gradients, against torch.optim.AdamW in the
    # same precision.
    "adam": Rule(
        "moved",
        {
            "float64": Budget(noise=6.1e-16, fault=2.8e-9, bound=5e-15),
            "float32": Budget(noise=5.4e-7, fault=3.8e-6, bound=1e-6),
        },
    ),
    # A key bias shifts all logits of a query alike: it is without effect, so it is shown and not
    # judged, against the parameters beside it.
    "gauge": Rule("moved", dict.fromkeys(PRECISIONS, Budget(0.0, math.inf, math.inf))),
    # Initial parameters, order of the data, files, state.
    "exact": Rule("own", dict.fromkeys(PRECISIONS, Budget(0.0, 0.0, 0.0))),
}
BUDGETS: Final[dict[tuple[Quantity, str], Budget]] = {
    (kind, precision): entry
    for kind, rule in RULES.items()
    if kind not in ("gauge", "exact")
    for precision, entry in rule.budgets.items()
}
# A bound further above the noise than this lets faults through that it could catch.
LOOSE: Final = 10.0
# Arrays of one family have one average.
FAMILIES: Final = ("gradient/", "moment/m/", "moment/v/")


def quantity(name: str) -> Quantity:
    """Return which quantity a name in a trace belongs to."""
    head = name.split("/")[0]
    match head:
        case "loss" | "gradient" | "moment" | "update" | "weights" | "gauge" | "exact":
            return head
        case _:
            return "tap"


def budget(name: str, precision: str) -> Budget:
    """Return the budget of a name in a trace."""
    return RULES[quantity(name)].budgets[precision]


def distance(a: np.ndarray, b: np.ndarray, scale: np.ndarray, least: float = 0.0) -> float:
    """Return the norm of a - b over the norm of the scale.

    Infinite where the shapes or the places of NaN differ; NaN equals NaN in the same place. A scale
    of zero allows no difference.

    Args:
        a: an array.
        b: another.
        scale: what the difference is divided by the norm of.
        least: what that norm is at least.
    """
    if a.shape != b.shape:
        return math.inf
    a, b, scale = (np.asarray(array, np.float64) for array in (a, b, scale))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    difference = float(np.linalg.norm(np.nan_to_num(a - b, nan=0.0).ravel()))
    norm = max(float(np.linalg.norm(np.nan_to_num(scale).ravel())), least)
    return 0.0 if difference == 0.0 else difference / norm if norm > 0.0 else math.inf


def scale_of(name: str, baseline: Arrays, moved: Arrays | None) -> np.ndarray:
    """Return the array whose norm differences of a name are divided by.

    Args:
        name: in the trace.
        baseline: the trace that the others are compared with.
        moved: how far training moved each parameter; None where nobody knows.
    """
    beside = name.removeprefix("gauge/")
    if moved is not None and RULES[quantity(beside)].scale == "moved":
        return moved.get(beside, baseline[beside])
    return baseline[beside]


def average_sizes(baseline: Arrays) -> dict[str, float]:
    """Return the root mean square over all elements of each family."""
    found = {}
    for family in FAMILIES:
        arrays = [
            np.asarray(array, np.float64)
            for name, array in baseline.items()
            if name.startswith(family)
        ]
        count = sum(array.size for array in arrays)
        squares = sum(float((array**2).sum()) for array in arrays)
        found[family] = math.sqrt(squares / count) if count else 0.0
    return found


def least_norm(name: str, size: int, averages: Mapping[str, float]) -> float:
    """Return what the norm of a scale is at least.

    Args:
        name: in the trace.
        size: number of elements compared.
        averages: of `average_sizes`.
    """
    if RULES[quantity(name)].scale != "average":
        return 0.0
    sizes = (average for family, average in averages.items() if name.startswith(family))
    return next(sizes, 0.0) * math.sqrt(size)


def above_noise(signal: np.ndarray, precision: str) -> np.ndarray:
    """Return where a gradient was always larger than what its own bound allows it to be off.

    Args:
        signal: of `pe_parity.adam_noise.signals`, of one parameter.
        precision: of the runs that are compared.
    """
    return np.asarray(signal > budget("gradient/", precision).bound)


# --- Where two right implementations take two ways ---


def compared_up_to(activation: str, pooling: str) -> Literal["forward", "gradient", "run"]:
    """Return how far a random model is compared.

    At the kink of ReLU, and where max pooling has two steps to choose from, rounding decides which
    of two gradients is taken, and training goes two ways from there. So max pooling is compared up
    to the loss, ReLU up to the gradient.
    """
    if pooling == "max":
        return "forward"
    return "gradient" if activation == "relu" else "run"


def same_side_of_kinks(baseline: Arrays, found: Arrays) -> bool:
    """Return whether rounding put no unit of ReLU on the other side of its kink, where its gradient
    is another one.
    """
    hidden = [name for name in baseline if name.endswith("feed_forward.hidden")]
    return all(np.array_equal(baseline[name] == 0.0, found[name] == 0.0) for name in hidden)


# --- Whole runs ---

# Runs in this precision must end on the same bits once rounded to float32.
SAME_BITS_AFTER: Final = "float64"
# The median error of one backend is at most this many times the other's.
FAIR: Final = 2.0
# Training is chaotic from where a change of one ulp has grown to this many times its smallest share
# of the distance moved.
CHAOS: Final = 10.0
# Backends drift apart at most this many times as fast as a change of one ulp, ...
AIM: Final = 2.0
# ... from this step on: before, single parameters decide how far apart they are.
SETTLED: Final = 2
# The share of elements that `above_noise` may leave out of a float32 run.
LEFT_OUT: Final = 1 / 50


def same_bits(arrays: Iterable[np.ndarray]) -> int:
    """Return how many elements of two or more arrays are the same once rounded to float32."""
    first, *others = (np.asarray(array, np.float32) for array in arrays)
    return int(np.logical_and.reduce([first == other for other in others]).sum())


# --- Slopes, formats, chance ---

# The step of a central difference. Its two errors are h² |L'''| / 6 and eps |L| / h for a loss L
# along a direction of length one; both are about eps^(2/3) at this h. The losses of the tests are
# near 1.5, and their third derivatives along a direction stay below a hundred or so.
DIFFERENCE_STEP: Final = float(np.finfo(np.float64).eps) ** (1 / 3)
DIFFERENCE_ERROR: Final = 30 * DIFFERENCE_STEP**2
# Of two diagnoses that explain equally many names the later one must leave a residual smaller by
# this factor: they are tried in order of likelihood.
CLEARER: Final = 2.0
# How often a check of perfect random numbers may fail, had its keys been chosen by chance.
FALSE_ALARM: Final = 1e-6


def last_place(bits: int) -> float:
    """Return the largest distance that rounding to so many significant bits makes: one unit in the
    last place.
    """
    return 2.0 ** (1 - bits)


def farthest(comparisons: int) -> float:
    """Return how far from zero, in standard deviations, the farthest of so many normal scores may
    lie, by Bonferroni's inequality.
    """
    return NormalDist().inv_cdf(1.0 - FALSE_ALARM / (2 * comparisons))
