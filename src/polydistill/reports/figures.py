"""The report's figures, as SVG. Their text uses the page's font."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct in any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
# With more series than colours, the colours repeat with another stroke.
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "xxxx")
BASELINES = {"unigram": "#999999"}
# Characters in a line of the legend, including the squares before names.
LEGEND_CHARACTERS = 60
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polydistill",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def logged(log: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]] | None:
    """The curve of a value in a training's log: (steps, values); None if it was never logged."""
    points = [(entry["step"], entry[name]) for entry in log if name in entry]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str) -> str:
    """Lines: name → (x values, y values)."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for index, (name, (x, y)) in enumerate(series.items()):
            # In a short line, each point is a measurement: mark it.
            marker = "o" if len(x) < 10 else None
            again, place = divmod(index, len(COLOURS))
            axes.plot(
                x,
                y,
                label=name,
                color=COLOURS[place],
                linestyle=DASHES[again % len(DASHES)],
                linewidth=1.8,
                marker=marker,
                markersize=4,
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(series) > 1:
            axes.legend()
        return _svg(figure)


def grouped_bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *, ylabel: str) -> str:
    """Bars side by side in each group, with their values on top; None leaves a gap."""
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "y"}):
        figure = Figure(figsize=(max(6.4, 0.5 * len(groups) * len(series)), 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        width = 0.8 / max(1, len(series))
        models = [name for name in series if name not in BASELINES]
        for index, (name, values) in enumerate(series.items()):
            # A model's colour does not depend on whether the figure has a baseline.
            again, place = divmod(0 if name in BASELINES else models.index(name), len(COLOURS))
            colour = BASELINES.get(name) or COLOURS[place]
            places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
            heights = [0.0 if value is None else value for value in values]
            bars = axes.bar(
                places,
                heights,
                width * 0.92,
                label=name,
                color=colour,
                hatch=HATCHES[again % len(HATCHES)],
                edgecolor="white",
                linewidth=0,
            )
            axes.bar_label(bars, [_short(value) for value in values], fontsize=8, padding=1)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_ylabel(ylabel)
        axes.margins(y=0.15)
        # The page's font may be wider than matplotlib's: long names get more room.
        columns = max(1, LEGEND_CHARACTERS // (max(map(len, series)) + 4))
        if sum(len(name) + 5 for name in series) <= LEGEND_CHARACTERS:
            columns = len(series)
        figure.legend(loc="outside upper center", ncols=min(columns, len(series)))
        return _svg(figure)


def _short(value: float | None) -> str:
    """A value in three digits, which fit a bar's width."""
    if value is None:
        return ""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def heat_map(values: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A square matrix as shaded cells with their values, from 0 (white) to 1."""
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        side = 0.62 * len(names) + 1.0
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set_xticks(range(len(names)), list(names))
        axes.set_yticks(range(len(names)), list(names))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                # White text on dark cells.
                colour = "white" if value > 0.6 else "#1d2733"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xlabel("to")
        axes.set_ylabel("from")
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The page sets the size: drop the one that matplotlib writes.
    for side in ("height", "width"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    return svg
