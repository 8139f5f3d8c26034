"""The local service of a tunnel: whether it accepts connections. Nothing is sent to it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from asport_sync.config import HostPort, TunnelConfig, UnixSocket
from asport_sync.config.bad_value import dotted
from asport_sync.config.effective import effective
from asport_sync.config.environment import PREFIX
from asport_sync.doctor.findings import Findings
from asport_sync.doctor.machine import bound_ports
from asport_sync.runtime import sockets
from asport_sync.runtime.threads import StopSignal

_MAX_TIMEOUT = 5.0  # seconds for each address, unless dial_timeout is shorter


def check(config: TunnelConfig, findings: Findings, *, udp_is_default: bool, file: Path | None = None) -> None:
    """Checks each address of the service.

    Args:
        config: The tunnel's configuration.
        findings: Gets what is found.
        udp_is_default: Whether nobody has asked for UDP, so that a service that has TCP only is none of the problems.
        file: The file that it is from.
    """
    has_tcp = config.network in ("tcp", "both") and _check_tcp(config, findings)
    if config.network in ("udp", "both"):
        _check_udp(config, findings, is_optional=has_tcp and udp_is_default, file=file)


def missing(config: TunnelConfig) -> list[str]:
    """Returns what of the service no program of this machine has. Connects to nothing, and sends nothing.

    A service on another machine, or whose name cannot be resolved now, is not looked at.
    """
    networks: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
    return [
        f"no program of this machine has {config.local} ({network.upper()})"
        for network in networks
        if config.network in (network, "both")
        and not any(_may_be_there(each, network) for each in config.local.addresses)
    ]


def _may_be_there(target: HostPort | UnixSocket, network: Literal["tcp", "udp"]) -> bool:
    if isinstance(target, UnixSocket):
        return target.path.startswith("@") or Path(target.path).is_socket()
    try:
        addresses = sockets.resolve(target.host, target.port, socket.SOCK_STREAM)
    except OSError:
        return True
    return target.port in bound_ports(network) or not all(sockets.is_here(host) for host, _ in addresses)


def _check_tcp(config: TunnelConfig, findings: Findings) -> bool:
    """Returns whether an address accepts connections."""
    timeout = min(config.dial_timeout, _MAX_TIMEOUT)
    problems: list[tuple[str, str]] = []
    answering = []
    for target in config.local.addresses:
        found = _dial(target, timeout)
        if found is None:
            answering.append(str(target))
        else:
            problems.append(found)
    if not answering:
        for kind, said in problems:
            findings.problem(kind, said)
        return False
    findings.ok("local", f"{', '.join(answering)} accepts TCP connections")
    if problems and str(config.local) != f"localhost:{_port_of(config)}":
        findings.problem("local-partial", "; ".join(said for _, said in problems))
    return True


def _port_of(config: TunnelConfig) -> int | None:
    first = config.local.addresses[0]
    return None if isinstance(first, UnixSocket) else first.port


def _dial(target: HostPort | UnixSocket, timeout: float) -> tuple[str, str] | None:
    """Connects, and closes the connection; returns the problem."""
    stop = StopSignal()
    try:
        if isinstance(target, UnixSocket):
            sockets.dial_unix(target.path, timeout, stop).close()
        else:
            addresses = sockets.resolve(target.host, target.port, socket.SOCK_STREAM)
            sockets.dial_tcp(addresses, timeout, stop)[0].close()
    except socket.gaierror as problem:
        return "local-unknown", f"{target}: {problem.strerror}"
    except TimeoutError as problem:
        return "local-silent", f"{target}: {problem.strerror}"
    except OSError as problem:
        return "local-refused", f"{target}: {problem.strerror or problem}"
    finally:
        stop.close()
    return None


def _check_udp(config: TunnelConfig, findings: Findings, *, is_optional: bool, file: Path | None) -> None:
    """Looks at the kernel's table of UDP sockets; a datagram would reach the service."""
    used = bound_ports("udp")
    for target in config.local.addresses:
        if isinstance(target, UnixSocket):
            continue
        try:
            addresses = sockets.resolve(target.host, target.port, socket.SOCK_DGRAM)
        except OSError:
            continue  # reported with TCP
        here = [address for address in addresses if sockets.is_here(address[0])]
        if not here:
            findings.skipped("local", f"{target}: UDP on another machine cannot be checked without sending something")
            return
        if target.port in used:
            findings.ok("local", f"{target}: a program has the UDP port")
            return
    found = f"{config.local}: no program has the UDP port"
    if is_optional:
        findings.skipped("local", f"{found}; if the service has TCP only, {_without_udp(config, file)}")
    elif config.network == "udp":
        findings.problem("local-udp", found, "start the service, or correct the key local")
    else:
        cure = f"start the service; or, if it has TCP only, {_without_udp(config, file)}"
        findings.problem("local-udp", found, cure)


def _without_udp(config: TunnelConfig, file: Path | None) -> str:
    """Returns what to set, where the key network of a tunnel is given or would be."""
    if file is None:
        return f"set network: tcp, or {PREFIX}NETWORK=tcp"
    key = dotted(("tunnels", config.name, "network") if config.name else ("network",))
    origin = next((each.origin for each in effective("client", file) if each.key == key), None)
    if origin is not None and origin.variables:
        return f"set {', '.join(origin.variables)} to tcp"
    return f"set {key}: tcp in {file}"
