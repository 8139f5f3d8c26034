"""The ASPORT wire format: commands, their encoding, and the rules for them. No I/O, no threads, no clock.

Bytes from outside raise only RemoteProtocolError; an impossible request of this side raises LocalProtocolError. Names
that are unclear without their module are accessed through it: ``proxy_header.tcp_header``, ``token.label``.
"""

from asport_sync.wire import proxy_header, token
from asport_sync.wire.codec import decode, encode
from asport_sync.wire.commands import (
    TOKEN_LENGTH,
    VERSION,
    Address,
    AddressFamily,
    ClientHello,
    Command,
    CommandType,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHello,
    ServerHelloCode,
)
from asport_sync.wire.dialect import (
    Dialect,
    ForwardMode,
    Meaning,
    UdpMode,
    decode_mode,
    dialect_of_hint,
    encode_mode,
    hint,
    meanings,
)
from asport_sync.wire.handshake import ClientHandshake, ClientState, ServerHandshake, ServerState

__all__ = [
    "TOKEN_LENGTH",
    "VERSION",
    "Address",
    "AddressFamily",
    "ClientHandshake",
    "ClientHello",
    "ClientState",
    "Command",
    "CommandType",
    "Connect",
    "Dialect",
    "Dissociate",
    "ForwardMode",
    "Heartbeat",
    "Meaning",
    "Packet",
    "ServerHandshake",
    "ServerHello",
    "ServerHelloCode",
    "ServerState",
    "UdpMode",
    "decode",
    "decode_mode",
    "dialect_of_hint",
    "encode",
    "encode_mode",
    "hint",
    "meanings",
    "proxy_header",
    "token",
]
