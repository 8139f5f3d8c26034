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
from asport_sync.control.status import Row, Status
from asport_sync.engine import versions
from asport_sync.host.stats import METRICS, Kind, Metric, Side, Stats

MAX_LABELS = 100
"""Tunnels or users with labels of their own: the first ones since the start. All others share the label ``other``."""

OTHER = "other"

LABELS = ("tunnel", "user")


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
        # Held from the look to the addition: an earlier look that is added later would count everything twice.
        self._lock = threading.Lock()
        self._totals = _Totals()  # guarded by _lock

    def collect(self) -> Iterator[Family]:
        """Yields all metrics with their current values."""
        with self._lock:
            status, stats = self._operations.snapshot()
            of_tunnels = self._totals.updated(status)
        yield _information(status)
        running = GaugeMetricFamily("asport_running", "1 while the client or server is started.")
        running.add_metric([], int(status.running))
        yield running
        if stats.uptime is None:
            return
        yield from _of_the_process(stats, self._operations.side)
        yield from self._of_tunnels(*of_tunnels)

    @staticmethod
    def _of_tunnels(groups: Mapping[Labels, list[Row]], totals: Mapping[Labels, Mapping[str, int]]) -> Iterator[Family]:
        public = GaugeMetricFamily(
            "asport_tunnels", "Tunnels that visitors can use: public (client) or joined (server).", labels=LABELS
        )
        for labels, rows in groups.items():
            public.add_metric(labels, sum(row.public is not None for row in rows))
        yield public
        for metric in TUNNEL_METRICS:
            family = _family(metric.name, metric.help, metric.kind, metric.unit, labels=LABELS)
            for labels, rows in groups.items():
                value: float | None
                if metric.kind is Kind.COUNTER:
                    value = totals[labels].get(metric.field)
                else:
                    values = [found for row in rows if (found := getattr(row, metric.field)) is not None]
                    value = metric.combined(values) if values else None
                if value is not None:
                    family.add_metric(labels, value)
            yield family


Labels = tuple[str, str]


class _Totals:
    """What the tunnels of each label have counted since the first look, also those that do not exist any more.

    The counters of a connection end with it. Their sum would decrease then, which Prometheus takes for a restart.
    One thread at a time.
    """

    def __init__(self) -> None:
        self._labels: dict[Labels, Labels] = {}  # the first MAX_LABELS
        self._seen: dict[str, Row] = {}  # by id, at the latest look
        self._totals: dict[Labels, dict[str, int]] = {}

    def updated(self, status: Status) -> tuple[dict[Labels, list[Row]], dict[Labels, dict[str, int]]]:
        """Returns the rows of each label, and the totals of its counters."""
        groups: dict[Labels, list[Row]] = {labels: [] for labels in self._totals}
        for row in status.tunnels:
            labels = self._labels_of(row)
            groups.setdefault(labels, []).append(row)
            self._add(self._totals.setdefault(labels, {}), self._seen.get(row.id), row)
        self._seen = {row.id: row for row in status.tunnels}
        return groups, {labels: dict(totals) for labels, totals in self._totals.items()}

    def _labels_of(self, row: Row) -> Labels:
        labels = (row.name, row.user or "")
        if labels not in self._labels:
            if len(self._labels) >= MAX_LABELS:
                return (OTHER, OTHER)
            self._labels[labels] = labels
        return labels

    @staticmethod
    def _add(totals: dict[str, int], before: Row | None, now: Row) -> None:
        for metric in TUNNEL_METRICS:
            value = getattr(now, metric.field)
            if metric.kind is not Kind.COUNTER or value is None:
                continue
            earlier = 0 if before is None else getattr(before, metric.field) or 0
            # Below the earlier value: the tunnel has another connection now.
            totals[metric.field] = totals.get(metric.field, 0) + (value - earlier if value >= earlier else value)


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
