"""The picture of the noise floor."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from pe_core.files import write_file
from pe_core.parity.floor import Curves

# Ink for what is compared, grey for what it is compared with.
BETWEEN, FLOOR, EXACT, CHANGING = "#c0392b", "#7f8c8d", "#2980b9", "#27ae60"


def draw_floor(path: Path, curves: Mapping[str, Curves]) -> str | None:
    """Draw the curves into an SVG file and return its name; None where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # The same curves give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "floor", "font.size": 9}):
        figure = Figure(figsize=(10, 3.4 * ((len(curves) + 1) // 2)), layout="constrained")
        axes = figure.subplots((len(curves) + 1) // 2, 2, squeeze=False, sharey=True).ravel()
        for axis, (name, one) in zip(axes, curves.items(), strict=False):
            floors = [list(column) for column in zip(*one.one_ulp, strict=True)]
            axis.fill_between(one.steps, [min(column) for column in floors], one.floor, color=FLOOR, alpha=0.35, lw=0)
            axis.plot(one.steps, one.floor, color=FLOOR, label="one ulp: least to largest")
            for framework, curve in one.exact.items():
                axis.plot(one.steps, curve, color=EXACT, ls="-" if framework == "torch" else ":", lw=1, label=f"{framework} to float64")
            for number, curve in enumerate(one.handed_over.values()):
                shown = [value or float("nan") for value in curve]
                axis.plot(one.steps, shown, color=CHANGING, lw=0.7, label=None if number else "runs that change sides")
            if one.between:
                axis.plot(one.steps, one.between, color=BETWEEN, lw=1.6, label=" to ".join(one.exact))
            if one.chaos:
                axis.axvline(one.chaos, color="black", ls="--", lw=0.8)
                axis.annotate("chaotic", (one.chaos, 1.0), rotation=90, va="top", ha="right", fontsize=8)
            axis.set(title=name, xscale="log", yscale="log", xlabel="steps", ylabel="share of the distance moved")
            axis.grid(alpha=0.3, which="major")
        axes[0].legend(fontsize=7, loc="upper left")
        for axis in axes[len(curves) :]:
            axis.set_visible(False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, drawn.getvalue())
    return path.name
