"""Connections opened, used for a byte there and back, and closed."""

from __future__ import annotations

from bench import load
from bench.rows.row import Cells, Line, MeasurementFailed, SharedRow, Table, attempt, cpu_time
from bench.tunnels import Running

CONCURRENT = (1, 8, 32)
COLUMNS = tuple(map(str, CONCURRENT))
RATE = Table("connections", "Connections by how many at the same time", "per second", COLUMNS, decimals=0)
CPU = Table(
    "connections CPU", "CPU time of a connection, server and client", "us", COLUMNS, lower_is_better=True, decimals=0
)


class ConnectionsRow(SharedRow):
    """How fast connections can come and go."""

    name = "connections"
    tables = (RATE, CPU)

    def warm_up(self, running: Running) -> None:
        load.connections(running.tcp, concurrency=max(CONCURRENT), seconds=0.1)

    def measure(self, running: Running, line: Line) -> Cells:
        cells: Cells = {}
        for column, concurrent in zip(COLUMNS, CONCURRENT, strict=True):
            keys = (RATE.key(column), CPU.key(column))
            cells.update(attempt(keys, self._at, running, column, concurrent))
        return cells

    def _at(self, running: Running, column: str, concurrent: int) -> Cells:
        used = cpu_time(running)
        done = load.connections(running.tcp, concurrency=concurrent, seconds=self.setting.pick(0.5, 0.4))
        seconds = used()
        if done.errors or not done.connections:
            raise MeasurementFailed(f"{done.errors} of {done.connections + done.errors} connections failed")
        return {RATE.key(column): done.per_second, CPU.key(column): seconds * 1e6 / done.connections}
