"""The QUIC handshake with the server, and its certificate. Nothing is authenticated: the server gets no token."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asport_sync.client.known_servers import KnownServers, default_path
from asport_sync.config import TunnelConfig, written_pin
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
from asport_sync.errors import CertificateError, ConfigError, EngineClosedError, GoneError
from asport_sync.host.certificates import load_client
from asport_sync.runtime import sockets
from asport_sync.runtime.sockets import SocketAddress

TIMEOUT = 5.0
"""Seconds for a handshake, unless the key ``timeout`` is shorter: several round trips and retransmissions."""

_CLOSE_TIMEOUT = 1.0  # seconds for the event after a close
_IDLE_TIMEOUT = 600.0  # seconds; the server's applies, which is shorter
_STREAMS = 64  # that a server may open
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
class Options:
    """Settings of an attempt.

    Attributes:
        server_name: Name or IP address that the certificate must be for.
        send_sni: Whether a name is sent as SNI.
        timeout: Seconds.
        max_udp_payload: Bytes, as the key.
    """

    server_name: str
    send_sni: bool = True
    timeout: float = TIMEOUT
    max_udp_payload: int = 65527

    @classmethod
    def of(cls, config: TunnelConfig) -> Options:
        """Returns the settings of a tunnel."""
        timeout = min(config.timeout, TIMEOUT)
        return cls(config.server_name, not config.tls.disable_sni, timeout, config.max_udp_payload)


@dataclass(frozen=True, slots=True)
class Reached:
    """A server that is reached and trusted.

    Attributes:
        address: Its address.
        tunnel: The settings with which it may be connected to.
    """

    address: SocketAddress
    tunnel: TunnelConfig


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


def attempt(made: Engine, credentials: Credentials, address: SocketAddress, options: Options) -> Result:
    """Makes a handshake and closes the connection.

    Raises:
        OSError: No socket can be created.
        EngineError: The engine lacks memory.
    """
    begun = time.monotonic()
    connection = connect(made, credentials, address, options)
    deadline = begun + options.timeout + _CLOSE_TIMEOUT
    result = Result(None)
    for event in events(made, connection, deadline):
        if isinstance(event, Connected):
            alpn = event.alpn.decode("ascii", "backslashreplace")
            result = Result(None, b"", alpn, time.monotonic() - begun)
            with contextlib.suppress(GoneError):  # the server may have closed it already
                result = dataclasses.replace(result, chain=connection.peer_chain())
                connection.close(0)
        elif isinstance(event, Closed):
            return result if result.alpn else Result(event)
    return result


def connect(made: Engine, credentials: Credentials, address: SocketAddress, options: Options) -> Connection:
    """Begins a connection that sends nothing on its own once it is established."""
    with sockets.unbound_udp(address[0]) as sock:
        transport = Transport(
            max_udp_payload=options.max_udp_payload,
            idle_timeout=_IDLE_TIMEOUT,
            handshake_timeout=options.timeout,
            max_streams_bidi=_STREAMS,
        )
        return made.connect(
            sock,
            credentials,
            transport,
            remote=address,
            server_name=options.server_name,
            send_sni=options.send_sni,
        )


def served_chain(address: SocketAddress, alpn: Sequence[str]) -> bytes:
    """Returns the certificates that a server sends, DER, without verification; empty if there is no handshake."""
    with engine() as made:
        return attempt(made, _trusting_anyone(made, alpn), address, Options(server_name=address[0])).chain


def _trusting_anyone(made: Engine, alpn: Sequence[str]) -> Credentials:
    """Returns credentials that only show what a server sends. Nothing is sent to it that it could misuse."""
    return made.client_credentials(alpn=[name.encode() for name in alpn], verify=False)


def events(made: Engine, connection: Connection, deadline: float) -> Iterator[Event]:
    """Yields the events of a connection until the deadline on the monotonic clock."""
    with contextlib.suppress(EngineClosedError):
        while (left := deadline - time.monotonic()) > 0:
            yield from (event for event in made.wait(left) if getattr(event, "connection", None) == connection)


def check(
    config: TunnelConfig, quic: Sequence[SocketAddress], silent: Sequence[SocketAddress], findings: Findings
) -> Reached | None:
    """Makes a handshake, and checks the certificate.

    Args:
        config: The tunnel's configuration.
        quic: Addresses where a QUIC server answers.
        silent: Addresses that did not answer the probe.
        findings: Gets what is found.

    Returns:
        The server; None: it cannot be reached, or is not trusted.
    """
    with engine() as made:
        try:
            trusted = load_client(config, made, None)
        except ConfigError as problem:
            findings.problem("trust-unusable", str(problem))
            findings.skipped("handshake", "needs the trusted certificates")
            return None
        if not config.tls.verifies_certificate:
            findings.skipped("authorities", "the configuration needs none")
        elif trusted.authorities:
            findings.ok("authorities", f"of the system: {trusted.authorities}")
        else:
            findings.ok("authorities", "only those of the configuration (disable_native)")
        for address in [*quic, *silent]:
            result = attempt(made, trusted.credentials, address, Options.of(config))
            if result.closed is None or result.closed.cause is not CloseCause.HANDSHAKE_TIMEOUT:
                break
        where = sockets.text(address)
        closed = result.closed
        if closed is None:
            if address in silent:
                findings.ok("udp", f"{where} answers, although not with version negotiation")
            said = f"{where}: complete after {result.seconds * 1000:.1f} ms, protocol {result.alpn}"
            findings.ok("handshake", said, seconds=result.seconds)
            return _trusted(config, address, result.chain, findings)
        if closed.cause is CloseCause.CERTIFICATE:
            findings.ok("handshake", f"{where}: the server answers; its certificate is rejected")
            shown = attempt(made, _trusting_anyone(made, config.tls.alpn), address, Options.of(config))
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


def _trusted(config: TunnelConfig, address: SocketAddress, chain: bytes, findings: Findings) -> Reached | None:
    """Checks a certificate that TLS has accepted. With trust on first use that is any."""
    trust = config.tls.certificates
    if not trust.trust_on_first_use:
        certificate.check(Chain(chain), config, findings)
        return Reached(address, config)
    pin = Chain(chain).pin
    try:
        known = KnownServers(trust.known_servers or default_path()).is_known(config.server, chain)
    except CertificateError as problem:
        findings.problem("certificate-pin", str(problem))
        return None
    if pin is None:
        findings.problem("certificate-rejected", "its key cannot be read")
        return None
    what = "its key is the known one" if known else "a new server, which a client will trust from its first use on"
    findings.ok("certificate", f"{what}: {written_pin(pin)}")
    pinned = dataclasses.replace(
        trust, trust_on_first_use=False, known_servers=None, pins=(pin,), pins_only=True
    )  # so that the doctor adds no server, and tells its password to this one only
    return Reached(address, dataclasses.replace(config, tls=dataclasses.replace(config.tls, certificates=pinned)))


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
