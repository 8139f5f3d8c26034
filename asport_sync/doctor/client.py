"""The checks of a client, in their order: each depends on what the earlier ones have found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asport_sync.config import ClientConfig, TunnelConfig, UdpForwardMode
from asport_sync.doctor import certificate, handshake, joining, local, machine, names, nat, path, reachability
from asport_sync.doctor.echo import Echo
from asport_sync.doctor.findings import Finding, Findings
from asport_sync.doctor.joining import Joined
from asport_sync.runtime.sockets import SocketAddress

_AFTER_HANDSHAKE = ("authentication", "port", "tcp", "udp-native", "udp-quic", "path")
_AFTER_UDP = ("authorities", "handshake", "certificate", *_AFTER_HANDSHAKE)


def check_client(
    config: ClientConfig,
    *,
    file: Path | None = None,
    nat_binding: bool = False,
    has_local: bool = True,
    report: Callable[[Finding], object] | None = None,
) -> list[Finding]:
    """Finds out why the tunnels of a client do not work, or how well they do. Takes some seconds for each tunnel.

    It connects to the server with the settings of each tunnel, and makes itself public in the place of the local
    service for these seconds. A client that runs is not disturbed.

    Args:
        config: The client's configuration.
        file: The file that it is from.
        nat_binding: Whether to measure how long the bindings of a NAT last, which may take minutes.
        has_local: Whether the configuration names a local service.
        report: Called with each finding as soon as it is made.

    Returns:
        The findings, in the order in which they were made.
    """
    findings = Findings(report)
    for tunnel in config.tunnels.values():
        findings.tunnel = tunnel.name
        _check_tunnel(config, tunnel, findings, file=file, nat_binding=nat_binding, has_local=has_local)
    findings.tunnel = ""
    limits = [each.max_connections for each in config.tunnels.values() if each.max_connections is not None]
    machine.check_buffers(findings)
    machine.check_descriptors(sum(limits) or None, None, findings)
    machine.check_files(config, file, findings)
    if not any(each.id == "clock-wrong" for each in findings.all):
        findings.skipped("clock-skew", certificate.CLOCK_UNKNOWN)
    return findings.all


def _check_tunnel(
    config: ClientConfig,
    tunnel: TunnelConfig,
    findings: Findings,
    *,
    file: Path | None,
    nat_binding: bool,
    has_local: bool,
) -> None:
    if has_local:
        # A table of tunnels with a network of its own that is both is not told from one without: no false alarm then.
        is_default = tunnel.network == "both" and "network" not in config.defaults
        local.check(tunnel, findings, udp_is_default=is_default, file=file)
    else:
        findings.skipped("local", "the configuration names none")
    addresses = names.check(tunnel.server, findings)
    if not addresses:
        _skip(findings, ("udp", *_AFTER_UDP), "needs a route to the server")
        return
    quic, silent = reachability.check(addresses, findings)
    nat.check(addresses[0], findings)
    if not quic and not silent:
        _skip(findings, _AFTER_UDP, "needs a QUIC server that answers")
        return
    reached = handshake.check(tunnel, quic, silent, findings)
    if reached is None:
        _skip(findings, _AFTER_HANDSHAKE, "needs a complete handshake")
        return
    _check_joined(config, reached.tunnel, reached.address, findings, nat_binding=nat_binding)


def _check_joined(
    config: ClientConfig, tunnel: TunnelConfig, server: SocketAddress, findings: Findings, *, nat_binding: bool
) -> None:
    running = joining.holder(config, tunnel)
    if running is not None:
        why = f"a client that runs on this machine has port {tunnel.expected_port_range}; end it to have this checked"
        _skip(findings, _AFTER_HANDSHAKE, why)
        return
    with Echo() as echo:
        with joining.joined(config, tunnel, echo, tunnel.udp_forward_mode) as result:
            joining.report(result, tunnel, findings)
            if not isinstance(result, Joined):
                _skip(findings, _AFTER_HANDSHAKE[2:], "needs a public port")
                return
            if tunnel.network in ("tcp", "both"):
                path.check_tcp(result, echo.key, findings)
            else:
                findings.skipped("tcp", f"network is {tunnel.network}")
            _check_udp(result, echo, tunnel, tunnel.udp_forward_mode, findings)
            path.check_path(result, tunnel, findings)
        other: UdpForwardMode = "quic" if tunnel.udp_forward_mode == "native" else "native"
        if tunnel.network == "tcp":
            findings.skipped(f"udp-{other}", f"network is {tunnel.network}")
        else:
            with joining.joined(config, tunnel, echo, other) as result:
                if isinstance(result, Joined):
                    _check_udp(result, echo, tunnel, other, findings)
                else:
                    findings.skipped(f"udp-{other}", f"no second connection: {result}")
    if nat_binding:
        nat.check_binding(tunnel, server, findings)
    else:
        findings.skipped("nat-binding", "takes up to some minutes: only with --nat")


def _check_udp(result: Joined, echo: Echo, tunnel: TunnelConfig, mode: UdpForwardMode, findings: Findings) -> None:
    if tunnel.network == "tcp":
        findings.skipped(f"udp-{mode}", f"network is {tunnel.network}")
    else:
        path.check_udp(result, echo.key, mode, findings)


def _skip(findings: Findings, checks: tuple[str, ...], why: str) -> None:
    for check in checks:
        findings.skipped(check, why)
