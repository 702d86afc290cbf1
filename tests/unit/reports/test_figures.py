"""Figures of a report."""

from __future__ import annotations


def test_more_series_than_colours_are_told_apart_by_their_stroke() -> None:
    import re

    from polydistill.reports.figures import COLOURS, curves, grouped_bars

    names = [f"s{index}" for index in range(len(COLOURS) + 1)]
    drawn = curves({name: ([0, 1], [0.0, 1.0]) for name in names}, xlabel="x", ylabel="y")
    lines = re.findall(
        rf"stroke-dasharray: [\d., ]+; stroke-dashoffset: 0; stroke: {COLOURS[0].lower()}", drawn
    )
    # One of the figure's, one of the legend's.
    assert len(lines) == 2
    bars = grouped_bars(["all"], {name: [0.1964] for name in names}, ylabel="y")
    assert bars.count("<pattern") == 1
    assert ">.196<" in bars
