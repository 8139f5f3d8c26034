"""What is counted and measured: the registry of all metrics, and the types that ``stats()`` returns.

To add a counter of Python code, add it to ``_COUNTERS``; of the engine, to ``_native/counters.h``. Then run ``python -m
tests.host.counters --write-docs``, which adds it to docs/counters.md.
"""

from __future__ import annotations

import dataclasses
import enum
import warnings
from collections.abc import Mapping
from typing import Any, TypedDict

from asport_sync.engine import COUNTERS, ConnectionTotals
from asport_sync.host.totals import Name


class Kind(enum.Enum):
    """How the value of a metric changes."""

    COUNTER = "counter"
    """It only increases, and begins at 0 with each start."""
    GAUGE = "gauge"
    """It is the current value."""


class Side(enum.Enum):
    """Whose statistics have a metric."""

    CLIENT = "client"
    SERVER = "server"
    BOTH = "both"

    def includes(self, side: Side) -> bool:
        """Whether statistics of a client or a server have the metric."""
        return self in (side, Side.BOTH)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A registered metric.

    Attributes:
        name: Unique among all metrics: lower-case letters, digits and underscores. Without the suffix "_total", which
            OpenMetrics wants at counters.
        help: What it counts or measures, one sentence.
        side: Whose statistics have it. An engine counts for both sides.
        place: The keys that lead to its value in ``as_dict()``.
        kind: How its value changes.
        unit: "bytes", "seconds", "datagrams", "packets", "fragments", or "" for what ``help`` names.
        counts_drops: Whether it counts what was not passed on, or was refused.
    """

    name: str
    help: str
    side: Side
    place: tuple[str, ...]
    kind: Kind = Kind.COUNTER
    unit: str = ""
    counts_drops: bool = False


def _counter(name: str, text: str, side: Side = Side.BOTH, *, unit: str = "", drops: bool = False) -> Metric:
    return Metric(name, text, side, ("counters", name), unit=unit, counts_drops=drops)


def _gauge(name: str, text: str, *place: str, unit: str = "") -> Metric:
    return Metric(name, text, Side.BOTH, place, Kind.GAUGE, unit)


_CLIENT, _SERVER = Side.CLIENT, Side.SERVER

# What Python code measures. The class that has the value in a field repeats the text.
_HOST = (
    _gauge("uptime", "Seconds since the start.", "uptime", unit="seconds"),
    _gauge("workers_running", "Tasks that have a worker.", "workers", "running"),
    _gauge("workers_threads", "Worker threads, including idle ones.", "workers", "threads"),
    _gauge("workers_waiting", "Tasks that wait for a worker.", "workers", "waiting"),
    _gauge("pump_calls", "Calls that wait for the pump.", "pump", "calls"),
    Metric("pump_held_up", "Calls that had to wait because too many waited already.", Side.BOTH, ("pump", "held_up")),
)

# What Python code counts. Joining and leaving, then TCP, then UDP.
_COUNTERS = (
    _counter("events_failed", "Events of the engine whose handling failed; the log has the exception."),
    _counter(
        "callables_failed", "Calls of on_connect, on_ready and on_disconnect that raised an exception; it is logged."
    ),
    _counter(
        "callables_left_out",
        "Calls of on_connect, on_ready and on_disconnect that were not made: too many waited, or stop() was over.",
    ),
    _counter(
        "control_requests_refused",
        "Requests to the control socket or the status address that were refused.",
        drops=True,
    ),
    _counter("attempts", "Connections to the server attempted.", _CLIENT),
    _counter("attempts_failed", "Failures to connect or to join.", _CLIENT),
    _counter("joined", "Times that the server accepted this client and opened its port.", _CLIENT),
    _counter("network_changes", "Changes of this machine's address towards the server.", _CLIENT),
    _counter("migrations", "Connections that followed this machine to its new address.", _CLIENT),
    _counter("resumes", "Times that this machine was resumed from sleep.", _CLIENT),
    _counter("server_violations", "Violations of the protocol by the server.", _CLIENT),
    _counter("health_checks", "Health checks of the local service.", _CLIENT),
    _counter("health_checks_failed", "Health checks that failed, also those without a result in time.", _CLIENT),
    _counter("ports_withdrawn", "Times that the public port was withdrawn from an unhealthy service.", _CLIENT),
    _counter("clients_joined", "Clients that were authenticated and got their port.", _SERVER),
    _counter("joins_failed", "Connections of clients that ended before their QUIC handshake was complete.", _SERVER),
    _counter(
        "handshake_timeouts",
        "Connections closed because the client sent no ClientHello, or the policy gave no answer, in time.",
        _SERVER,
    ),
    _counter("connections_broken_off", "Connections closed because the client violated the protocol.", _SERVER),
    _counter("refused_auth_failed", "Clients refused: unknown user or wrong password.", _SERVER, drops=True),
    _counter("refused_bind_failed", "Clients refused: no port could be opened.", _SERVER, drops=True),
    _counter(
        "refused_port_denied", "Clients refused: the user may use none of the requested ports.", _SERVER, drops=True
    ),
    _counter(
        "refused_network_denied", "Clients refused: the user may not use the requested network.", _SERVER, drops=True
    ),
    _counter(
        "refusals_delayed",
        "Refusals sent a second late because more than ten authentications of one address failed within a minute.",
        _SERVER,
    ),
    _counter("clients_refused_draining", "Clients disconnected because the server is draining.", _SERVER, drops=True),
    _counter(
        "clients_refused_limit",
        "Clients refused because their user has max_clients live clients, or the users of their entry have "
        "max_clients_total; they try again.",
        _SERVER,
        drops=True,
    ),
    _counter(
        "clients_ended_by_reload",
        "Clients disconnected because a reload removed their user or changed what they may use.",
        _SERVER,
    ),
    _counter("ports_taken_over", "Public ports that passed from a silent connection to a new client.", _SERVER),
    _counter("ambiguous_modes", "Clients whose request has two meanings.", _SERVER),
    _counter(
        "binds_deferred",
        "Attempts to open a public port that failed for lack of descriptors or memory; repeated.",
        _SERVER,
    ),
    _counter(
        "listener_open_errors",
        "Attempts to accept on an open port that failed for lack of descriptors or memory; repeated for a minute.",
        _SERVER,
    ),
    _counter(
        "connections_dropped_local_service",
        "TCP connections dropped because the local service could not be reached.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "connections_dropped_no_source",
        "TCP connections dropped because the PROXY header needs the visitor's address, which is not known.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "streams_refused_no_tcp",
        "TCP connections refused because the client requested none.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "streams_refused_draining",
        "TCP connections refused because the client is draining, or closes the QUIC connection.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "streams_refused_before_server_hello",
        "TCP connections refused because too many came before the ServerHello.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "streams_refused_no_thread",
        "TCP connections refused because no worker could take them.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "streams_gone_before_relay",
        "TCP connections whose QUIC connection ended before their relay started.",
        drops=True,
    ),
    _counter(
        "relays_all_workers_busy", "TCP connections dialled by a worker and relayed by the engine: no worker was free."
    ),
    _counter("relays_without_worker", "Relays that a worker could not take over, so the engine's own loop goes on."),
    _counter("streams_dropped_no_relay", "TCP connections reset because nothing could relay them.", drops=True),
    _counter("udp_associations", "UDP associations created."),
    _counter("udp_associations_expired", "UDP associations ended because they were idle.", _SERVER),
    _counter(
        "udp_associations_evicted",
        "UDP associations ended before their idle timeout, because places for UDP sources ran out.",
    ),
    _counter(
        "udp_associations_not_permitted",
        "UDP associations ended because the rules for visitors were changed and no longer permit theirs.",
        _SERVER,
    ),
    _counter("udp_associations_moved", "UDP associations moved to another address of the local service.", _CLIENT),
    _counter(
        "udp_associations_refused_limit",
        "UDP sources refused because a client has no place for another, and none was idle for a second.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "udp_associations_refused_share",
        "UDP sources refused because their address has half of a client's places, and none was idle for a second.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "udp_associations_refused_local_service",
        "UDP sources refused because no socket to the local service could be opened.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "udp_associations_refused_no_udp",
        "UDP sources refused because the client requested no UDP, or has closed the QUIC connection.",
        _CLIENT,
        drops=True,
    ),
    _counter(
        "udp_associations_refused_draining", "UDP sources refused because the client is draining.", _CLIENT, drops=True
    ),
    _counter(
        "udp_sources_refused_share",
        "UDP sources refused because their address has half of a port's associations, and none was idle for a second.",
        _SERVER,
        drops=True,
    ),
    _counter(
        "udp_sources_refused_draining", "UDP sources refused because the server is draining.", _SERVER, drops=True
    ),
    _counter(
        "udp_sources_refused_table_full",
        "UDP sources refused because a port (udp_sessions), or all of them, have reached their maximum, and none was "
        "idle for a second.",
        _SERVER,
        drops=True,
    ),
    _counter(
        "udp_sources_refused_by_engine",
        "UDP sources refused because the engine could not add them.",
        _SERVER,
        drops=True,
    ),
    _counter(
        "dissociates_not_sent",
        "Ends of UDP associations that were not reported to the client, which takes no commands.",
        _SERVER,
    ),
    _counter(
        "udp_on_streams_instead",
        "Handshakes that agreed on UDP native with a peer that accepts no QUIC DATAGRAM frames: its packets travel on "
        "streams.",
    ),
    _counter(
        "udp_open_errors",
        "Attempts to forward UDP of an open port that failed for lack of descriptors or memory; repeated for a minute.",
        _SERVER,
    ),
    _counter("udp_service_away", "Times that no address of the local service accepted UDP.", _CLIENT),
    _counter("udp_read_errors", "Errors of UDP sockets that the pump reads, also those that ICMP reports."),
    _counter("udp_give_back_errors", "Busy UDP sockets that the engine could not take back; the pump goes on."),
)

_ENGINE = tuple(
    Metric(each.name, each.help, Side.BOTH, ("engine", each.name), unit=each.unit, counts_drops=each.counts_drops)
    for each in COUNTERS
)

METRICS = (*_HOST, *_COUNTERS, *_ENGINE)
"""All metrics of a host and its engine, those of both sides. Connections have figures of their own."""

COUNTER_NAMES = tuple(each.name for each in _COUNTERS)
"""The names of everything that Python code counts, on both sides."""

_NAMES_OF = {side: tuple(each.name for each in _COUNTERS if each.side.includes(side)) for side in (_CLIENT, _SERVER)}


# What a host counts for all tunnels of a client together.
_OF_THE_HOST = {
    "events_failed",
    "callables_failed",
    "callables_left_out",
    "streams_gone_before_relay",
    "relays_all_workers_busy",
    "relays_without_worker",
    "streams_dropped_no_relay",
}

TUNNEL_COUNTERS = tuple(name for name in _NAMES_OF[_CLIENT] if name not in _OF_THE_HOST)
"""The names of what is counted for each tunnel of a client."""


def counters_of(side: Side, counted: Mapping[str, int]) -> dict[str, int]:
    """Returns the counters of Python code that one side has, also those at zero."""
    return {name: counted.get(name, 0) for name in _NAMES_OF[side]}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStats:
    """The worker threads.

    Attributes:
        running: Tasks that have a worker.
        threads: Worker threads, including idle ones.
        waiting: Tasks that wait for a worker.
    """

    running: int = 0
    threads: int = 0
    waiting: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PumpStats:
    """The pump thread.

    Attributes:
        calls: Calls that wait for the pump.
        held_up: Calls that had to wait because too many waited already.
    """

    calls: int = 0
    held_up: int = 0


class HostStats(TypedDict):
    """The fields of ``Stats`` that a host knows."""

    uptime: float
    engine: Mapping[str, int]
    counters: Mapping[str, int]
    workers: WorkerStats
    pump: PumpStats
    totals: Mapping[Name, ConnectionTotals]


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Statistics at one moment. Times in seconds, sizes in bytes.

    Attributes:
        running: Whether it is started and not yet stopped.
        uptime: Seconds since the start. None: there are no figures, because it is not running, or because a signal
            handler that interrupted ``stats()`` asked for them.
        engine: The engine's counters by name, since the start, also those at zero.
        counters: All other counters by name, since the start, also those at zero.
        workers: The worker threads.
        pump: The pump thread.
        totals: What all connections of a tunnel (client) or user (server) have moved since the start, also those that
            have ended: by the name of the tunnel, empty on a server, and the UUID of the user. Tunnels that were
            removed, and users that were, are included. Above 16,384, those without a connection for the longest time
            are "other", together.
    """

    running: bool
    uptime: float | None = None
    engine: Mapping[str, int] = dataclasses.field(default_factory=dict)
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    workers: WorkerStats = WorkerStats()
    pump: PumpStats = PumpStats()
    totals: Mapping[Name, ConnectionTotals] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns dicts, lists, tuples, strings and numbers, as for JSON; without figures only ``running``."""
        if self.uptime is None:
            return {"running": self.running}
        return {
            "running": self.running,
            **self._own_figures(),
            "uptime": self.uptime,
            "engine": dict(self.engine),
            "counters": dict(self.counters),
            "workers": dataclasses.asdict(self.workers),
            "pump": dataclasses.asdict(self.pump),
            "totals": [
                {"tunnel": tunnel, "user": user, **dataclasses.asdict(moved)}
                for (tunnel, user), moved in self.totals.items()
            ],
        }

    def _own_figures(self) -> dict[str, Any]:
        """Returns what only one side has."""
        return {}

    def __getitem__(self, key: str) -> Any:
        """Returns ``as_dict()[key]``. Deprecated: use the attributes, or ``as_dict()``."""
        warnings.warn(
            f"stats()[{key!r}] is deprecated: use stats().{key} or stats().as_dict()", DeprecationWarning, stacklevel=2
        )
        return self.as_dict()[key]
