"""The checks of a server, in their order."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from asport_sync.config import ProxyConfig, ServerConfig
from asport_sync.control.caller import Caller, ControlError, everyone
from asport_sync.control.control_socket import default_path
from asport_sync.control.status import Status
from asport_sync.doctor import handshake, machine, reachability
from asport_sync.doctor.certificate import Chain, date
from asport_sync.doctor.findings import Finding, Findings
from asport_sync.doctor.reachability import Answer
from asport_sync.engine import Engine
from asport_sync.errors import ConfigError
from asport_sync.host import stats
from asport_sync.host.certificates import SOON, Loaded, load_server
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress

_PROBE_TIMEOUT = 2.0  # seconds for a server on this machine
_FEW = 16  # ports: of so few each one counts
_SHOWN = 10  # of them
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_FIRST_UNPRIVILEGED = 1024  # unless the kernel says otherwise


def check_server(
    config: ServerConfig, *, file: Path | None = None, report: Callable[[Finding], object] | None = None
) -> list[Finding]:
    """Finds out why a server does not start or is not reached by its clients. Takes some seconds.

    A running server is asked through its control socket, and probed like a client does; nothing of it is changed.

    Args:
        config: The server's configuration.
        file: The file that it is from.
        report: Called with each finding as soon as it is made.

    Returns:
        The findings, in the order in which they were made.
    """
    findings = Findings(report)
    _check_certificate(config, findings)
    machine.check_files(config, file, findings)
    status = _check_running(config, file, findings)
    _check_listen(config, status, findings)
    _check_ports(config, status, findings)
    machine.check_buffers(findings)
    limits = [
        limit
        for each in (config, *config.proxies, *(user for proxy in config.proxies for user in proxy.users))
        if (limit := each.max_connections) is not None
    ]
    machine.check_descriptors(max(limits, default=None), None if status is None else status.pid, findings)
    machine.check_ipv6([config.server.host, *(str(proxy.bind_ip) for proxy in config.proxies)], findings)
    return findings.all


def _check_certificate(config: ServerConfig, findings: Findings) -> None:
    engine = Engine()
    try:
        loaded = load_server(config, engine, None)
    except ConfigError as problem:
        findings.problem("certificate-unusable", str(problem))
        return
    finally:
        engine.close()
    for fault in loaded.validity.faults:
        findings.problem("certificate-unsuitable", fault)
    _check_dates(loaded, findings)


def _check_dates(loaded: Loaded, findings: Findings) -> None:
    now, bad = time.time(), bool(loaded.validity.faults)
    for name, certificate, _ in loaded.validity.dates:
        if now < certificate.not_before:
            findings.problem("certificate-early", f"{name}: from {date(certificate.not_before)}")
        elif now > certificate.not_after:
            findings.problem("certificate-expired", f"{name}: expired since {date(certificate.not_after)}")
        elif now > certificate.not_after - SOON:
            findings.problem("certificate-expires", f"{name}: valid until {date(certificate.not_after)}")
        else:
            continue
        bad = True
    if not bad:
        last = min((each.not_after for _, each, _ in loaded.validity.dates), default=now)
        findings.ok("certificate", f"valid until {date(last)}")


def _check_running(config: ServerConfig, file: Path | None, findings: Findings) -> Status | None:
    """Returns the state of the server with this configuration, if it runs."""
    if isinstance(config.control_socket, Path):
        if not config.control_socket.exists():
            findings.skipped("running", f"no server runs: there is no {config.control_socket}")
            return None
        callers = [Caller(config.control_socket)]
        silent: list[str] = []
    elif config.control_socket == "off":
        findings.skipped("running", "unknown: control_socket is off")
        return None
    else:
        callers, silent = everyone(stats.Side.SERVER)
    own = config.control_socket if isinstance(config.control_socket, Path) else default_path(stats.Side.SERVER)
    others = []
    for caller in callers:
        try:
            status = caller.status()
        except ControlError as problem:
            silent.append(str(problem))
            continue
        if _is_of(status, config, file):
            findings.ok("running", f"process {status.pid}, version {status.version}: {status.summary}")
            return status
        if caller.path == own:
            what = status.file or status.address or "a client"
            others.append(f"another configuration runs on this control socket: {what} (process {status.pid}, {own})")
    if others:
        findings.problem("control-taken", "; ".join(others))
    elif silent:
        findings.problem("control-silent", "; ".join(silent))
    else:
        findings.skipped("running", "no server with this address has a control socket in the usual directories")
    return None


def _is_of(status: Status, config: ServerConfig, file: Path | None) -> bool:
    """Returns whether a running server may have this configuration."""
    if status.side != "server":
        return False
    if file is not None and status.file is not None:
        return status.file == str(file.resolve())
    if config.server.port == 0 or status.address is None:
        return True
    return status.address.rpartition(":")[2] == str(config.server.port)


def _check_listen(config: ServerConfig, status: Status | None, findings: Findings) -> None:
    """Binds the address, or probes the server that has it."""
    host = sockets.any_address(config.server.host, only_v6=config.only_v6)
    port = config.server.port
    if status is not None and status.address is not None:
        port = int(status.address.rpartition(":")[2])
    where = sockets.text((host, port))
    try:
        if status is None:
            sockets.bind_udp(host, port, only_v6=config.only_v6).close()
            if not sockets.is_here(host):
                findings.problem("address-absent", host)
            findings.ok("listen", f"{where} can be bound")
            return
    except OSError as problem:
        kinds = {errno.EADDRINUSE: "listen-taken", errno.EACCES: "listen-forbidden", errno.EPERM: "listen-forbidden"}
        kind = kinds.get(problem.errno or 0, "listen-impossible")
        if kind == "listen-taken" and _probe(host, port).answer is Answer.QUIC:
            findings.ok("listen", f"{where} is bound, and a QUIC server answers there")
        else:
            findings.problem(kind, f"{where}: {problem.strerror or problem}")
        return
    found = _probe(host, port)
    if found.answer is Answer.QUIC:
        findings.ok("listen", f"the server answers at {where} after {found.rtt * 1000:.1f} ms")
        _check_served(config, found.address, findings)
    else:
        findings.problem("not-answering", f"{where}: {found.answer.value}")


def _check_served(config: ServerConfig, address: SocketAddress, findings: Findings) -> None:
    """Compares the certificate that the running server sends with that of its file."""
    served = Chain(handshake.served_chain(address, config.tls.alpn)).certificates
    try:
        named = Chain.of_file(config.tls.certificate.read()).certificates
    except ConfigError:
        return  # reported as unusable
    if served and named and served[0] != named[0]:
        findings.problem("certificate-stale", f"in use until {date(served[0].not_valid_after_utc.timestamp())}")


def _probe(host: str, port: int) -> reachability.Probe:
    """Probes a server on this machine."""
    address: SocketAddress = {"::": ("::1", port), "0.0.0.0": ("127.0.0.1", port)}.get(host, (host, port))
    found = reachability.probe(address, _PROBE_TIMEOUT)
    if found.answer is not Answer.QUIC and address[0] == "::1":  # a machine may have no address of IPv6
        return reachability.probe(("127.0.0.1", port), _PROBE_TIMEOUT)
    return found


# --- public ports -----------------------------------------------------------------------------------------------------


def _check_ports(config: ServerConfig, status: Status | None, findings: Findings) -> None:
    own = {int(row.public.rpartition(":")[2]) for row in (() if status is None else status.tunnels) if row.public}
    first = _first_unprivileged()
    is_good = True
    for number, proxy in enumerate(config.proxies):
        is_good &= _check_proxy(f"proxies[{number}]", proxy, own, first, findings)
    if not config.proxies:
        findings.skipped("ports", "there are no users")
    elif is_good:
        findings.ok("ports", "those that users may open are free, or used by this server's clients")


def _check_proxy(name: str, proxy: ProxyConfig, own: set[int], first: int, findings: Findings) -> bool:
    taken = set()
    if proxy.allow_network in ("tcp", "both"):
        taken |= machine.bound_ports("tcp")
    if proxy.allow_network in ("udp", "both"):
        taken |= machine.bound_ports("udp")
    taken = {port for port in taken - own if port in proxy.allow_ports}
    count = sum(end - start + 1 for start, end in proxy.allow_ports.ranges)
    host = sockets.any_address(str(proxy.bind_ip), only_v6=proxy.only_v6)
    is_good = True
    if not sockets.is_here(host):
        findings.problem("address-absent", f"{name}: bind_ip is {host}")
        is_good = False
    # A socket of another address does not take a port away, so that each is tried.
    taken = {port for port in taken if _is_taken(host, port, proxy)}
    if len(taken) >= count:
        findings.problem("ports-none", f"{name}: all {count} are taken")
        return False
    if taken and count <= _FEW:
        findings.problem("ports-taken", f"{name}: {', '.join(map(str, sorted(taken)[:_SHOWN]))}")
        is_good = False
    lowest = min(start for start, _ in proxy.allow_ports.ranges)
    if lowest < first and _error(host, lowest, proxy) in (errno.EACCES, errno.EPERM):
        findings.problem("ports-forbidden", f"{name}: {lowest} and others below {first}")
        is_good = False
    return is_good


def _is_taken(host: str, port: int, proxy: ProxyConfig) -> bool:
    return _error(host, port, proxy) == errno.EADDRINUSE


def _error(host: str, port: int, proxy: ProxyConfig) -> int | None:
    """Returns why a port cannot be bound; None: it can."""
    try:
        if proxy.allow_network in ("tcp", "both"):
            sockets.listen_tcp(host, port, only_v6=proxy.only_v6).close()
        if proxy.allow_network in ("udp", "both"):
            sockets.bind_udp(host, port, only_v6=proxy.only_v6).close()
    except OSError as problem:
        return problem.errno
    return None


def _first_unprivileged() -> int:
    try:
        return int(_UNPRIVILEGED.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _FIRST_UNPRIVILEGED
