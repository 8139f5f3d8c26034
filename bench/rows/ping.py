"""Round trips of one byte over TCP: on an idle tunnel, and beside a bulk download."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from bench import load
from bench.load import Ping
from bench.rows.row import Cells, Line, MeasurementFailed, SharedRow, Table, attempt, ruler
from bench.tunnels import Direct, Running, Tunnel

IDLE = Table("ping", "Ping of one byte, idle", "us", ("p50", "p99"), lower_is_better=True, decimals=0)
BUSY = Table(
    "busy ping", "Ping of one byte beside a bulk download", "us", ("p50", "p99"), lower_is_better=True, decimals=0
)

LEAD = 0.3  # seconds that the download has run before the pings begin
LAG = 0.2  # seconds that it goes on after they should have ended


def cells_of(table: Table, measured: Ping) -> Cells:
    """Return both percentiles.

    Raises:
        MeasurementFailed: Nothing came back.
    """
    if measured.count == 0:
        raise MeasurementFailed("no answer")
    return {table.key("p50"): measured.p50_us, table.key("p99"): measured.p99_us}


class PingRow(SharedRow):
    """One connection, one byte there and back, again and again."""

    name = "ping"
    tables = (IDLE, BUSY)

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        return [*super().lines(tunnels), ruler(Direct())]

    def measure(self, running: Running, line: Line) -> Cells:
        return {**attempt(IDLE.keys, self._idle, running), **attempt(BUSY.keys, self._busy, running)}

    def _idle(self, running: Running) -> Cells:
        return cells_of(IDLE, load.ping(running.tcp, seconds=self.setting.pick(0.6, 0.4)))

    def _busy(self, running: Running) -> Cells:
        seconds = self.setting.pick(1.0, 0.6)
        transfers: list[load.Bulk | load.LoadError] = []

        def download() -> None:
            try:
                transfers.append(load.bulk(running.tcp, direction="down", seconds=LEAD + seconds + LAG))
            except load.LoadError as error:
                transfers.append(error)

        thread = threading.Thread(target=download)
        thread.start()
        time.sleep(LEAD)
        try:
            measured = load.ping(running.tcp, seconds=seconds)
        finally:
            thread.join()
        (transfer,) = transfers
        if isinstance(transfer, load.LoadError):
            raise transfer
        if not transfer.ok:
            raise MeasurementFailed("; ".join(transfer.errors[:2]) or "the download failed")
        return cells_of(BUSY, measured)
