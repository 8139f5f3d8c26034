"""Values that are one of a few words, such as networks and dialects: the words, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

from asport_sync.config.bad_value import BadValue, each, shown
from asport_sync.config.values import text

T = TypeVar("T")

Network = Literal["tcp", "udp", "both"]
UdpForwardMode = Literal["native", "quic"]
CongestionControl = Literal["cubic", "new_reno", "bbr"]
ProxyProtocol = Literal["none", "v1", "v2"]
Relay = Literal["auto", "engine", "workers"]
LogFormat = Literal["text", "json"]
BalanceName = Literal["round_robin", "least_connections"]
Ready = Literal["started", "public"]
LogLevel = Literal["off", "error", "warn", "info", "debug", "trace"]
FixedDialectName = Literal["draft", "flags"]
"""Meaning of the mode byte in ClientHello: the draft's enumeration, or the bit mask of later releases."""
DialectName = Literal["draft", "flags", "auto"]
AmbiguousDialectName = Literal["both", "draft", "flags"]
"""How "auto" interprets a mode byte whose meaning depends on the dialect."""

NETWORKS: Final[Mapping[str, Network]] = {
    "tcp": "tcp",
    "udp": "udp",
    "both": "both",
    "tcpudp": "both",
    "tcp_udp": "both",
    "tcp-udp": "both",
    "all": "both",
}
UDP_FORWARD_MODES: Final[Mapping[str, UdpForwardMode]] = {"native": "native", "quic": "quic"}
RELAYS: Final[Mapping[str, Relay]] = {"auto": "auto", "engine": "engine", "workers": "workers"}
CONGESTION_CONTROLS: Final[Mapping[str, CongestionControl]] = {
    "bbr": "bbr",
    "cubic": "cubic",
    "new_reno": "new_reno",
    "newreno": "new_reno",
    "reno": "new_reno",
}
PROXY_PROTOCOLS: Final[Mapping[str, ProxyProtocol]] = {
    "none": "none",
    "v1": "v1",
    "v2": "v2",
    "disable": "none",
    "disabled": "none",
    "off": "none",
}
LOG_FORMATS: Final[Mapping[str, LogFormat]] = {"text": "text", "json": "json"}
READY: Final[Mapping[str, Ready]] = {"started": "started", "public": "public"}
LOG_LEVELS: Final[Mapping[str, LogLevel]] = {
    "off": "off",
    "error": "error",
    "warn": "warn",
    "info": "info",
    "debug": "debug",
    "trace": "trace",
}
BALANCES: Final[Mapping[str, BalanceName]] = {"round_robin": "round_robin", "least_connections": "least_connections"}
FIXED_DIALECTS: Final[Mapping[str, FixedDialectName]] = {"draft": "draft", "flags": "flags"}
DIALECTS: Final[Mapping[str, DialectName]] = {"auto": "auto", "draft": "draft", "flags": "flags"}
AMBIGUOUS_DIALECTS: Final[Mapping[str, AmbiguousDialectName]] = {"both": "both", "draft": "draft", "flags": "flags"}


def choice(value: object, choices: Mapping[str, T]) -> T:
    """Returns the meaning of a word, in any case.

    Args:
        value: The word.
        choices: Every accepted word, in lower case, and its meaning. Errors list only words that are their own meaning.
    """
    if isinstance(value, (str, bool, int)):
        word = text(value)
        if word.lower() in choices:
            return choices[word.lower()]
    names = ", ".join(word for word, meaning in choices.items() if word == meaning)
    raise BadValue(f"expected one of {names}, not {shown(value)}")


def words(choices: Mapping[str, object]) -> str:
    """Returns the words that :func:`choice` accepts, as Markdown: those that are their own meaning, then the others."""
    names = ", ".join(f"`{word}`" for word, meaning in choices.items() if word == meaning)
    others = ", ".join(f"`{word}`" for word, meaning in choices.items() if word != meaning)
    return f"{names} (also {others})" if others else names


def networks(value: object) -> Network:
    """Returns a network from its name, or the union of a list of names."""
    if not isinstance(value, (list, tuple)):
        return choice(value, NETWORKS)
    if not value:
        raise BadValue('expected "tcp", "udp", "both" or a list of them, not an empty list')
    found = set(each(value, lambda name: choice(name, NETWORKS)))
    return found.pop() if len(found) == 1 else "both"


def client_dialect(value: object) -> FixedDialectName:
    """Returns the dialect of a client. A client cannot learn its server's, so "auto" is rejected."""
    if choice(value, DIALECTS) == "auto":
        raise BadValue('a client cannot detect the dialect of its server: write "draft" or "flags", not "auto"')
    return choice(value, FIXED_DIALECTS)
