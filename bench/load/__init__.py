"""The load generator: a program in C that measures through a tunnel, and the functions that call it."""

from __future__ import annotations

from bench.load.build import build
from bench.load.client import (
    ECHO_REQUEST,
    Address,
    Bulk,
    Check,
    Closed,
    Connections,
    Hold,
    LoadError,
    Ping,
    Report,
    Service,
    Udp,
    bulk,
    connections,
    hold,
    ping,
    report,
    start_service,
    udp,
)

__all__ = [
    "ECHO_REQUEST",
    "Address",
    "Bulk",
    "Check",
    "Closed",
    "Connections",
    "Hold",
    "LoadError",
    "Ping",
    "Report",
    "Service",
    "Udp",
    "build",
    "bulk",
    "connections",
    "hold",
    "ping",
    "report",
    "start_service",
    "udp",
]
