"""The server's name and addresses, and whether this machine has a route to them."""

from __future__ import annotations

import socket

from asport_sync.config import HostPort
from asport_sync.doctor.findings import Findings
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress

_NO_ANSWER = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})


def check(server: HostPort, findings: Findings) -> list[SocketAddress]:
    """Checks the name and the routes; returns the addresses to which there is one. Blocks as the resolver does."""
    try:
        addresses = sockets.resolve(server.host, server.port, socket.SOCK_DGRAM)
    except socket.gaierror as problem:
        kind = "name-no-answer" if problem.errno in _NO_ANSWER else "name-unknown"
        findings.problem(kind, f"{server.host}: {problem.strerror}")
        return []
    except (OSError, UnicodeError) as problem:
        findings.problem("name-unknown", f"{server.host}: {problem}")
        return []
    listed = ", ".join(sockets.host_text(host) for host, _ in addresses)
    findings.ok("name", listed if sockets.is_literal(server.host) else f"{server.host} is {listed}")
    sources = {address: source_of(address) for address in addresses}
    routed = [address for address in addresses if isinstance(sources[address], str)]
    without = [f"{sockets.host_text(each[0])} ({sources[each]})" for each in addresses if each not in routed]
    if not routed:
        findings.problem("no-route", ", ".join(without))
    elif without:
        findings.problem("route-partial", f"none to {', '.join(without)}")
    else:
        used = dict.fromkeys(sockets.host_text(str(sources[address])) for address in routed)
        findings.ok("route", f"from {', '.join(used)}")
    return routed


def source_of(address: SocketAddress) -> str | OSError:
    """Returns the address that the kernel would send from, or why there is no route."""
    try:
        with sockets.connected_udp(address) as sock:
            return sockets.local_address(sock)[0]
    except OSError as problem:
        return OSError(problem.strerror or str(problem))
