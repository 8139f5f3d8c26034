"""The rows of the scorecard: what is measured, each with the tables it fills."""

from __future__ import annotations

from bench.rows.bulk import BulkRow
from bench.rows.connections import ConnectionsRow
from bench.rows.hold import ClosingRow, HoldRow
from bench.rows.path import PathRow
from bench.rows.ping import PingRow
from bench.rows.row import Row
from bench.rows.start import IdleRow, StartRow
from bench.rows.udp import UdpRow

__all__ = ["ROWS"]

# In the order in which they are measured and shown.
ROWS: tuple[type[Row], ...] = (
    BulkRow,
    PingRow,
    ConnectionsRow,
    HoldRow,
    ClosingRow,
    UdpRow,
    StartRow,
    IdleRow,
    PathRow,
)
