"""The picture of the noise floor."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from pe_core.storage.files import write_file
from pe_parity.floor import Floor

# Ink for what is compared, grey for what it is compared with.
BETWEEN, FLOOR, EXACT, CHANGING = "#c0392b", "#7f8c8d", "#2980b9", "#27ae60"


def draw_floor(path: Path, floors: Mapping[str, Floor]) -> str | None:
    """Draw the curves into an SVG file and return its name; None where matplotlib is not
    installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # The same curves give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "floor", "font.size": 9}):
        figure = Figure(figsize=(10, 3.4 * ((len(floors) + 1) // 2)), layout="constrained")
        axes = figure.subplots((len(floors) + 1) // 2, 2, squeeze=False, sharey=True).ravel()
        for axis, (name, floor) in zip(axes, floors.items(), strict=False):
            one, every = floor.compared, floor.all_weights
            least = [min(column) for column in zip(*one.one_ulp, strict=True)]
            axis.fill_between(one.steps, least, one.floor, color=FLOOR, alpha=0.35, lw=0)
            axis.plot(one.steps, one.floor, color=FLOOR, label="one ulp: least to largest")
            axis.plot(one.steps, every.floor, color=FLOOR, ls=":", label="largest, of all weights")
            for framework, curve in one.exact.items():
                axis.plot(
                    one.steps,
                    curve,
                    color=EXACT,
                    ls="-" if framework == "torch" else ":",
                    lw=1,
                    label=f"{framework} to float64",
                )
            for number, curve in enumerate(one.handed_over.values()):
                shown = [value or float("nan") for value in curve]
                axis.plot(
                    one.steps,
                    shown,
                    color=CHANGING,
                    lw=0.7,
                    label=None if number else "runs that change sides",
                )
            if one.between:
                axis.plot(
                    one.steps, one.between, color=BETWEEN, lw=1.6, label=" to ".join(one.exact)
                )
                axis.plot(
                    one.steps,
                    every.between,
                    color=BETWEEN,
                    lw=1.2,
                    ls=":",
                    label="the same, of all weights",
                )
            if one.chaos:
                axis.axvline(one.chaos, color="black", ls="--", lw=0.8)
                axis.annotate(
                    "chaotic", (one.chaos, 1.0), rotation=90, va="top", ha="right", fontsize=8
                )
            axis.set(
                title=name,
                xscale="log",
                yscale="log",
                xlabel="steps",
                ylabel="share of the distance moved",
            )
            axis.grid(alpha=0.3, which="major")
        figure.legend(
            *axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4
        )
        for axis in axes[len(floors) :]:
            axis.set_visible(False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, drawn.getvalue())
    return path.name
