"""Hosts with ports, IP addresses, and the addresses of local services."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from asport_sync.config.bad_value import BadValue, each, shown
from asport_sync.config.ports import HIGHEST_PORT, LOWEST_PORT
from asport_sync.config.values import integer, text

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
UNIX_PREFIX: Final = "unix:"
LONGEST_UNIX_PATH: Final = 107
"""Bytes: ``sun_path`` of ``struct sockaddr_un`` has 108, one of which is the NUL after a path or before an abstract
name."""
_LOCAL_FORMS: Final = 'expected "host:port", a port, "unix:/path", or a list of hosts or ports'


class HostPort(NamedTuple):
    """A host and a port.

    Attributes:
        host: A DNS name in its ASCII form, or an IP address without brackets.
        port: 0 only if a server may let the system choose.
    """

    host: str
    port: int

    @property
    def ip(self) -> IPAddress | None:
        """The host as an IP address, or None if it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixSocket(NamedTuple):
    """The address of a unix stream socket.

    Attributes:
        path: Its path, or ``@`` and the name of an abstract socket.
    """

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


LocalAddress = HostPort | UnixSocket
"""An address of a local service."""


@dataclass(frozen=True, slots=True)
class LocalTargets:
    """Where a local service is.

    Attributes:
        addresses: One unix socket, or one or more hosts with a port in the order in which they are tried. Never empty.
    """

    addresses: tuple[LocalAddress, ...]

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket, which carries no UDP."""
        return isinstance(self.addresses[0], UnixSocket)

    @property
    def host(self) -> str:
        """The first host. Raises AttributeError for a unix socket."""
        return self._first.host

    @property
    def port(self) -> int:
        """The port of the first host. Raises AttributeError for a unix socket."""
        return self._first.port

    @property
    def _first(self) -> HostPort:
        first = self.addresses[0]
        if isinstance(first, UnixSocket):
            raise AttributeError("a unix socket has neither host nor port")
        return first

    def __str__(self) -> str:
        parts: list[LocalAddress] = []
        rest = list(self.addresses)
        while rest:
            part = rest.pop(0)
            if rest and isinstance(part, HostPort) and (part, rest[0]) == _on_loopback(part.port):
                rest.pop(0)
                part = HostPort("localhost", part.port)
            parts.append(part)
        return ", ".join(map(str, parts))


def _on_loopback(port: int) -> tuple[HostPort, HostPort]:
    """Returns where a service listens that is known only by its port: without a look-up of ``localhost``."""
    return HostPort("127.0.0.1", port), HostPort("::1", port)


def ip(value: object) -> IPAddress:
    """Returns an IP address; an IPv6 address may be in brackets."""
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return value
    literal = text(value)
    try:
        if literal.startswith("[") and literal.endswith("]"):
            return ipaddress.IPv6Address(literal[1:-1])
        return ipaddress.ip_address(literal)
    except ValueError:
        raise BadValue(f'expected an IP address, such as "::" or "192.0.2.1", not {shown(value)}') from None


def host(value: object) -> str:
    """Returns a host: an IP address in canonical form without brackets, or a DNS name in its ASCII form."""
    raw = text(value)
    if "://" in raw:
        raise BadValue(f"expected a name or an IP address, not the URL {shown(raw)}")
    if ":" in raw or raw.startswith("["):
        try:
            return str(ipaddress.IPv6Address(raw[1:-1] if raw.startswith("[") and raw.endswith("]") else raw))
        except ValueError:
            raise BadValue(f"{shown(raw)} is not an IPv6 address") from None
    try:
        return str(ipaddress.IPv4Address(raw))
    except ValueError:
        pass
    name = raw
    if not raw.isascii() and len(raw) <= 253:
        try:
            name = raw.encode("idna").decode("ascii")
        except UnicodeError:
            raise BadValue(f"{shown(raw)} is not a DNS name") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > 254 or not all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}", label, re.ASCII) for label in labels):
        raise BadValue(f"{shown(raw)} is neither a DNS name nor an IP address")
    if labels[-1].isdigit():
        raise BadValue(f"{shown(raw)} is not an IPv4 address, and no DNS name ends in a number")
    return name


def host_port(value: object) -> HostPort:
    """Returns host and port from "host:port", split at the last colon, or from a pair given by a program."""
    parsed = _split_port(value)
    if parsed.port < LOWEST_PORT:
        raise BadValue("port 0 cannot be connected to")
    return parsed


def local(value: object, directory: Path | None = None) -> LocalTargets:
    """Returns where a local service is.

    Args:
        value: "host:port" or a pair given by a program; a port: both loopback addresses; a list of these; or
            "unix:PATH", "unix:@NAME" for an abstract socket.
        directory: Relative paths start here; None leaves them relative to the working directory.
    """
    if isinstance(value, LocalTargets):
        return value
    if isinstance(value, str) and value.startswith(UNIX_PREFIX):
        return LocalTargets((_unix_socket(value[len(UNIX_PREFIX) :], directory),))
    if not isinstance(value, list):
        return LocalTargets(_local_hosts(value))
    if not value:
        raise BadValue(f"{_LOCAL_FORMS}, not an empty list")
    found = dict.fromkeys(address for addresses in each(value, _local_hosts) for address in addresses)
    return LocalTargets(tuple(found))


def _local_hosts(value: object) -> tuple[HostPort, ...]:
    if isinstance(value, str) and value.startswith(UNIX_PREFIX):
        raise BadValue("a unix socket cannot be one of several addresses")
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal()):
        return _on_loopback(integer(value, LOWEST_PORT, HIGHEST_PORT))
    if not isinstance(value, (str, tuple)):
        raise BadValue(f"{_LOCAL_FORMS}, not {shown(value)}")
    return (host_port(value),)


def _unix_socket(path: str, directory: Path | None) -> UnixSocket:
    path = text(path)
    if path in ("", "@") or "\0" in path:
        raise BadValue(f'expected the path of a socket after {UNIX_PREFIX}, or "@" and the name of an abstract socket')
    if not path.startswith("@") and directory is not None:
        path = str(directory / path)
    length = len(os.fsencode(path))
    if length > LONGEST_UNIX_PATH:
        what = "name of an abstract socket" if path.startswith("@") else "path of a socket"
        raise BadValue(f"the {what} has at most {LONGEST_UNIX_PATH} bytes on this system, not {length}: {shown(path)}")
    return UnixSocket(path)


def ip_port(value: object) -> HostPort:
    """Returns address and port from "ip:port"; the host must be an IP address, the port may be 0."""
    parsed = _split_port(value)
    if parsed.ip is None:
        raise BadValue(f'expected an IP address and a port, such as "[::]:443": "{parsed.host}" is a name')
    return parsed


def _split_port(value: object) -> HostPort:
    expected = 'expected "host:port", such as "example.org:443" or "[2001:db8::1]:443"'
    if isinstance(value, tuple) and len(value) == 2:
        return HostPort(host(value[0]), integer(value[1], 0, HIGHEST_PORT))
    if not isinstance(value, str):
        raise BadValue(f"{expected}, not {shown(value)}")
    name, _, port = value.rpartition(":")
    if not name:
        raise BadValue(f"{expected}, not {shown(value)}")
    if "://" in value:
        raise BadValue(f"{expected}, not the URL {shown(value)}")
    try:
        parsed = host(name)
    except BadValue:
        if value.endswith("]") or HostPort(value, 0).ip is not None:
            raise BadValue(f"{expected}, not {shown(value)}: the port is missing") from None
        raise
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > HIGHEST_PORT:
        raise BadValue(f"{expected}: {shown(port)} is not a port from {LOWEST_PORT} to {HIGHEST_PORT}")
    return HostPort(parsed, int(port))
