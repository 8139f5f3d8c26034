"""The reference of all configuration keys, from the model: ``python -m tests.config.reference [--write-docs]``.

Descriptions are those of the docstrings in asport_sync/config, everything else is in the fields and their
metadata. Prints the reference, or puts it into docs/configuration.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from asport_sync.config import (
    CertificatesConfig,
    ClientConfig,
    HealthConfig,
    LimitsConfig,
    PortRange,
    ProxyConfig,
    ServerConfig,
    StatusConfig,
    TlsClientConfig,
    TlsServerConfig,
    TunnelConfig,
    UserConfig,
    VisitorsConfig,
)
from asport_sync.config.common import ConnectionConfig, HostConfig
from asport_sync.config.reader import FIRST_RELEASE, Key
from asport_sync.config.structure import meaning, own_fields, written
from asport_sync.config.tls import TlsConfig
from tests.support.generated import Outputs, run
from tests.support.page import Place

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
PLACE = Place("tests.config.reference", PAGE)


class Section(NamedTuple):
    """One table of the page.

    Attributes:
        title: Its heading.
        cls: The class whose own keys it has, without the inherited ones.
        parameters: Where these keys are in the library, as Markdown.
    """

    title: str
    cls: type
    parameters: str


CLIENT, SERVER = "`asport_sync.Client`", "`asport_sync.Server`"
IN_TUNNELS = "in a dict of the parameter `tunnels` of the client"
IN_PROXIES = "in a dict of the parameter `proxies` of the server and in a dict of its `users`"
SECTIONS = [
    Section("Client and server", HostConfig, f"Parameters of {CLIENT} and {SERVER}."),
    Section(
        "Client and server: connections", ConnectionConfig, f"Parameters of {CLIENT} and {SERVER}, and {IN_TUNNELS}."
    ),
    Section("Client and server: TLS", TlsConfig, f"Parameters of {CLIENT} and {SERVER}, and {IN_TUNNELS}."),
    Section(
        "Client and server: the table status",
        StatusConfig,
        f"In the parameter `status` of {CLIENT} and {SERVER}, a dict.",
    ),
    Section(
        "Visitors: a tunnel, an entry of proxies, a user",
        VisitorsConfig,
        f"Parameters of {CLIENT}, {IN_TUNNELS}, {IN_PROXIES}.",
    ),
    Section(
        "Limits: a tunnel, the server, an entry of proxies, a user",
        LimitsConfig,
        f"Parameters of {CLIENT} and {SERVER}, {IN_TUNNELS}, {IN_PROXIES}.",
    ),
    Section("Client", ClientConfig, f"Parameters of {CLIENT}."),
    Section("Client: a tunnel", TunnelConfig, f"Parameters of {CLIENT}, and {IN_TUNNELS}."),
    Section("Client: TLS", TlsClientConfig, f"Parameters of {CLIENT}, and {IN_TUNNELS}."),
    Section(
        "Client: the table certificates", CertificatesConfig, f"In the parameter `certificates` of {CLIENT}, a dict."
    ),
    Section("Client: the table health", HealthConfig, f"In the parameter `health` of {CLIENT}, a dict."),
    Section("Server", ServerConfig, f"Parameters of {SERVER}."),
    Section("Server: TLS", TlsServerConfig, f"Parameters of {SERVER}."),
    Section("Server: an entry of proxies", ProxyConfig, f"In the parameter `proxies` of {SERVER}, a list of dicts."),
    Section(
        "Server: a user in the table users",
        UserConfig,
        f"In `users` of a dict in the parameter `proxies` of {SERVER}: passwords, or dicts with these keys.",
    ),
    Section(
        "A range of ports",
        PortRange,
        f"In the parameter `expected_port_range` of {CLIENT}, and in `allow_ports` of a dict in the parameter "
        f"`proxies` of {SERVER}.",
    ),
]

# Fields of the model that are no key of their table: whose keys have tables of their own, or are elsewhere; or that
# name the table.
NO_KEYS = {
    (ClientConfig, "defaults"),
    (TunnelConfig, "name"),
    (TunnelConfig, "tls"),
    (ServerConfig, "tls"),
    (UserConfig, "uuid"),
}


class Row(NamedTuple):
    """One key, as Markdown. The fields are the columns of the tables."""

    key: str
    values: str
    default: str
    since: str
    meaning: str


def default(field: dataclasses.Field[Any], found: Key) -> str:
    """The default of a key as Markdown."""
    if found.default:
        return found.default
    if field.default is not dataclasses.MISSING:
        return written(field.default, found.accepts)
    return "required" if field.default_factory is dataclasses.MISSING else "not set"


def rows(cls: type) -> Iterator[Row]:
    """The keys of a class, in its order."""
    if cls is PortRange:
        for name in own_fields(cls):
            yield Row(f"`{name}`", "port, `1` to `65535`", "required", FIRST_RELEASE, meaning(cls, name))
        return
    for field in dataclasses.fields(cls):
        found = field.metadata.get("key")
        if field.name in own_fields(cls) and isinstance(found, Key):
            names = ", ".join(f"`{name}`" for name in (field.name, *found.aliases))
            yield Row(names, found.accepts, default(field, found), found.since, meaning(cls, field.name))


def reference() -> str:
    """All tables."""
    lines = []
    for section in SECTIONS:
        lines += [f"## {section.title}", "", section.parameters, ""]
        lines += [f"| {' | '.join(Row._fields)} |", "| --- " * len(Row._fields) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(section.cls)]
        lines.append("")
    return "\n".join(lines).rstrip()


OUTPUTS: Outputs = {PLACE: reference}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
