"""The QUIC handshake with the server, and its certificate. Nothing is authenticated: the server gets no token."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asport_sync.config import TunnelConfig
from asport_sync.doctor import certificate
from asport_sync.doctor.certificate import Chain
from asport_sync.doctor.findings import Findings
from asport_sync.engine import (
    CloseCause,
    Closed,
    Connected,
    Connection,
    Credentials,
    Engine,
    Event,
    Transport,
)
from asport_sync.errors import ConfigError, EngineClosedError, GoneError
from asport_sync.host.certificates import load_client
from asport_sync.host.host import CONGESTION
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress

TIMEOUT = 5.0
"""Seconds for a handshake, unless the key ``timeout`` is shorter: several round trips and retransmissions."""

_CLOSE_TIMEOUT = 1.0  # seconds for the event after a close
_SETTLE = 0.2  # seconds after the handshake in which a server may close for what it has found
_NO_APPLICATION_PROTOCOL = 0x178  # RFC 9001 section 4.8, TLS alert 120
_CONNECTION_REFUSED = 0x02  # RFC 9000 section 20.1
_VERSION_NEGOTIATION = 0x11  # RFC 9368 section 8
_ALERT_ALPN = 120


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine that is started; events are collected with ``wait``."""
    made = Engine()
    try:
        made.start()
        yield made
    finally:
        made.close()


@dataclass(frozen=True, slots=True)
class Result:
    """The end of an attempt.

    Attributes:
        closed: Why it failed; None: the handshake was complete.
        chain: The server's certificates, DER; empty if it failed.
        alpn: The application protocol.
        seconds: The duration of the handshake.
    """

    closed: Closed | None
    chain: bytes = b""
    alpn: str = ""
    seconds: float = 0.0


def attempt(made: Engine, credentials: Credentials, config: TunnelConfig, address: SocketAddress) -> Result:
    """Makes a handshake and closes the connection.

    Raises:
        OSError: No socket can be created.
        EngineError: The engine lacks memory.
    """
    begun = time.monotonic()
    connection = connect(made, credentials, config, address)
    deadline = begun + min(config.timeout, TIMEOUT) + _CLOSE_TIMEOUT
    result = Result(None)
    for event in events(made, connection, deadline):
        if isinstance(event, Connected):
            alpn = event.alpn.decode("ascii", "backslashreplace")
            result = Result(None, connection.peer_chain(), alpn, time.monotonic() - begun)
            connection.close(0)
        elif isinstance(event, Closed):
            return result if result.alpn else Result(event)
    return result


def connect(made: Engine, credentials: Credentials, config: TunnelConfig, address: SocketAddress) -> Connection:
    """Begins a connection that sends nothing on its own once it is established."""
    with sockets.unbound_udp(address[0]) as sock:
        return made.connect(
            sock,
            credentials,
            Transport(
                congestion=CONGESTION[config.congestion_control],
                max_udp_payload=config.max_udp_payload,
                idle_timeout=_IDLE_TIMEOUT,
                handshake_timeout=min(config.timeout, TIMEOUT),
                max_streams_bidi=_STREAMS,
            ),
            remote=address,
            server_name=config.server_name,
            send_sni=not config.tls.disable_sni,
        )


_IDLE_TIMEOUT = 600.0  # seconds; the server's applies, which is shorter
_STREAMS = 64


def events(made: Engine, connection: Connection, deadline: float) -> Iterator[Event]:
    """Yields the events of a connection until the deadline on the monotonic clock."""
    with contextlib.suppress(EngineClosedError):
        while (left := deadline - time.monotonic()) > 0:
            yield from (event for event in made.wait(left) if getattr(event, "connection", None) == connection)


def check(
    config: TunnelConfig, quic: Sequence[SocketAddress], silent: Sequence[SocketAddress], findings: Findings
) -> SocketAddress | None:
    """Makes a handshake, and checks the certificate.

    Args:
        config: The tunnel's configuration.
        quic: Addresses where a QUIC server answers.
        silent: Addresses that did not answer the probe.
        findings: Gets what is found.

    Returns:
        The address with which a connection is possible; None: with none.
    """
    with engine() as made:
        try:
            trusted = load_client(config, made, None)
        except ConfigError as problem:
            findings.problem("trust-unusable", str(problem))
            findings.skipped("handshake", "needs the trusted certificates")
            return None
        for address in [*quic, *silent]:
            result = attempt(made, trusted.credentials, config, address)
            if result.closed is None or result.closed.cause is not CloseCause.HANDSHAKE_TIMEOUT:
                break
        where = sockets.text(address)
        closed = result.closed
        if closed is None:
            if address in silent:
                findings.ok("udp", f"{where} answers, although not with version negotiation")
            findings.ok("handshake", f"{where}: complete after {result.seconds * 1000:.1f} ms, protocol {result.alpn}")
            certificate.check(Chain(result.chain), config, findings)
            return address
        if closed.cause is CloseCause.CERTIFICATE:
            findings.ok("handshake", f"{where}: the server answers; its certificate is rejected")
            anyone = made.client_credentials(alpn=[name.encode() for name in config.tls.alpn], verify=False)
            with contextlib.suppress(GoneError):
                shown = attempt(made, anyone, config, address)
                certificate.explain(closed, Chain(shown.chain), config, findings)
            return None
        if closed.cause is CloseCause.HANDSHAKE_TIMEOUT and address in silent and not closed.totals.packets_received:
            for each in silent:
                findings.problem("udp-blocked", f"no answer from {sockets.text(each)}")
            findings.skipped("certificate", "needs an answer of the server")
            return None
        findings.problem(_problem_of(closed), f"{where}: {closed.describe()}{_quoted(closed.reason)}", _cure_of(closed))
        findings.skipped("certificate", "needs a complete handshake")
        return None


def _problem_of(closed: Closed) -> str:
    code = closed.code
    if closed.cause is CloseCause.PEER_TRANSPORT:
        known = {
            _NO_APPLICATION_PROTOCOL: "alpn-refused",
            _CONNECTION_REFUSED: "server-full",
            _VERSION_NEGOTIATION: "no-common-version",
        }
        return known.get(code, "handshake-failed")
    if closed.cause is CloseCause.TLS and code == _ALERT_ALPN:
        return "alpn-refused"
    causes = {
        CloseCause.VERSION: "no-common-version",
        CloseCause.UNREACHABLE: "udp-closed",
        CloseCause.HANDSHAKE_TIMEOUT: "handshake-stalled",
        CloseCause.IDLE: "handshake-stalled",
    }
    return causes.get(closed.cause, "handshake-failed")


def _cure_of(closed: Closed) -> str | None:
    """Returns the cure of a TLS alert or transport error that the catalogue has no entry for."""
    return closed.cure if closed.cause is CloseCause.TLS and closed.code != _ALERT_ALPN else None


def _quoted(reason: str) -> str:
    return f" ({reason!r})" if reason else ""
