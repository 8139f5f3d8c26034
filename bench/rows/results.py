"""What was measured, and the statistics over it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.rows.row import Cells, Failure, Table, Value


@dataclass(frozen=True)
class Summary:
    """The runs of one cell.

    Attributes:
        median: Of the runs that measured something; None where none did.
        least: Of the same.
        most: Of the same.
        failures: Why the others did not.
        runs: How many there were in all.
    """

    median: float | None
    least: float | None
    most: float | None
    failures: tuple[str, ...]
    runs: int


def summarize(samples: Iterable[Value]) -> Summary:
    """Sum up the runs of one cell."""
    samples = list(samples)
    values = [sample for sample in samples if not isinstance(sample, Failure)]
    failures = tuple(sample.reason for sample in samples if isinstance(sample, Failure))
    if not values:
        return Summary(None, None, None, failures, len(samples))
    return Summary(statistics.median(values), min(values), max(values), failures, len(samples))


class Results:
    """The samples of all cells, in the order of their runs."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[str, list[Value]]] = {}
        self._tables: dict[str, Table] = {}

    @property
    def tables(self) -> list[Table]:
        """Return the tables in the order in which they were announced."""
        return list(self._tables.values())

    def announce(self, table: Table, lines: Iterable[str]) -> None:
        """Make room for a table with these lines, which decides their order."""
        self._tables[table.name] = table
        for key in table.keys:
            self._samples[key] = {line: [] for line in lines}

    def add(self, line: str, cells: Cells) -> None:
        """Add one run of a line."""
        for key, value in cells.items():
            self._samples[key][line].append(value)

    def lines(self, table: Table) -> list[str]:
        """Return the lines of a table for which there is any sample."""
        names = dict.fromkeys(name for key in table.keys for name in self._samples[key])
        return [name for name in names if any(self._samples[key][name] for key in table.keys)]

    def samples(self, line: str, key: str) -> list[Value]:
        """Return the samples of a cell; none where it was not measured."""
        return list(self._samples.get(key, {}).get(line, ()))

    def summary(self, line: str, key: str) -> Summary:
        """Sum up a cell."""
        return summarize(self.samples(line, key))

    def median(self, line: str, key: str) -> float | None:
        """Return the median of a cell, or None where there is no value."""
        return self.summary(line, key).median

    def failures(self) -> list[tuple[str, str, str]]:
        """Return (line, key, reason) of every run that measured nothing."""
        return [
            (line, key, sample.reason)
            for key, lines in self._samples.items()
            for line, samples in lines.items()
            for sample in samples
            if isinstance(sample, Failure)
        ]
