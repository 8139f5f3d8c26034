"""Everything that ``stats()`` has, as Prometheus metrics. The only module that imports prometheus_client.

Names follow the conventions of OpenMetrics: the prefix ``asport``, counters end in ``_total``, units are seconds and
bytes and come last. docs/control.md lists them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family

from asport_sync.control.operations import Operations
from asport_sync.control.status import COUNTS, Row, Status
from asport_sync.engine import ConnectionTotals, versions
from asport_sync.host.stats import METRICS, Kind, Metric, Side, Stats
from asport_sync.host.totals import OTHERS, Name

MAX_LABELS = 100
"""Tunnels or users with labels of their own: the first ones since the start. All others share the label ``other``."""

LABELS = ("tunnel", "user")

_NOTHING = ConnectionTotals()


class TunnelMetric(NamedTuple):
    """A metric of a tunnel, or of all clients of a user together.

    Attributes:
        name: Its name, without prefix, unit and the suffix of counters.
        help: What it counts or measures.
        field: The field of ``Row``.
        kind: How its value changes.
        unit: "bytes", "seconds" or "".
        combined: What several clients of a user have together.
    """

    name: str
    help: str
    field: str
    kind: Kind = Kind.COUNTER
    unit: str = ""
    combined: Callable[[Iterable[float]], float] = sum


TUNNEL_METRICS = (
    TunnelMetric("tunnel_connections", "TCP connections of visitors.", "connections_total"),
    TunnelMetric(
        "tunnel_payload_received",
        "Payload of TCP and UDP received from the other side.",
        "payload_received",
        unit="bytes",
    ),
    TunnelMetric("tunnel_payload_sent", "Payload of TCP and UDP sent to the other side.", "payload_sent", unit="bytes"),
    TunnelMetric("tunnel_quic_received", "UDP payload received by QUIC connections.", "bytes_received", unit="bytes"),
    TunnelMetric("tunnel_quic_sent", "UDP payload sent by QUIC connections.", "bytes_sent", unit="bytes"),
    TunnelMetric("tunnel_packets_received", "UDP datagrams received by QUIC connections.", "packets_received"),
    TunnelMetric("tunnel_packets_sent", "UDP datagrams sent by QUIC connections.", "packets_sent"),
    TunnelMetric("tunnel_packets_lost", "QUIC packets declared lost.", "packets_lost"),
    TunnelMetric("tunnel_open_connections", "TCP connections of visitors that are open.", "connections", Kind.GAUGE),
    TunnelMetric("tunnel_open_associations", "UDP associations that exist.", "associations", Kind.GAUGE),
    TunnelMetric(
        "tunnel_rtt", "Smoothed round-trip time; the largest of a user's clients.", "rtt", Kind.GAUGE, "seconds", max
    ),
    TunnelMetric("tunnel_congestion_window", "Congestion window.", "congestion_window", Kind.GAUGE, "bytes"),
    TunnelMetric(
        "tunnel_in_flight", "Bytes sent that are neither acknowledged nor lost.", "bytes_in_flight", Kind.GAUGE, "bytes"
    ),
    TunnelMetric(
        "tunnel_queued", "Bytes of UDP packets that wait to be sent.", "datagrams_queued", Kind.GAUGE, "bytes"
    ),
    TunnelMetric(
        "tunnel_path_payload",
        "Maximum UDP payload of a QUIC packet; the smallest of a user's clients.",
        "path_payload",
        Kind.GAUGE,
        "bytes",
        min,
    ),
)
"""The metrics with the labels ``tunnel`` (on a client) and ``user``, in addition to ``tunnels``."""


def name_of(name: str, kind: Kind, unit: str) -> str:
    """Returns the name under which a metric is exposed."""
    if unit in ("bytes", "seconds"):
        # A unit comes last: quic_bytes_received is quic_received_bytes.
        words = [word for word in name.split("_") if word != unit]
        name = "_".join((*words, unit))
    return f"asport_{name}_total" if kind is Kind.COUNTER else f"asport_{name}"


def exposition(operations: Operations) -> Callable[[str], tuple[bytes, str]]:
    """Returns a function that returns all metrics and their media type, given the header Accept. Any thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(operations))

    def expose(accept: str) -> tuple[bytes, str]:
        encode, kind = choose_encoder(accept)
        return encode(registry), kind

    return expose


class _Collector:
    """Reads the figures when they are asked for. Any number of threads.

    Args:
        operations: The client or server.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._labels = _Labels()

    def collect(self) -> Iterator[Family]:
        """Yields all metrics with their current values."""
        status, stats = self._operations.snapshot()
        yield _information(status)
        running = GaugeMetricFamily("asport_running", "1 while the client or server is started.")
        running.add_metric([], int(status.running))
        yield running
        if stats.uptime is None:
            return
        yield from _of_the_process(stats, self._operations.side)
        yield from self._of_tunnels(status, stats)

    def _of_tunnels(self, status: Status, stats: Stats) -> Iterator[Family]:
        groups: dict[Name, list[Row]] = {}
        totals: dict[Name, ConnectionTotals] = {}
        for name, moved in stats.totals.items():  # no counter decreases when a connection ends
            labels = self._labels.of(name)
            groups.setdefault(labels, [])
            totals[labels] = totals.get(labels, ConnectionTotals()) + moved
        for row in status.tunnels:
            groups.setdefault(self._labels.of((row.name, row.user or "")), []).append(row)
        names = InfoMetricFamily("asport_user", "The names of users, for joining with the label user.", labels=["user"])
        for user, user_name in {row.user: row.user_name for row in status.tunnels}.items():
            if user and user_name and ("", user) in groups:
                names.add_metric([user], {"name": user_name})
        if names.samples:
            yield names
        public = GaugeMetricFamily(
            "asport_tunnels", "Tunnels that visitors can use: public (client) or joined (server).", labels=LABELS
        )
        for labels, rows in groups.items():
            public.add_metric(labels, sum(row.state == "public" for row in rows))
        yield public
        for metric in TUNNEL_METRICS:
            family = _family(metric.name, metric.help, metric.kind, metric.unit, labels=LABELS)
            for labels, rows in groups.items():
                value: float | None
                if metric.kind is Kind.COUNTER:
                    value = getattr(totals.get(labels, _NOTHING), COUNTS[metric.field])
                else:
                    values = [found for row in rows if (found := getattr(row, metric.field)) is not None]
                    value = metric.combined(values) if values else None
                if value is not None:
                    family.add_metric(labels, value)
            yield family


class _Labels:
    """The labels of tunnels and users: the first ``MAX_LABELS`` have their own, all others share ``OTHERS``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _own
        self._own: set[Name] = set()

    def of(self, name: Name) -> Name:
        """Returns the labels of a tunnel or user."""
        with self._lock:
            if name not in self._own:
                if len(self._own) >= MAX_LABELS or name == OTHERS:
                    return OTHERS
                self._own.add(name)
            return name


def _family(name: str, text: str, kind: Kind, unit: str, labels: tuple[str, ...] | None = None) -> Any:
    full = name_of(name, kind, unit).removesuffix("_total")
    unit = unit if unit in ("bytes", "seconds") else ""
    cls = CounterMetricFamily if kind is Kind.COUNTER else GaugeMetricFamily
    return cls(full, text, labels=labels, unit=unit)


def _information(status: Status) -> Family:
    linked = versions()
    labels = {
        "side": status.side,
        "version": status.version,
        "ngtcp2": linked["ngtcp2"],
        "gnutls": linked["gnutls"],
    }
    return InfoMetricFamily("asport_build", "Versions of asport-sync and of the libraries that it uses.", value=labels)


def _of_the_process(stats: Stats, side: Side) -> Iterator[Family]:
    for metric in METRICS:
        if metric.side.includes(side):
            family = _family(metric.name, metric.help, metric.kind, metric.unit)
            family.add_metric([], _value(stats, metric))
            yield family


def _value(stats: Stats, metric: Metric) -> float:
    found: Any = stats
    for key in metric.place:
        found = found[key] if isinstance(found, Mapping) else getattr(found, key)
    return float(found)
