"""What is measured in which order: runs alternate between the tunnels, so that a slow minute hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from bench.rows.machine import Noise
from bench.rows.results import Results
from bench.rows.row import Cells, Line, Row, Setting, attempt
from bench.tunnels import Tunnel

Item = TypeVar("Item")


@dataclass
class Scorecard:
    """All that was found out.

    Attributes:
        quick: Whether sizes and times were the short ones.
        runs: How often each cell was measured.
        machine: What it was measured on.
        versions: Of the tunnels.
        unavailable: Tunnels and rulers that could not be measured, with the reason.
        noise: Whether the machine was quiet.
        results: The samples.
        notes: What readers of the tables must know, by row.
        rulers: Names of the lines that are no tunnels.
        seconds: What each row took.
    """

    quick: bool
    runs: int
    machine: dict[str, str]
    versions: dict[str, str]
    unavailable: dict[str, str]
    noise: Noise
    results: Results = field(default_factory=Results)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rulers: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)


def rotated(items: Sequence[Item], run: int) -> list[Item]:
    """Return the items in the order of a run: another one comes first each time."""
    start = run % len(items) if items else 0
    return [*items[start:], *items[:start]]


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut into parts of the size, and a rest."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def measure(row: Row, lines: Sequence[Line], runs: int, results: Results, between: Callable[[str], None]) -> None:
    """Measure one row.

    Args:
        row: What to measure.
        lines: The tunnels.
        runs: How often.
        results: Where it goes.
        between: Called before each run, with what has been done.
    """

    def cells(line: Line) -> Cells:
        return attempt(row.keys, row.cells, line)

    for table in row.tables:
        results.announce(table, [line.name for line in lines])
    with row:
        for run in range(runs):
            between(f"{row.name}, run {run}" if run else f"the start of {row.name}")
            for batch in batches(rotated(lines, run), row.at_a_time):
                with ThreadPoolExecutor(len(batch)) as pool:
                    for line, measured in zip(batch, pool.map(cells, batch), strict=True):
                        results.add(line.name, measured)


def carry_out(
    scorecard: Scorecard,
    setting: Setting,
    rows: Sequence[type[Row]],
    tunnels: Sequence[Tunnel],
    tell: Callable[[str], None],
) -> None:
    """Measure all rows.

    Args:
        scorecard: Where it goes.
        setting: What the measurements share.
        rows: What to measure.
        tunnels: The tunnels, all of which can be run.
        tell: Gets a line now and then.
    """
    for kind in rows:
        row = kind(setting)
        lines = row.lines(tunnels)
        if not lines:
            continue
        tell(f"{row.name}: {', '.join(line.name for line in lines)}")
        began = time.monotonic()
        measure(row, lines, scorecard.runs, scorecard.results, scorecard.noise.look)
        scorecard.seconds[row.name] = time.monotonic() - began
        scorecard.notes[row.name] = row.notes
        scorecard.rulers.update(line.name for line in lines if line.ruler)
        tell(f"{row.name}: {scorecard.seconds[row.name]:.0f} s")
    scorecard.noise.look("everything")
