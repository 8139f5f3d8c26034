"""Bulk transfers over TCP: rate, and CPU time of server and client together."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Literal

from bench import load
from bench.rows.row import (
    GIB,
    MIB,
    Cells,
    Failure,
    Line,
    MeasurementFailed,
    Setting,
    SharedRow,
    Table,
    attempt,
    cpu_time,
    first_line,
    ruler,
)
from bench.tunnels import Direct, Gtls, Running, Tunnel
from bench.tunnels.rulers import GtlsServer

Direction = Literal["up", "down"]

CASES: tuple[tuple[Direction, int], ...] = (("up", 1), ("up", 8), ("up", 64), ("down", 1), ("down", 8), ("down", 64))
COLUMNS = tuple(f"{direction} {streams}" for direction, streams in CASES)
SPEED = Table("bulk", "Bulk TCP by direction and number of streams", "Gbit/s", COLUMNS)
CPU = Table("bulk CPU", "CPU time of server and client in these transfers", "s per GiB", COLUMNS, lower_is_better=True)

GTLS_COLUMN = "down 1"
STALLED = 10.0  # seconds without progress after which a transfer has failed


def transfer(running: Running, direction: Direction, streams: int, size: int) -> float:
    """Transfer in bulk and return Gbit/s.

    Raises:
        MeasurementFailed: Not everything arrived as it was sent.
    """
    done = load.bulk(running.tcp, direction=direction, streams=streams, total=size, timeout=STALLED)
    if not done.ok:
        raise MeasurementFailed("; ".join(done.errors[:2]) or f"{done.bytes} of {size} bytes arrived")
    return done.gigabits_per_second


class BulkRow(SharedRow):
    """Up and down with one stream and with many, beside no tunnel at all and beside raw QUIC."""

    name = "bulk"
    tables = (SPEED, CPU)
    # These would take half of the row's time; their rate does not depend on the size.
    slow = ("frp QUIC", "chisel")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._size = int(setting.pick(128, 64)) * MIB
        self._slow_size = self._size // 2
        self._gtls = Gtls()
        self._gtls_server: GtlsServer | None = None
        self.notes = (
            f"{self._size // MIB} MiB a transfer, {self._slow_size // MIB} MiB for the slow ones "
            f"({', '.join(self.slow)}); direct: no tunnel; gtls: raw QUIC, bytes not verified",
        )

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        lines = [*super().lines(tunnels), ruler(Direct())]
        if self._gtls.unavailable() is None:
            # Its server is no tunnel, and opened here.
            lines.append(Line(self._gtls.name, Direct().open, ruler=True))
        return lines

    def cells(self, line: Line) -> Cells:
        return self._raw() if line.name == self._gtls.name else super().cells(line)

    def warm_up(self, running: Running) -> None:
        with contextlib.suppress(MeasurementFailed):
            transfer(running, "up", 8, self._slow_size)
            transfer(running, "down", 8, self._slow_size)

    def measure(self, running: Running, line: Line) -> Cells:
        cells: Cells = {}
        size = self._slow_size if line.name in self.slow else self._size
        for column, (direction, streams) in zip(COLUMNS, CASES, strict=True):
            cells.update(self._case(running, line, column, direction, streams, size))
        return cells

    @staticmethod
    def _case(running: Running, line: Line, column: str, direction: Direction, streams: int, size: int) -> Cells:
        def measured() -> Cells:
            used = cpu_time(running)
            cells: Cells = {SPEED.key(column): transfer(running, direction, streams, size)}
            if not line.ruler:
                cells[CPU.key(column)] = used() * GIB / size
            return cells

        return attempt([SPEED.key(column)] if line.ruler else [SPEED.key(column), CPU.key(column)], measured)

    def _raw(self) -> Cells:
        key = SPEED.key(GTLS_COLUMN)
        if self._gtls_server is None:
            self._gtls_server = self._cleanup.enter_context(self._gtls.open(self.setting.directory()))
            self._gtls_server.download(self._slow_size)
        try:
            return {key: self._size * 8e-9 / self._gtls_server.download(self._size)}
        except subprocess.SubprocessError as error:
            return {key: Failure(first_line(error))}
