"""The state of a client or a server as text: what ``asport-sync status`` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence

from asport_sync.control.operations import SHORTEST_PREFIX
from asport_sync.control.status import Rates, Row, Status, rates
from asport_sync.runtime.log import printable

_NONE = "-"


def text_of(status: Status, before: Status | None = None) -> str:
    """Returns the state as a table.

    Args:
        status: The state.
        before: An earlier one, for the rates.
    """
    lines = [_head(status)]
    if status.tunnels:
        lines += ["", *_tunnels(status, rates(before, status))]
    errors = [f"{row.name or 'error'}: {row.error}{_ago(row.error_at)}" for row in status.tunnels if row.error]
    if errors:
        lines += ["", "latest errors:", *(f"  {each}" for each in errors)]
    if status.drops:
        lines += ["", "dropped or refused since the start:"]
        lines += [f"  {name}: {count}" for name, count in status.drops.items()]
    return "\n".join(map(printable, lines))


def _ago(moment: float | None) -> str:
    return "" if moment is None else f" ({duration(time.time() - moment)} ago)"


def _head(status: Status) -> str:
    parts = [f"{status.side} {status.version}", f"pid {status.pid}"]
    if status.uptime is not None:
        parts.append(f"up {duration(status.uptime)}")
    if status.unauthenticated:
        parts.append(f"{status.unauthenticated} unauthenticated clients")
    return f"{', '.join(parts)}: {status.summary}"


def _tunnels(status: Status, speeds: dict[str, Rates]) -> list[str]:
    is_client = status.side == "client"
    now = time.time()
    head = ["NAME"] if any(row.name for row in status.tunnels) else []
    is_shared = any(row.balance for row in status.tunnels)
    head += ["USER", "PUBLIC", "LOCAL" if is_client else "CLIENT", "NETWORK", *(["BALANCE"] if is_shared else [])]
    head += ["STATE", "SINCE", "CONNECTIONS", "UDP", "RECEIVED", "SENT", "RECEIVED/S", "SENT/S"]
    head += ["RTT", "LOSS", "CWND", "MTU"]
    rows = []
    for row in status.tunnels:
        cells = [row.name or _NONE] if head[0] == "NAME" else []
        speed = speeds.get(row.id, Rates())
        total = _NONE if row.connections_total is None else str(row.connections_total)
        cells += [
            row.user_name or (row.user or _NONE)[:SHORTEST_PREFIX],
            row.public or _NONE,
            (row.local if is_client else row.peer) or _NONE,
            row.network or _NONE,
            *([row.balance or _NONE] if is_shared else []),
            row.state,
            _NONE if row.since is None else duration(now - row.since),
            f"{row.connections}/{total}",
            str(row.associations),
            size(_payload(row.payload_received, row.bytes_received)),
            size(_payload(row.payload_sent, row.bytes_sent)),
            bit_rate(speed.received),
            bit_rate(speed.sent),
            _NONE if row.rtt is None else f"{row.rtt * 1000:.1f} ms",
            loss(row),
            size(row.congestion_window),
            _NONE if row.path_payload is None else str(row.path_payload),
        ]
        rows.append(cells)
    return columns([head, *rows])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows with their cells aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _payload(payload: int | None, whole: int) -> int:
    return whole if payload is None else payload


def loss(row: Row) -> str:
    """Returns the share of packets that were declared lost."""
    return f"{100 * row.packets_lost / row.packets_sent:.2f} %" if row.packets_sent else _NONE


def _scaled(value: float, factor: float, units: Sequence[str]) -> str:
    step = 0
    while value >= factor and step < len(units) - 1:
        value /= factor
        step += 1
    return f"{value:.0f} {units[step]}" if value >= 100 or value == int(value) else f"{value:.1f} {units[step]}"


def size(value: float | None) -> str:
    """Returns a number of bytes with a binary unit."""
    return _NONE if value is None else _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def bit_rate(value: float | None) -> str:
    """Returns bits per second with a decimal unit."""
    return _NONE if value is None else _scaled(value, 1000, ("bit", "kbit", "Mbit", "Gbit"))


def duration(seconds: float) -> str:
    """Returns a time in its two largest units."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"
