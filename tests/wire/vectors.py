"""Known commands and their bytes, worked out by hand from the layout in the draft."""

from __future__ import annotations

from uuid import UUID

from asport_sync.wire import (
    Address,
    ClientHello,
    Command,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHello,
    ServerHelloCode,
)

USER = UUID("00112233-4455-6677-8899-aabbccddeeff")
TOKEN = bytes(range(32))

PEER_IPV4 = Address.from_text("203.0.113.7", 54321)
PEER_MAPPED = Address.from_text("::ffff:203.0.113.7", 54321)
RESOLVER = Address.from_text("192.0.2.1", 53)

_HELLO_START = "000000112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

COMMANDS: dict[str, tuple[Command, str]] = {
    "V1 ClientHello mode 3": (ClientHello(USER, TOKEN, 3, 1, 65535), _HELLO_START + "030001ffff"),
    "V2 ClientHello mode 7": (ClientHello(USER, TOKEN, 7, 2024, 2024), _HELLO_START + "0707e807e8"),
    "V3a ServerHello success": (ServerHello(ServerHelloCode.SUCCESS, 2024), "00010007e8"),
    "V3b ServerHello authentication failed": (ServerHello(ServerHelloCode.AUTH_FAILED), "000101"),
    "V3c ServerHello bind failed": (ServerHello(ServerHelloCode.BIND_FAILED), "000102"),
    "V3d ServerHello port denied": (ServerHello(ServerHelloCode.PORT_DENIED), "000103"),
    "V3e ServerHello network denied": (ServerHello(ServerHelloCode.NETWORK_DENIED), "000104"),
    "V4a Connect IPv4": (Connect(PEER_IPV4), "000201cb007107d431"),
    "V4b Connect IPv4-mapped": (Connect(PEER_MAPPED), "00020400000000000000000000ffffcb007107d431"),
    "V4c Connect IPv6": (
        Connect(Address.from_text("2001:db8::1", 443)),
        "00020420010db800000000000000000000000101bb",
    ),
    "V4d Connect without address": (Connect(None), "0002ff"),
    "V5 Packet whole": (
        Packet(1, 0, 1, 0, Address.from_text("::ffff:198.51.100.9", 5353), b"hello"),
        "000300010000010000050400000000000000000000ffffc633640914e968656c6c6f",
    ),
    "V6a Packet fragment 0 of 3": (
        Packet(0x0102, 0xFFFE, 3, 0, RESOLVER, b"AAAA"),
        "00030102fffe0300000401c0000201003541414141",
    ),
    "V6b Packet fragment 1 of 3": (Packet(0x0102, 0xFFFE, 3, 1, None, b"BBBB"), "00030102fffe03010004ff42424242"),
    "V6c Packet fragment 2 of 3": (Packet(0x0102, 0xFFFE, 3, 2, None, b"C"), "00030102fffe03020001ff43"),
    "V7 Packet empty": (Packet(7, 1, 1, 0, RESOLVER, b""), "0003000700010100000001c00002010035"),
    "V8 Dissociate": (Dissociate(0x0102), "00040102"),
    "V9 Heartbeat": (Heartbeat(), "0005"),
}
