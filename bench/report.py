"""The scorecard as text, as JSON and as a part of the documentation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.plan import Scorecard
from bench.rows.results import Results, Summary
from bench.rows.row import Table
from bench.rows.targets import OURS, Check, check_all

BEGIN = "<!-- scorecard: written by python -m bench --write-docs -->"
END = "<!-- end of the scorecard -->"
NEW_PAGE = f"# Performance\n\n{BEGIN}\n{END}\n"

Grid = Sequence[Sequence[str]]
"""Rows of cells, the headline first."""


def number(value: float, decimals: int) -> str:
    """Write a number as the tables do."""
    return f"{value:,.{decimals}f}"


def cell(summary: Summary, decimals: int) -> str:
    """Write the median and, of several runs, the spread; a star stands for runs that failed."""
    if summary.runs == 0:
        return "-"
    if summary.median is None or summary.least is None or summary.most is None:
        return "failed"
    text = number(summary.median, decimals)
    if summary.runs - len(summary.failures) > 1:
        text += f" ({number(summary.least, decimals)}-{number(summary.most, decimals)})"
    return text + "*" * bool(summary.failures)


def grid(results: Results, table: Table) -> Grid:
    """Return a table: a line for each tunnel."""
    return [
        ["", *table.columns],
        *(
            [line, *(cell(results.summary(line, key), table.decimals) for key in table.keys)]
            for line in results.lines(table)
        ),
    ]


def targets_grid(results: Results, checks: Sequence[Check]) -> Grid:
    """Return the table of targets, without those for which there was no run."""
    tables = {key: table for table in results.tables for key in table.keys}
    lines = [["target", "cell", "reached", "needed", "ratio", ""]]
    for check in checks:
        table = tables.get(check.key)
        if table is None or check.verdict == "not measured":
            continue
        decimals = table.decimals
        reached = "-" if check.reached is None else f"{number(check.reached, decimals)} {table.unit}"
        bound = number(check.needed, decimals) if check.needed is not None else "-"
        needed = f"{check.target.relation} {bound}"
        if check.against is not None:
            needed += f" = {check.target.factor:g} x {check.against}"
        ratio = f"{check.ratio:.2f}" if check.ratio is not None else "-"
        verdict = check.verdict + (f" ({check.remark})" if check.remark else "")
        lines.append([check.target.row, check.key, reached, needed, ratio, verdict])
    return lines


def as_text(lines: Grid) -> str:
    """Write a table in columns; the first to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_left_text(lines: Grid) -> str:
    """Write a table in columns, all to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_markdown(lines: Grid) -> str:
    """Write a table in Markdown."""
    head, *rest = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *rest])


def heading(table: Table) -> str:
    """Return what stands above a table."""
    return f"{table.title} ({table.unit}, {'lower' if table.lower_is_better else 'higher'} is better)"


def failures(results: Results) -> list[str]:
    """Return why runs failed, the same reasons of a line together."""
    counted = Counter((line, reason) for line, _, reason in results.failures())
    return [
        f"{line}: {reason}" + (f" ({count} cells)" if count > 1 else "") for (line, reason), count in counted.items()
    ]


def circumstances(scorecard: Scorecard) -> list[str]:
    """Return how and where it was measured, a line each."""
    machine = ", ".join(f"{name}: {value}" for name, value in scorecard.machine.items())
    versions = ", ".join(f"{name} {version}".strip() for name, version in scorecard.versions.items())
    noise = scorecard.noise
    lines = [
        f"Machine: {machine}",
        f"Measured: {versions}",
        f"{'Short runs' if scorecard.quick else 'Runs'}, alternating between the tunnels: {scorecard.runs}; each cell "
        "is the median (least-most); * means that runs failed; every byte was verified",
        f"Without a tunnel, 1 stream: {noise.median():.1f} Gbit/s, quickest by slowest {noise.spread():.2f}; "
        f"stolen by the hypervisor: {noise.stolen():.1%}; busy before: {noise.busy_before:.0%}",
        f"Time: {sum(scorecard.seconds.values()) / 60:.1f} min ("
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in scorecard.seconds.items())
        + ")",
    ]
    lines += [f"Not measured: {name}: {reason}" for name, reason in scorecard.unavailable.items()]
    lines += [f"NOISY MACHINE: {flag}" for flag in noise.flags()]
    return lines


def text(scorecard: Scorecard) -> str:
    """Write all of it for a terminal."""
    results = scorecard.results
    checks = check_all(results)
    parts = ["\n".join(circumstances(scorecard))]
    parts += [f"{heading(table)}\n{as_text(grid(results, table))}" for table in results.tables if results.lines(table)]
    notes = [f"{row}: {note}" for row, each in scorecard.notes.items() for note in each]
    for title, lines in (("Notes", notes), ("Failed", failures(results))):
        if lines:
            parts.append(f"{title}\n" + "\n".join(lines))
    shown = targets_grid(results, checks)
    if len(shown) > 1:
        parts.append(f"Targets of {OURS}: {counted(checks)}\n{as_left_text(shown)}")
    return "\n\n".join(parts)


def counted(checks: Sequence[Check]) -> str:
    """Sum up the verdicts."""
    verdicts = Counter(check.verdict for check in checks)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items(), key=lambda each: -each[1]))


def as_json(scorecard: Scorecard) -> dict[str, Any]:
    """Return all of it with every sample; a run that failed is a text."""
    results = scorecard.results
    noise = scorecard.noise
    return {
        "quick": scorecard.quick,
        "runs": scorecard.runs,
        "machine": scorecard.machine,
        "versions": scorecard.versions,
        "unavailable": scorecard.unavailable,
        "noise": {
            "flags": noise.flags(),
            "busy_before": noise.busy_before,
            "stolen": noise.stolen(),
            "spread": noise.spread(),
            "looks": [asdict(look) for look in noise.looks],
        },
        "seconds": scorecard.seconds,
        "notes": scorecard.notes,
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "unit": table.unit,
                "lower_is_better": table.lower_is_better,
                "lines": {
                    line: {
                        column: {
                            **asdict(results.summary(line, table.key(column))),
                            "samples": [
                                sample if isinstance(sample, float | int) else sample.reason
                                for sample in results.samples(line, table.key(column))
                            ],
                        }
                        for column in table.columns
                    }
                    for line in results.lines(table)
                },
            }
            for table in results.tables
        ],
        "targets": [{**asdict(check), "ratio": check.ratio} for check in check_all(results)],
    }


def write_json(scorecard: Scorecard, file: Path) -> None:
    """Write the JSON file."""
    file.write_text(json.dumps(as_json(scorecard), indent=1) + "\n", encoding="utf-8")


def markdown(scorecard: Scorecard, pictures: dict[str, str]) -> str:
    """Write all of it for the documentation.

    Args:
        scorecard: What was measured.
        pictures: Where the plot of a table is, by the table's name.
    """
    results = scorecard.results
    checks = check_all(results)
    parts = ["\n".join(f"- {line}" for line in circumstances(scorecard))]
    notes = [f"- {row}: {note}" for row, each in scorecard.notes.items() for note in each]
    if notes:
        parts.append("\n".join(notes))
    parts.append(f"## Targets\n\n{counted(checks)}.\n\n{as_markdown(targets_grid(results, checks))}")
    for table in results.tables:
        if not results.lines(table):
            continue
        parts.append(f"## {table.title}\n\n{table.unit}, {'lower' if table.lower_is_better else 'higher'} is better.")
        if table.name in pictures:
            parts.append(f"![{table.title}]({pictures[table.name]})")
        parts.append(as_markdown(grid(results, table)))
    lines = failures(results)
    if lines:
        parts.append("## Failed runs\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)


def replace_between_markers(page: str, content: str) -> str:
    """Return the page with new content between its markers.

    Raises:
        ValueError: The page does not have both.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def write_docs(scorecard: Scorecard, plots: dict[str, Path], docs: Path) -> Path:
    """Put the plots and the tables into the documentation, and return the page.

    Args:
        scorecard: What was measured.
        plots: Pictures by the name of their table.
        docs: The documentation's folder.
    """
    folder = docs / "performance"
    folder.mkdir(exist_ok=True)
    for plot in plots.values():
        shutil.copyfile(plot, folder / plot.name)
    page = docs / "performance.md"
    old = page.read_text(encoding="utf-8") if page.exists() else NEW_PAGE
    pictures = {name: f"performance/{plot.name}" for name, plot in plots.items()}
    page.write_text(replace_between_markers(old, markdown(scorecard, pictures)), encoding="utf-8")
    return page
