"""Draw the noise floor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pe_core.storage.files import write_file
from pe_parity.floor import Floor

# Every second step at which runs were compared is drawn.
THINNED: Final = 2
DIGITS: Final = 3
# Colour and dashes of each line; those of all parameters are dotted.
STYLES: Final = {
    "one ulp, least": ("#7f8c8d", "6 3"),
    "one ulp, largest": ("#7f8c8d", ""),
    "one ulp, largest, all parameters": ("#7f8c8d", "1 3"),
    "torch to float64": ("#2980b9", ""),
    "flax to float64": ("#2980b9", "6 3"),
    "handed over, largest": ("#27ae60", ""),
    "torch to flax": ("#c0392b", ""),
    "torch to flax, all parameters": ("#c0392b", "1 3"),
}
OTHER: Final = ("#8e44ad", "")
# Sizes in pixels.
WIDTH, HEIGHT, MARGIN, LEGEND = 360, 220, 44, 56


def curves(floor: Floor) -> dict[str, Any]:
    """Return the lines of one training, thinned and rounded: the steps, each line by its label, and
    the step at which training is chaotic.
    """
    one, every = floor.compared, floor.all_weights
    pair = " to ".join(one.exact)
    lines = {
        "one ulp, least": [min(column) for column in zip(*one.one_ulp, strict=True)],
        "one ulp, largest": one.floor,
        "one ulp, largest, all parameters": every.floor,
        **{f"{name} to float64": curve for name, curve in one.exact.items()},
    }
    if one.handed_over:
        handed_over = zip(*one.handed_over.values(), strict=True)
        lines["handed over, largest"] = [max(column) for column in handed_over]
    if one.between:
        lines |= {pair: one.between, f"{pair}, all parameters": every.between}
    last = len(one.steps) - 1
    chosen = [*range(0, last, THINNED), last]
    thinned = {name: [_rounded(line[at]) for at in chosen] for name, line in lines.items()}
    return {"steps": [one.steps[at] for at in chosen], "chaos": one.chaos, "lines": thinned}


def draw(path: Path, trainings: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the curves of each training into an SVG file, on logarithmic axes.

    Args:
        path: of the file.
        trainings: of `curves`, by the name of the training.
    """
    shown = [
        value
        for found in trainings.values()
        for line in found["lines"].values()
        for value in line
        if value
    ]
    decades = range(math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown))) + 1)
    rows = (len(trainings) + 1) // 2
    width, height = 2 * (WIDTH + MARGIN) + MARGIN, rows * (HEIGHT + MARGIN) + MARGIN + LEGEND
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" fill="none">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (name, found) in enumerate(trainings.items()):
        x, y = MARGIN + number % 2 * (WIDTH + MARGIN), MARGIN + number // 2 * (HEIGHT + MARGIN)
        drawn += [f'<g transform="translate({x} {y})">', *_panel(name, found, decades), "</g>"]
    labels = dict.fromkeys(label for found in trainings.values() for label in found["lines"])
    for number, label in enumerate(labels):
        x, y = MARGIN + number % 3 * 260, height - LEGEND + number // 3 * 18
        drawn += [f'<path d="M{x} {y}h24" {_style(label)}/>', _text(x + 30, y + 4, label, "start")]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "\n".join([*drawn, "</svg>\n"]).encode())


def _panel(name: str, found: Mapping[str, Any], decades: range) -> Iterator[str]:
    """Yield the elements of one training: axes, then a path for each line."""
    steps = found["steps"]
    across, up = WIDTH / math.log10(max(steps[-1], 2)), HEIGHT / (len(decades) - 1 or 1)

    def place(step: float, value: float) -> str:
        return f"{across * math.log10(step):.1f} {up * (decades[-1] - math.log10(value)):.1f}"

    yield f'<rect width="{WIDTH}" height="{HEIGHT}" stroke="black"/>'
    yield _text(WIDTH // 2, -8, f"{name}: distance over the distance moved, by step")
    for power in range(math.floor(math.log10(steps[-1])) + 1):
        yield _text(round(across * power), HEIGHT + 14, f"{10**power:,}")
    for decade in decades:
        at = f"{up * (decades[-1] - decade):.1f}"
        yield f'<path d="M0 {at}h{WIDTH}" stroke="#ddd"/>'
        yield _text(-4, float(at) + 4, f"1e{decade}", "end")
    if found["chaos"]:
        at = f"{across * math.log10(found['chaos']):.1f}"
        yield f'<path d="M{at} 0v{HEIGHT}" stroke="black" stroke-dasharray="4 3"/>'
        yield _text(float(at) - 4, 12, "chaotic", "end")
    for label, line in found["lines"].items():
        points = [place(step, value) for step, value in zip(steps, line, strict=True) if value]
        if points:
            yield f'<path d="M{"L".join(points)}" {_style(label)}/>'


def _style(label: str) -> str:
    colour, dashes = STYLES.get(label, OTHER)
    return f'stroke="{colour}" stroke-width="1.4"' + (
        f' stroke-dasharray="{dashes}"' if dashes else ""
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="black" text-anchor="{anchor}">{text}</text>'


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
