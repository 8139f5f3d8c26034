"""The types of nested options: what ``asport_sync.Client`` and ``asport_sync.Server`` accept in place of tables.

For type checkers and editors; the reader validates the values. The same for all threads.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from asport_sync.config.values import DialectName, Network, PortSet


# written by python -m tests.config.signatures --write
class PortRangeOptions(TypedDict):
    """A range of ports.

    Attributes:
        start: The first port.
        end: The last port, not below ``start``.
    """

    start: int
    end: int


class CertificatesOptions(TypedDict, total=False):
    """The option ``certificates``.

    Attributes:
        paths: Files with trusted certificates, PEM or DER: those of a certificate authority, or the server's own if it
            is self-signed. The files must exist.
        pem: Trusted certificates as PEM text, in addition to those of ``paths``.
        pins: SHA-256 hashes of public keys, as ``asport-sync pin`` prints them. The server's own certificate must have
            one of these keys, in addition to all other verification, and also with ``skip_certificate_verification``.
        disable_native: Whether to ignore the system's certificate authorities, and to trust only ``paths`` and ``pem``.
    """

    paths: Sequence[str | os.PathLike[str]]
    pem: str
    pins: list[str] | tuple[str, ...]
    disable_native: bool


class UserOptions(TypedDict, total=False):
    """A user in the option ``users`` of an entry of ``proxies``.

    Attributes:
        password: The user's password. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        dialect: Dialect of the protocol that this user's clients speak; ``auto``: identified by the mode byte if
            possible. If not given, that of the entry of ``proxies`` applies.
        max_clients: Maximum clients of this user at the same time. If not given, that of the entry of ``proxies``
            applies.
    """

    password: str
    password_file: str | os.PathLike[str]
    dialect: DialectName
    max_clients: int | str


class _ProxyOptions(TypedDict):
    users: Mapping[Any, str | UserOptions]


class ProxyOptions(_ProxyOptions, total=False):
    """An entry of the option ``proxies``.

    Attributes:
        users: The users by their UUID: the password, or a table with the keys of a user.
        bind_ip: Address of the public sockets. ``::`` includes IPv4, and becomes ``0.0.0.0`` if the host has no IPv6.
        allow_ports: Public ports that these users may open. Default: the system's ephemeral ports.
        only_v6: Whether public sockets on an IPv6 ``bind_ip`` accept IPv6 only. If not given, the system's default
            applies.
        allow_network: The networks for which these users may open ports.
        dialect: Dialect of the protocol that these users' clients speak; ``auto``: identified by the mode byte if
            possible. If not given, the server's ``dialect`` applies.
        max_clients: Maximum clients of each of these users at the same time.
    """

    bind_ip: str | ipaddress.IPv4Address | ipaddress.IPv6Address
    allow_ports: int | PortRangeOptions | PortSet | list[int | tuple[int, int] | list[int] | PortRangeOptions]
    only_v6: bool
    allow_network: Network | Sequence[Network]
    dialect: DialectName
    max_clients: int | str


# end of what python -m tests.config.signatures has written
