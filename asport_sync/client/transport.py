"""Parameters of a client's QUIC connections: of their transport, and of probes."""

from __future__ import annotations

import dataclasses

from asport_sync.config import TunnelConfig
from asport_sync.engine import Connection, Transport
from asport_sync.host.host import CONGESTION

# Visitors' TCP connections at the same time, unless max_connections is higher. If it is lower, the server may open as
# many streams all the same, and those above it are refused: visitors need not wait for others to leave.
_MAX_STREAMS = 16384
_IDLE_TIMEOUT = 30.0  # seconds; the minimum of both sides applies (RFC 9000 section 10.1), by default the server's 10 s
_MAX_HEARTBEAT = 86400.0  # seconds, as far as timeouts depend on it: a multiple of it must fit the engine's clock
# Seconds without a packet from the server, after a keep-alive probe, until another connection is attempted in addition
# to this one: by then at least two more probes, which follow after a probe timeout each (RFC 9002 section 6.2), have
# had no answer. The engine adds one probe timeout, about three round trips. Twice keep_alive, if that is shorter.
_SILENCE_AFTER_PROBE = 1.5
_PROBE = 1.0  # seconds that the server gets to answer after this machine was suspended or changed its address
# Seconds that the server gets to answer while a newer connection waits to take over: three round trips, within these
# bounds.
_MIN_LAST_PROBE = 0.2
_MAX_LAST_PROBE = 1.0
# Seconds that it gets if nothing hints that it has forgotten the connection: the path may have outages. In an outage, a
# connection with a full congestion window sends only probes (RFC 9002 section 6.2), which our build keeps at most one
# second apart. The value is below the 3 s after which servers close a connection that does not authenticate, as the
# newer one must not do before the answer.
_LAST_PROBE_IN_OUTAGE = 2.5


def transport_of(config: TunnelConfig, heartbeat: float, *, tcp: bool) -> Transport:
    """Returns the transport parameters of a tunnel's connections.

    Args:
        config: The tunnel's configuration.
        heartbeat: Seconds between two Heartbeat commands.
        tcp: Whether the server may open streams for TCP connections.
    """
    keep_alive, heartbeat = config.keep_alive, min(heartbeat, _MAX_HEARTBEAT)
    streams = max(_MAX_STREAMS, config.max_connections or 0)
    transport = Transport(
        congestion=CONGESTION[config.congestion_control],
        max_udp_payload=config.max_udp_payload,
        idle_timeout=max(_IDLE_TIMEOUT, 3 * keep_alive, 3 * heartbeat),
        keep_alive=keep_alive,
        silence=keep_alive + min(_SILENCE_AFTER_PROBE, 2 * keep_alive),
        handshake_timeout=config.timeout,
        command_timeout=config.task_negotiation_timeout,
        send_window=config.send_window,
        receive_window=config.receive_window,
        fragment_lifetime=config.gc_lifetime,
        max_streams_bidi=streams if tcp else 0,
    )
    # More streams need a larger window, see ``Transport``.
    return dataclasses.replace(transport, connection_window=transport.connection_window * -(-streams // _MAX_STREAMS))


def probe(connection: Connection, *, is_last: bool, moved: bool) -> None:
    """Probes the server.

    Args:
        connection: To the server.
        is_last: Whether a newer connection waits to take over.
        moved: Whether the connection has just got a new path.

    Raises:
        GoneError: The connection is over.
    """
    if not is_last:
        connection.probe(_PROBE)
        return
    # A new path has an unknown round-trip time.
    limit = _MAX_LAST_PROBE if moved else 3 * connection.info().smoothed_rtt
    limit = min(_MAX_LAST_PROBE, max(_MIN_LAST_PROBE, limit))
    connection.probe(limit, _LAST_PROBE_IN_OUTAGE - limit)
