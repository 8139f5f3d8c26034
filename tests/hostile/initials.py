"""Initial packets as valid as a client's own, as many as one likes, without a handshake behind them.

One real first flight is taken from our own client. Its content goes into new packets with other destination connection
IDs, under the keys that follow from those (RFC 9001 section 5.2): each looks like the beginning of another connection.
"""

from __future__ import annotations

import os
import socket

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from asport_sync.engine import Engine, Transport

SIZE = 1200
"""Bytes of each datagram, the least that a server looks at (RFC 9000 section 14.1)."""

_SALT = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")  # RFC 9001 section 5.2
_VERSION = (1).to_bytes(4, "big")
_TAG = 16


def initials(count: int) -> list[bytes]:
    """Return so many datagrams, each with another destination connection ID."""
    flight = _first_flight()
    scid, payload = _open(flight)
    return [_seal(os.urandom(8), scid, payload) for _ in range(count)]


def _first_flight() -> bytes:
    """The first datagram of a client of ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(15)
        engine = Engine()
        engine.start()
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                engine.connect(
                    sock,
                    engine.client_credentials(alpn=[b"asport"], system_trust=False, verify=False),
                    Transport(max_streams_bidi=16),
                    remote=server.getsockname(),
                    server_name="localhost",
                )
            return server.recv(65536)
        finally:
            engine.stop()
            engine.close()


def _expand(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context, RFC 8446 section 7.1."""
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return HKDFExpand(SHA256(), length, info).derive(secret)


def _keys(dcid: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, IV and header protection key of a client's Initial packets."""
    extract = HMAC(_SALT, SHA256())
    extract.update(dcid)
    secret = _expand(extract.finalize(), "client in", 32)
    return _expand(secret, "quic key", 16), _expand(secret, "quic iv", 12), _expand(secret, "quic hp", 16)


def _mask(key: bytes, sample: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(sample)


def _nonce(iv: bytes, number: int) -> bytes:
    return (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")


def _open(packet: bytes) -> tuple[bytes, bytes]:
    """Return the source connection ID and the frames of an Initial with an empty token."""
    dcid = packet[6 : 6 + packet[5]]
    at = 6 + len(dcid)
    scid = packet[at + 1 : at + 1 + packet[at]]
    at += 1 + len(scid)
    assert packet[at] == 0, "a first flight has no token"
    at += 1
    width = 1 << (packet[at] >> 6)  # a variable-length integer, RFC 9000 section 16
    length = int.from_bytes(packet[at : at + width], "big") & ((1 << (8 * width - 2)) - 1)
    at += width
    key, iv, protection = _keys(dcid)
    mask = _mask(protection, packet[at + 4 : at + 20])
    first = packet[0] ^ (mask[0] & 0x0F)
    size = (first & 3) + 1
    number = bytes(byte ^ mask[1 + place] for place, byte in enumerate(packet[at : at + size]))
    header = bytes([first]) + packet[1:at] + number
    sealed = packet[at + size : at + length]
    return scid, AESGCM(key).decrypt(_nonce(iv, int.from_bytes(number, "big")), sealed, header)


def _seal(dcid: bytes, scid: bytes, payload: bytes) -> bytes:
    head = _VERSION + bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid + b"\0"
    number = bytes(1)
    room = SIZE - 1 - len(head) - 2 - len(number) - _TAG
    payload = payload.rstrip(b"\0").ljust(room, b"\0")  # PADDING frames
    assert len(payload) == room, "the first flight does not fit"
    length = (0x4000 | (len(number) + room + _TAG)).to_bytes(2, "big")
    key, iv, protection = _keys(dcid)
    header = b"\xc0" + head + length + number
    sealed = AESGCM(key).encrypt(_nonce(iv, 0), payload, header)
    mask = _mask(protection, sealed[3:19])
    return bytes([0xC0 ^ (mask[0] & 0x0F)]) + head + length + bytes([number[0] ^ mask[1]]) + sealed
