"""Keys of stateless reset tokens (RFC 9000 section 10.3)."""

from __future__ import annotations

from asport_sync.engine import SocketAddress, derive_key
from asport_sync.hidden import HiddenBytes
from asport_sync.runtime import sockets


def stateless_reset_key(private_key: bytes, machine: bytes, address: SocketAddress) -> bytes:
    """Returns the 32-byte key of stateless reset tokens (RFC 9000 section 10.3), derived by HKDF (RFC 5869).

    It stays the same after a restart without being stored in a file, so that the previous server's clients learn at
    once that their connections are gone. No two servers that run at the same time have the same key: each would answer
    packets of the other's connections with a token that ends them (section 21.11).

    Args:
        private_key: The server's; several servers may have the same one.
        machine: Identifies this machine.
        address: The address that the QUIC socket is bound to.
    """
    info = HiddenBytes(b"stateless reset\0%s\0%s" % (machine, sockets.text(address).encode()))
    return derive_key(private_key, salt=b"asport-sync", info=info)


def shared_reset_key(secret: bytes) -> bytes:
    """Returns the key for servers that are meant to end each other's connections, derived from a secret they share."""
    return derive_key(secret, salt=b"asport-sync", info=b"shared stateless reset")
