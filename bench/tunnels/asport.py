"""asport-sync, and the reference implementation asport, which share their configuration's keys."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asport_sync import __version__
from bench.tunnels.base import Commands, Site, Transport, Tunnel
from tests.interop import install as reference
from tests.support.certificates import write_private
from tests.support.services import host_and_port


def _shared(site: Site) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of server and client that both implementations have in the same place, apart from TLS."""
    chosen = site.options.congestion_control
    common: dict[str, Any] = {} if chosen is None else {"congestion_control": chosen}
    user, password = str(uuid.uuid4()), "password"
    proxy = {
        "users": {user: password},
        "bind_ip": site.place.public_address,
        "allow_ports": site.public_port,
    }
    server = {"server": host_and_port(site.server), "proxies": [proxy], **common}
    client = {
        "server": host_and_port(site.server),
        "local": host_and_port(site.place.service),
        "uuid": user,
        "password": password,
        "udp_forward_mode": site.options.carrier,
        **common,
    }
    return server, client


def _tls(site: Site) -> tuple[dict[str, Any], dict[str, Any]]:
    certificate = site.certificate
    server = {"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)}
    client = {
        "server_name": "localhost",
        "certificates": {"paths": [str(certificate.trusted)], "disable_native": True},
    }
    return server, client


def _write(path: Path, keys: Mapping[str, Any]) -> Path:
    write_private(path, json.dumps(keys, indent=2).encode())
    return path


class AsportSync(Tunnel):
    """This project, as it is in the working tree.

    Args:
        relay: The key of that name, on both sides.
    """

    transport: Transport = "udp"

    def __init__(self, relay: str = "auto") -> None:
        self._relay = relay
        self.name = "asport-sync" if relay == "auto" else f"asport-sync {relay}"

    def version(self) -> str:
        """Return the version of the working tree."""
        return __version__

    def unavailable(self) -> str | None:
        """Never: the benchmark runs from the built tree."""
        return None

    def install(self) -> None:
        """Nothing to do."""

    def configure(self, site: Site) -> Commands:
        """Write one file a side, as JSON."""
        (server, client), (server_tls, client_tls) = _shared(site), _tls(site)
        keys = {} if self._relay == "auto" else {"relay": self._relay}
        server_file = _write(site.directory / "server.json", {**server, **server_tls, **keys})
        client_file = _write(site.directory / "client.json", {**client, **client_tls, **keys})
        command = [sys.executable, "-m", "asport_sync"]
        return Commands(
            server=[*command, "server", "run", "-c", server_file],
            client=[*command, "client", "run", "-c", client_file],
        )


class Asport(Tunnel):
    """The newest release of the reference implementation."""

    name = "asport"
    transport: Transport = "udp"
    release = "0.4.0"

    def version(self) -> str:
        """Return the release."""
        return self.release

    def unavailable(self) -> str | None:
        """Its programs are missing."""
        if reference.is_installed(self.release):
            return None
        return f"asport {self.release} is not installed"

    def install(self) -> None:
        """Build it with cargo, where the interop tests look for it as well."""
        reference.install(self.release)

    def configure(self, site: Site) -> Commands:
        """Write one file a side, with the TLS keys in a table of their own."""
        (server, client), (server_tls, client_tls) = _shared(site), _tls(site)
        server_file = _write(site.directory / "server.json", {**server, "security": {"type": "tls", "tls": server_tls}})
        client_file = _write(site.directory / "client.json", {**client, "security": {"type": "tls", "tls": client_tls}})
        return Commands(
            server=[reference.program(self.release, "asport-server"), "run", "-c", server_file],
            client=[reference.program(self.release, "asport-client"), "run", "-c", client_file],
        )
