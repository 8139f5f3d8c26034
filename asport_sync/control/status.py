"""What a client or a server is doing, as typed rows: the one source of the JSON, the table and the status page.

Times are in seconds, sizes in bytes. None means that a value is not known on this side or at this moment.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from asport_sync.engine import ConnectionInfo, ConnectionTotals
from asport_sync.host.stats import METRICS, Side

DRAINING = "draining"
"""The state of all tunnels while their process accepts nothing new."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One tunnel: of a client, or between a server and one of its clients.

    What a client counts includes connections that have ended; on a server the row ends with its connection.

    Attributes:
        id: Identifies the tunnel among those of the process, as long as it exists.
        name: Its name in a client's configuration; empty if it has none.
        user: The UUID of the user; None on a server before authentication.
        user_name: The user's name in the server's configuration; None: they have none, or this is a client.
        peer: The address of the other side: on a client the server's, on a server the client's.
        public: The public address and port; None while there is none.
        local: The local service; None on a server, which does not know it.
        network: The networks: on a client those that it requests (``tcp``, ``udp`` or ``both``), on a server those that
            were granted, such as "tcp and udp native".
        balance: How visitors are spread over the clients that share its port; None: the port is its own, or this is a
            client.
        state: "public", "connecting", "refused", "unhealthy" (the local service is), or "draining"; on a server
            "public" or "draining": clients that have not joined have no row.
        since: When this state began, in seconds since 1970.
        error: The latest problem, also if it is over: why there was no public port (a failed attempt, an unhealthy
            local service), or why a visitor could not be served (the local service could not be reached); None: nothing
            has failed.
        error_at: When that was, in seconds since 1970.
        connections: TCP connections of visitors that are open now.
        associations: UDP associations that exist now.
        connections_total: TCP connections of visitors so far.
        payload_received: Bytes of TCP and UDP payload received from the other side.
        payload_sent: Bytes of TCP and UDP payload sent to the other side.
        bytes_received: Bytes of UDP payload that the QUIC connection has received: the payload and all overhead.
        bytes_sent: Bytes of UDP payload that the QUIC connection has sent.
        packets_received: UDP datagrams that the QUIC connection has received.
        packets_sent: UDP datagrams that the QUIC connection has sent.
        packets_lost: QUIC packets declared lost.
        rtt: Smoothed round-trip time.
        min_rtt: The minimum round-trip time.
        congestion_window: The congestion window.
        bytes_in_flight: Bytes sent that are neither acknowledged nor lost.
        path_payload: The current maximum UDP payload: the path MTU without the headers of IP and UDP.
        datagrams_queued: Bytes of UDP packets that wait to be sent.
        drops: How much of this tunnel was not passed on or was refused, by the name of the counter, as far as it is
            counted for each tunnel; only counters above 0. ``Status.drops`` has all of the process.
    """

    id: str
    name: str = ""
    user: str | None = None
    user_name: str | None = None
    peer: str | None = None
    public: str | None = None
    local: str | None = None
    network: str | None = None
    balance: str | None = None
    state: str = ""
    since: float | None = None
    error: str | None = None
    error_at: float | None = None
    connections: int = 0
    associations: int = 0
    connections_total: int | None = None
    payload_received: int | None = None
    payload_sent: int | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    packets_lost: int = 0
    rtt: float | None = None
    min_rtt: float | None = None
    congestion_window: int | None = None
    bytes_in_flight: int | None = None
    path_payload: int | None = None
    datagrams_queued: int | None = None
    drops: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """A client or a server at one moment.

    Attributes:
        side: "client" or "server".
        version: The version of asport-sync.
        pid: The process.
        running: Whether it is started and not yet stopped.
        time: The moment, on a clock that only increases; the difference of two gives rates.
        summary: The state in one line.
        draining: Whether it accepts nothing new, and what is open goes on.
        uptime: Seconds since the start; None while it is not running.
        address: The address of a server's QUIC socket; None on a client.
        file: The configuration file; None: it has none.
        unauthenticated: A server's connections to clients that have not joined; they have no row.
        tunnels: The tunnels.
        drops: How much was not passed on or was refused, by the name of the counter; only counters above 0.
    """

    side: str
    version: str
    pid: int
    running: bool
    time: float
    summary: str = ""
    draining: bool = False
    uptime: float | None = None
    address: str | None = None
    file: str | None = None
    unauthenticated: int = 0
    tunnels: tuple[Row, ...] = ()
    drops: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns dicts, lists, texts and numbers, for JSON."""
        return dataclasses.asdict(self)


def from_dict(values: Mapping[str, Any]) -> Status:
    """Returns the status that ``as_dict`` was made of. Ignores keys that a newer release may have added.

    Raises:
        ValueError: It is no status.
    """
    try:
        tunnels = tuple(_made(Row, each) for each in values["tunnels"])
        return _made(Status, {**values, "tunnels": tunnels})
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"no status: {problem}") from None


_Made = typing.TypeVar("_Made")


def _made(cls: type[_Made], values: Mapping[str, Any]) -> _Made:
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in values.items() if name in names})


_SUMS = ("congestion_window", "bytes_in_flight", "datagrams_queued")
COUNTS = {
    **{name: name for name in ("payload_received", "payload_sent", "bytes_received", "bytes_sent")},
    **{name: name for name in ("packets_received", "packets_sent", "packets_lost")},
    "connections_total": "streams_total",
}
"""The fields of a row that count, and those of ``ConnectionTotals`` that they come from."""


def counts(totals: ConnectionTotals) -> dict[str, int]:
    """Returns the fields of a row that count."""
    return {name: getattr(totals, counted) for name, counted in COUNTS.items()}


def figures(connections: Iterable[ConnectionInfo]) -> dict[str, Any]:
    """Returns what the open QUIC connections of a tunnel have for its row, except what is counted.

    The latest of them decides on the path.
    """
    all_of_them = list(connections)
    if not all_of_them:
        return {}
    latest = all_of_them[-1]
    found: dict[str, Any] = {name: sum(getattr(each, name) for each in all_of_them) for name in _SUMS}
    found["connections"] = sum(each.streams for each in all_of_them)
    found["associations"] = sum(each.associations for each in all_of_them)
    return {
        **found,
        "rtt": latest.smoothed_rtt,
        "min_rtt": latest.min_rtt,
        "path_payload": latest.path_payload,
    }


def drops_of(side: Side, **groups: Mapping[str, int]) -> dict[str, int]:
    """Returns the counters above 0 that count what was not passed on or was refused, in the order of the registry.

    Args:
        side: Whose counters.
        groups: Counters by name: ``engine``, ``counters`` or both.
    """
    return {
        metric.name: count
        for metric in METRICS
        if metric.counts_drops and metric.side.includes(side)
        if (count := groups.get(metric.place[0], {}).get(metric.name, 0))
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """What a tunnel has moved between two moments, in bits per second. None: not known.

    Attributes:
        received: Received from the other side.
        sent: Sent to the other side.
    """

    received: float | None = None
    sent: float | None = None


def rates(before: Status | None, after: Status) -> dict[str, Rates]:
    """Returns the rates of each tunnel, by its id: of the payload where it is counted, else of the QUIC connection."""
    if before is None or before.pid != after.pid or after.time <= before.time:
        return {row.id: Rates() for row in after.tunnels}
    seconds = after.time - before.time
    earlier = {row.id: row for row in before.tunnels}

    def rate(new: Row, name: str) -> float | None:
        old = earlier.get(new.id)
        if old is None:
            return None
        counts = [(getattr(each, f"payload_{name}"), getattr(each, f"bytes_{name}")) for each in (old, new)]
        (old_payload, old_bytes), (new_payload, new_bytes) = counts
        difference = new_bytes - old_bytes if None in (old_payload, new_payload) else new_payload - old_payload
        # Where rows are of connections, a count may begin at 0 again.
        return None if difference < 0 else 8 * difference / seconds

    return {row.id: Rates(rate(row, "received"), rate(row, "sent")) for row in after.tunnels}
