"""A client or a server that is played, as the control socket and the status address see it."""

from __future__ import annotations

import dataclasses
from typing import Any

from asport_sync.control.operations import UnknownNameError
from asport_sync.control.status import COUNTS, Row, Status
from asport_sync.engine import COUNTERS, ConnectionTotals
from asport_sync.host.stats import COUNTER_NAMES, Side, Stats, counters_of
from asport_sync.host.totals import Name
from asport_sync.runtime import log

USERS = ("00112233-4455-6677-8899-aabbccddeeff", "11112233-4455-6677-8899-aabbccddeeff")

ROW = Row(
    id="tunnel web",
    name="web",
    user=USERS[0],
    peer="example.org:443",
    public="192.0.2.1:30001",
    local="127.0.0.1:8080",
    network="both",
    state="public",
    since=1_893_456_000.0,
    error="no answer from the server",
    connections=5,
    associations=2,
    connections_total=1000,
    payload_received=1 << 20,
    payload_sent=1 << 30,
    bytes_received=1 << 21,
    bytes_sent=1 << 31,
    packets_received=1000,
    packets_sent=2000,
    packets_lost=3,
    rtt=0.0123,
    min_rtt=0.01,
    congestion_window=123456,
    bytes_in_flight=1000,
    path_payload=1452,
    datagrams_queued=0,
    drops={"connections_dropped_local_service": 4},
)


def totals_of(tunnels: tuple[Row, ...]) -> dict[Name, ConnectionTotals]:
    """What the open connections of some rows have moved."""
    found: dict[Name, ConnectionTotals] = {}
    for row in tunnels:
        moved = ConnectionTotals(**{counted: getattr(row, name) or 0 for name, counted in COUNTS.items()})
        name = (row.name, row.user or "")
        found[name] = found.get(name, ConnectionTotals()) + moved
    return found


def figures(side: Side = Side.CLIENT, tunnels: tuple[Row, ...] = ()) -> Stats:
    """Statistics in which every counter is 7."""
    return Stats(
        running=True,
        uptime=7.0,
        engine=dict.fromkeys((each.name for each in COUNTERS), 7),
        counters=counters_of(side, dict.fromkeys(COUNTER_NAMES, 7)),
        totals=totals_of(tunnels),
    )


class FakeOperations:
    """Notes what is done with it; every answer can be set.

    Attributes:
        done: What was done, in order.
        failure: Raised by everything that changes something.
        tunnels: The rows.
    """

    def __init__(self, side: Side = Side.CLIENT, tunnels: tuple[Row, ...] = (ROW,)) -> None:
        self.side = side
        self.tunnels = tunnels
        self.running = True
        self.drops: dict[str, int] = {}
        self.done: list[tuple[str, ...]] = []
        self.failure: Exception | None = None
        self.level = "warn"
        self.refused = 0
        self.health: str | None = None
        self.missing: str | None = None
        self.time = 100.0

    def snapshot(self) -> tuple[Status, Stats]:
        if not self.running:
            return Status(self.side.value, "1.2.3", 42, False, self.time, "not running"), Stats(False)
        status = Status(
            side=self.side.value,
            version="1.2.3",
            pid=42,
            running=True,
            time=self.time,
            summary="everything is fine",
            uptime=7.0,
            tunnels=self.tunnels,
            drops=self.drops,
        )
        return status, figures(self.side, self.tunnels)

    def reload(self) -> dict[str, Any]:
        self._do("reload")
        return {"changes": ["log_level: info"], "needs_restart": ["relay"]}

    def drain(self) -> int:
        self._do("drain")
        return sum(row.connections for row in self.tunnels)

    def disconnect(self, name: str) -> int:
        self._do("disconnect", name)
        return 1

    def log_level(self, level: str | None = None) -> str:
        if level is not None:
            if level not in log.LEVELS:
                raise UnknownNameError(f"no such log level: {level}")
            self._do("log_level", level)
            self.level = level
        return self.level

    def problem(self) -> str | None:
        return self.health

    def unready(self) -> str | None:
        return self.missing

    def count_refusal(self) -> None:
        self.refused += 1

    def _do(self, *what: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(what)


def rows(count: int, **changes: Any) -> tuple[Row, ...]:
    """Rows of so many tunnels of different names and users."""
    made = (
        dataclasses.replace(ROW, id=f"tunnel {number}", name=f"t{number}", user=f"{number:08}-0000", **changes)
        for number in range(count)
    )
    return tuple(made)
