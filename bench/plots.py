"""A picture of each table: a panel for each column, in it a bar for each tunnel. Needs matplotlib (extra ``bench``)."""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.report import heading, number
from bench.rows.results import Results
from bench.rows.row import Table
from bench.rows.targets import OURS

OWN_COLOUR = "#1f6fb4"
PEER_COLOUR = "#a8adb3"
RULER_COLOUR = "#e3e5e8"
PANELS_IN_A_ROW = 4
PANEL_WIDTH = 3.2  # inches
BAR_HEIGHT = 0.3
# Room beside the longest bar of a tunnel, as its share. A ruler that is longer is cut off there.
MARGIN = 0.3
DOTS_PER_INCH = 110


def plot_all(results: Results, rulers: Set[str], folder: Path) -> dict[str, Path]:
    """Write a PNG file for each table that has values, and return the files by table name."""
    plots = {}
    for table in results.tables:
        if any(results.median(line, key) is not None for line in results.lines(table) for key in table.keys):
            plots[table.name] = folder / f"{table.name.replace(' ', '-')}.png"
            plot(results, table, rulers, plots[table.name])
    return plots


def plot(results: Results, table: Table, rulers: Set[str], file: Path) -> None:
    """Draw one table."""
    lines = results.lines(table)
    count = len(table.columns)
    # Six in two rows of three rather than in rows of four and two.
    rows = math.ceil(count / PANELS_IN_A_ROW)
    columns = math.ceil(count / rows)
    size = (1.3 + PANEL_WIDTH * columns, 0.5 + rows * (0.6 + BAR_HEIGHT * len(lines)))
    figure, grid = pyplot.subplots(rows, columns, sharey=True, squeeze=False, figsize=size)
    panels = [panel for row in grid for panel in row]
    try:
        for panel, column in zip(panels, table.columns, strict=False):
            _draw(panel, results, table, column, lines, rulers)
        for panel in panels[count:]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(lines)), lines)
        panels[0].invert_yaxis()
        figure.suptitle(heading(table), fontsize=11)
        figure.tight_layout()
        figure.savefig(file, dpi=DOTS_PER_INCH)
    finally:
        pyplot.close(figure)


def _draw(panel: Axes, results: Results, table: Table, column: str, lines: list[str], rulers: Set[str]) -> None:
    ends = [results.summary(line, table.key(column)).most or 0.0 for line in lines if line not in rulers]
    limit = (1 + MARGIN) * max(ends, default=0.0) or None
    for position, line in enumerate(lines):
        summary = results.summary(line, table.key(column))
        if summary.median is None or summary.least is None or summary.most is None:
            if summary.runs:
                panel.text(0, position, " failed", va="center", fontsize=8)
            continue
        spread = [[summary.median - summary.least], [summary.most - summary.median]]
        colour = RULER_COLOUR if line in rulers else OWN_COLOUR if line.startswith(OURS) else PEER_COLOUR
        panel.barh(position, summary.median, xerr=spread, color=colour, ecolor="#444444", capsize=2, height=0.7)
        text = number(summary.median, table.decimals)
        if limit is not None and summary.most > limit:
            panel.text(limit, position, f"{text} >  ", va="center", ha="right", fontsize=8)
        else:
            panel.text(summary.most, position, f"  {text}", va="center", ha="left", fontsize=8)
    panel.set_title(column, fontsize=10)
    panel.set_xlim(0, limit)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
