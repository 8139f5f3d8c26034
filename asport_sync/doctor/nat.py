"""Whether a NAT is on the path, and how long its bindings last."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time

from asport_sync.config import TunnelConfig
from asport_sync.doctor import handshake
from asport_sync.doctor.findings import Findings
from asport_sync.doctor.names import source_of
from asport_sync.engine import Closed, CommandReceived, Connected, Connection, Engine, Event, StreamOpened
from asport_sync.errors import EngineError, GoneError, RemoteProtocolError
from asport_sync.host.certificates import load_client
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress
from asport_sync.wire import ClientHello, Dialect, ForwardMode, ServerHello, decode, encode, encode_mode, token

_CARRIER_GRADE = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598
_IDLE_TIMES = (2.0, 4.0, 8.0, 15.0, 25.0, 40.0, 60.0, 90.0)  # seconds
_MARGIN = 1.0  # seconds between a test and the idle timeout
_ARRIVAL = 2.0  # seconds in which the server's packet must arrive
_DIAL_TIMEOUT = 4.0
_UNKNOWN_TYPE = (
    "its type (mapping and filtering, RFC 4787) cannot be told, because ASPORT servers do not report the address from "
    "which they get packets; tunnels need no particular type"
)


def check(server: SocketAddress, findings: Findings) -> None:
    """Compares this machine's address with that of the server, as far as that says something."""
    source = source_of(server)
    if isinstance(source, OSError):
        findings.skipped("nat", f"no route: {source}")
        return
    here, there = (ipaddress.ip_address(sockets.host_text(each).partition("%")[0]) for each in (source, server[0]))
    if not there.is_global:
        findings.skipped("nat", f"the server's address {there} is not a public one, so that addresses tell nothing")
    elif here.version == 4 and here in _CARRIER_GRADE:
        findings.ok("nat", f"this machine has {here}, an address of a carrier-grade NAT; {_UNKNOWN_TYPE}")
    elif not here.is_global:
        findings.ok("nat", f"this machine has the private address {here}, so that a NAT is in between; {_UNKNOWN_TYPE}")
    else:
        findings.ok("nat", f"this machine has the public address {here}; whether a NAT changes it cannot be told")


def check_binding(config: TunnelConfig, server: SocketAddress, findings: Findings) -> None:
    """Measures how long a binding lasts: this side sends nothing for a while, then a visitor makes the server send.

    Takes some minutes with a server whose ``max_idle_time`` is that long; ten seconds with the default.
    """
    if config.network == "udp":
        findings.skipped("nat-binding", "needs a tunnel with TCP, whose visitor the doctor can be")
        return
    with handshake.engine() as made:
        lasted = 0.0
        for idle in _IDLE_TIMES:
            try:
                outcome = _survives(made, config, server, idle)
            except (EngineError, OSError) as problem:
                findings.skipped("nat-binding", f"not measured: {problem}")
                return
            if isinstance(outcome, str):
                if lasted:
                    break
                findings.skipped("nat-binding", outcome)
                return
            if not outcome:
                said = f"a binding lasts at least {lasted:g} s, and is gone after {idle:g} s without packets"
                said = f"{said}; keep_alive is {config.keep_alive:g} s"
                if config.keep_alive >= idle:
                    findings.problem("nat-binding-short", said, seconds=lasted)
                else:
                    findings.ok("nat-binding", said, seconds=lasted)
                return
            lasted = idle
    said = (
        f"a binding lasts at least {lasted:g} s without packets, which is as long as the server's max_idle_time lets "
        f"it be observed; keep_alive is {config.keep_alive:g} s"
    )
    findings.ok("nat-binding", said, seconds=lasted)


def _survives(made: Engine, config: TunnelConfig, server: SocketAddress, idle: float) -> bool | str:
    """Connects, sends nothing for a time, and has the server send then.

    Returns:
        Whether its packet arrives; or why this cannot be observed.
    """
    connection = handshake.connect(
        made, load_client(config, made, None).credentials, server, handshake.Options.of(config)
    )
    try:
        public = _join(made, connection, config)
        if isinstance(public, str):
            return public
        if connection.info().idle_timeout < idle + _MARGIN:
            return f"the idle timeout of the server is {connection.info().idle_timeout:g} s"
        if _next(made, connection, idle, Closed) is not None:
            return "the connection ended meanwhile"
        try:
            with socket.create_connection((server[0], public), _DIAL_TIMEOUT):
                return _next(made, connection, _ARRIVAL, StreamOpened) is not None
        except OSError as problem:
            return f"the public port cannot be reached: {problem.strerror or problem}"
    finally:
        with contextlib.suppress(GoneError):
            connection.close(0)
            _next(made, connection, 1.0, Closed)


def _join(made: Engine, connection: Connection, config: TunnelConfig) -> int | str:
    """Authenticates, without heartbeats and keep-alive probes; returns the public port, or why there is none."""
    if _next(made, connection, handshake.TIMEOUT, Connected) is None:
        return "the connection fails"
    proof = connection.export(token.label(config.uuid), token.context(config.password), token.TOKEN_LENGTH)
    mode = encode_mode(ForwardMode(tcp=True, udp=None), Dialect(config.dialect))
    ports = config.expected_port_range
    connection.send(encode(ClientHello(config.uuid, proof, mode, ports.start, ports.end)))
    event = _next(made, connection, config.handshake_timeout, CommandReceived)
    if not isinstance(event, CommandReceived):
        return "no answer to the first command"
    try:
        command = decode(event.data)[0]
    except RemoteProtocolError as problem:
        return str(problem)
    if not isinstance(command, ServerHello) or command.port is None:
        return "the server refuses a second connection of this user"
    return command.port


def _next(made: Engine, connection: Connection, timeout: float, kind: type[Event]) -> Event | None:
    """Returns the next event of a kind; None after the timeout, or if the connection has ended."""
    begun = time.monotonic()
    for event in handshake.events(made, connection, begun + timeout):
        if isinstance(event, (kind, Closed)):
            return event if isinstance(event, kind) else None
    return None
