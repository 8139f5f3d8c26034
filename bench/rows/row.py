"""What all rows of the scorecard have in common: tables, lines, and how a tunnel gets measured."""

from __future__ import annotations

import abc
import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.load import ECHO_REQUEST, Address, LoadError, Service
from bench.tunnels import Place, Running, Tunnel, TunnelFailed
from tests.support.process import ProcessError

# What a tunnel that does not do its work makes of a measurement; everything else is a mistake in the scorecard.
FAILURES = (LoadError, TunnelFailed, ProcessError, OSError, AssertionError)

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Failure:
    """What stands in a cell when nothing could be measured."""

    reason: str


Value = float | Failure
Cells = dict[str, Value]
"""Values by key, see ``Table.key``."""


class MeasurementFailed(Exception):
    """A tunnel did not carry what it should; the text is for the table."""


@dataclass(frozen=True)
class Table:
    """A table of the scorecard; its lines are the tunnels.

    Attributes:
        name: Short and unique.
        title: What stands above it.
        unit: Of every cell.
        columns: What they are called.
        lower_is_better: Which end is the good one.
        decimals: Digits shown.
    """

    name: str
    title: str
    unit: str
    columns: tuple[str, ...]
    lower_is_better: bool = False
    decimals: int = 2

    def key(self, column: str) -> str:
        """Return the name of a column that is unique in the whole scorecard."""
        return f"{self.name}/{column}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys of all columns."""
        return tuple(self.key(column) for column in self.columns)


@dataclass(frozen=True)
class Line:
    """A tunnel as one line of a table: with its default settings, or with the named ones.

    Attributes:
        name: As the table calls it.
        open: Starts it at a place; it runs while the context lasts.
        ruler: It is no tunnel, but what tunnels are measured against.
    """

    name: str
    open: Callable[[Place], contextlib.AbstractContextManager[Running]]
    ruler: bool = False


def line_of(tunnel: Tunnel) -> Line:
    """Return the line of a tunnel at its default settings."""
    return Line(tunnel.name, tunnel.open)


def ruler(tunnel: Tunnel) -> Line:
    """Return the line of something that is no tunnel."""
    return Line(tunnel.name, tunnel.open, ruler=True)


class Setting:
    """What the measurements of one scorecard share.

    Args:
        service: The local service that the tunnels make public.
        directory: An empty folder for the tunnels' configuration and logs.
        quick: Whether sizes and times are the short ones.
    """

    def __init__(self, service: Service, directory: Path, *, quick: bool) -> None:
        self.service = service
        self.quick = quick
        self._directory = directory
        self._numbers = itertools.count(1)

    def place(
        self,
        *,
        service: Address | None = None,
        server_address: str = "127.0.0.1",
        server_prefix: tuple[str, ...] = (),
        client_prefix: tuple[str, ...] = (),
    ) -> Place:
        """Return a place with a folder of its own. May be called from any thread.

        Args:
            service: The local service; default: the one that all share.
            server_address: Where the tunnel's own port listens.
            server_prefix: Goes before the server's command line.
            client_prefix: Goes before the client's.
        """
        return Place(
            directory=self.directory(),
            service=service or self.service.address,
            server_address=server_address,
            server_prefix=server_prefix,
            client_prefix=client_prefix,
            echo_request=ECHO_REQUEST,
        )

    def directory(self) -> Path:
        """Return a new, empty folder. May be called from any thread."""
        directory = self._directory / str(next(self._numbers))
        directory.mkdir()
        return directory

    def pick(self, full: float, quick: float) -> float:
        """Return the value for this kind of scorecard."""
        return quick if self.quick else full


class Row(abc.ABC):
    """Something to measure, with all tables it fills. Used within ``with``, which ends what is still running.

    Attributes:
        name: As ``--rows`` calls it.
        tables: What ``cells()`` fills.
        at_a_time: How many lines are measured at the same time.
        notes: What a reader of the tables has to know.
    """

    name: str
    tables: tuple[Table, ...]
    at_a_time = 1
    notes: tuple[str, ...] = ()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Row:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        """Return the lines of the tables, rulers included."""
        return [line_of(tunnel) for tunnel in tunnels]

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys of all cells of a line."""
        return tuple(key for table in self.tables for key in table.keys)

    @abc.abstractmethod
    def cells(self, line: Line) -> Cells:
        """Measure once."""


class FreshRow(Row):
    """Each measurement gets a tunnel that was just started."""

    # argv prefix of both sides
    prefix: tuple[str, ...] = ()

    @abc.abstractmethod
    def measure(self, running: Running, line: Line) -> Cells:
        """Measure once."""

    def cells(self, line: Line) -> Cells:
        """Start, measure, end."""
        place = self.setting.place(server_prefix=self.prefix, client_prefix=self.prefix)
        with line.open(place) as running:
            return self.measure(running, line)


class SharedRow(Row):
    """Tunnels stay up from the first run to the last, and are idle while others are measured."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._open: dict[str, tuple[contextlib.ExitStack, Running]] = {}
        self._cleanup.callback(self._close_all)

    @abc.abstractmethod
    def measure(self, running: Running, line: Line) -> Cells:
        """Measure once."""

    def warm_up(self, running: Running) -> None:
        """Make a tunnel that was just started ready for the first measurement."""

    def cells(self, line: Line) -> Cells:
        """Measure, with a new tunnel where the old one has failed."""
        if line.name not in self._open:
            with contextlib.ExitStack() as stack:
                running = stack.enter_context(line.open(self.setting.place()))
                self.warm_up(running)
                self._open[line.name] = stack.pop_all(), running
        running = self._open[line.name][1]
        sound = False
        try:
            cells = self.measure(running, line)
            sound = running.alive() and not any(isinstance(value, Failure) for value in cells.values())
        finally:
            if not sound:
                self._close(line.name)
        return cells

    def _close_all(self) -> None:
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        # That a tunnel does not end when it should is not what is measured here.
        with contextlib.suppress(*FAILURES):
            self._open.pop(name)[0].close()


def attempt(keys: Iterable[str], action: Callable[..., Cells], *arguments: object) -> Cells:
    """Return what ``action`` measured, or the reason why not for each of the keys."""
    try:
        return action(*arguments)
    except (MeasurementFailed, *FAILURES) as error:
        return dict.fromkeys(keys, Failure(first_line(error)))


def first_line(error: BaseException) -> str:
    """Return what went wrong, short enough for a table's footnote."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def cpu_time(running: Running) -> Callable[[], float]:
    """Return a function that tells the CPU seconds both sides have used since this call."""
    before = sum(running.cpu_seconds())
    return lambda: sum(running.cpu_seconds()) - before
