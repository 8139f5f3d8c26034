"""What the doctor is tried on: programs that answer wrongly, and networks that do not let through."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from asport_sync import ClientConfig, ServerConfig
from asport_sync.doctor import Finding, State, check_client, check_server
from tests.e2e.tunnels import client_options, server_options
from tests.support.certificates import Certificate, write_private
from tests.support.ports import free_port
from tests.support.services import Address

FOUND = (State.WARNING, State.ERROR)


def of_client(certificate: Certificate, server: Address, local: Address, /, **changes: object) -> list[Finding]:
    """What the doctor finds with the options of a client, which asks for a port of its own."""
    options = client_options(certificate, server, local, expected_port_range=free_port(), **changes)
    return check_client(ClientConfig.from_options(**options))


def of_server(certificate: Certificate, /, **changes: object) -> list[Finding]:
    """What the doctor finds with the options of a server."""
    return check_server(ServerConfig.from_options(**server_options(certificate, **changes)))


def problems(findings: list[Finding]) -> list[str]:
    """The ids of problems. Each has a cure, and nothing else has one."""
    assert [each for each in findings if bool(each.cure) != (each.state in FOUND)] == []
    return [each.id for each in findings if each.state in FOUND]


def skipped(findings: list[Finding]) -> set[str]:
    """The checks that were not made."""
    return {each.id for each in findings if each.state is State.SKIPPED}


def text_of(findings: list[Finding], id: str) -> str:  # noqa: A002
    """What was found under an id."""
    (found,) = [each.found for each in findings if each.id == id and each.state is not State.SKIPPED]
    return found


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[Address]:
    """A UDP program that answers each datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        reading, writing = os.pipe()

        def serve() -> None:
            while True:
                if reading in select.select([sock.fileno(), reading], [], [])[0]:
                    return
                data, source = sock.recvfrom(65535)
                back = answer(data)
                if back is not None:
                    sock.sendto(back, source)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            os.close(writing)
            thread.join()
            os.close(reading)


def negotiation(data: bytes, *versions: int) -> bytes:
    """The Version Negotiation packet (RFC 9000, section 17.2.1) that answers a packet."""
    to_length = data[5]
    to, rest = data[6 : 6 + to_length], data[6 + to_length :]
    source = rest[1 : 1 + rest[0]]
    ids = bytes([len(source)]) + source + bytes([len(to)]) + to
    return b"\x80" + bytes(4) + ids + b"".join(version.to_bytes(4, "big") for version in versions)


@contextlib.contextmanager
def quic_server(certificate: Certificate, alpn: str, code: int | None = None) -> Iterator[Address]:
    """A server of aioquic that never says anything, or closes with a transport error as soon as it can."""
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.asyncio.server import serve
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import HandshakeCompleted, QuicEvent

    class Closing(QuicConnectionProtocol):
        def quic_event_received(self, event: QuicEvent) -> None:
            if isinstance(event, HandshakeCompleted) and code is not None:
                self._quic.close(error_code=code, frame_type=0)
                self.transmit()

    configuration = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
    configuration.load_cert_chain(str(certificate.certificate), str(certificate.private_key))
    loop, begun, address = asyncio.new_event_loop(), threading.Event(), []

    def run() -> None:
        server = loop.run_until_complete(serve("127.0.0.1", 0, configuration=configuration, create_protocol=Closing))
        assert server._transport is not None
        address.append(server._transport.get_extra_info("sockname"))
        begun.set()
        loop.run_forever()
        server.close()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(20)
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def for_clients_only(directory: Path) -> Certificate:
    """A certificate for localhost and 127.0.0.1 that may only be a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=60))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(directory / "certificate.pem", directory / "key.pem", directory / "certificate.pem")
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    write_private(files.private_key, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return files


def unreachable(packet: bytes, code: int) -> bytes:
    """The ICMP message Destination Unreachable (RFC 792) that a router sends about an IPv4 packet."""
    body = struct.pack("!BBHI", 3, code, 0, 0) + packet[:28]
    body = body[:2] + _checksum(body) + body[4:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0, packet[16:20], packet[12:16])
    return head[:10] + _checksum(head) + head[12:] + body


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
