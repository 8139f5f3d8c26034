"""rathole, with each of its transports that matter here."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import pkcs12

from bench.tunnels.base import Commands, Site, Transport, Tunnel
from bench.tunnels.store import build, locked, runs, store
from tests.interop.install import NotInstalled
from tests.support.certificates import Certificate, write_private
from tests.support.services import host_and_port

VERSION = "0.5.0"
PASSWORD = "password"
TOKEN = "token"

Tables = dict[str, dict[str, str]]


def program() -> Path:
    """Where the program is, or would be."""
    return store() / f"rathole-{VERSION}" / "bin" / "rathole"


class Rathole(Tunnel):
    """rathole over TLS, Noise or nothing."""

    transport: Transport = "tcp"

    def __init__(self, layer: Literal["tls", "noise", "plain"]) -> None:
        self.name = f"rathole {layer.upper() if layer == 'tls' else layer}"
        self.encrypted = layer != "plain"
        self._layer = layer

    def version(self) -> str:
        """Return the release."""
        return VERSION

    def unavailable(self) -> str | None:
        """The program is missing."""
        return None if runs([program(), "--version"]) else f"rathole {VERSION} is not installed"

    def install(self) -> None:
        """Build it with cargo and its default features.

        Not with the crate's own lock file: what that names no longer compiles with a current compiler. So its
        dependencies are the newest that fit.
        """
        if self.unavailable() is None:
            return
        cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
        if cargo is None:
            raise NotInstalled(f"rathole {VERSION} is not installed and there is no cargo to build it")
        with locked(), tempfile.TemporaryDirectory(prefix="rathole-") as target:
            if self.unavailable() is None:  # another process built it while this one waited
                return
            argv: list[str | Path] = [cargo, "install", "--root", program().parents[1], "--version", VERSION, "rathole"]
            build(f"rathole {VERSION}", argv, directory=Path(target), environment={"CARGO_TARGET_DIR": target})
        if self.unavailable() is not None:
            raise NotInstalled(f"rathole {VERSION} was built, but does not run here")

    def configure(self, site: Site) -> Commands:
        """Write one TOML file a side: a service for TCP and one for UDP."""
        server_transport, client_transport = self._transports(site)
        server: Tables = {"server": {"bind_addr": host_and_port(site.server)}, **server_transport}
        client: Tables = {"client": {"remote_addr": host_and_port(site.server)}, **client_transport}
        for kind in ("tcp", "udp"):
            service = {"type": kind, "token": TOKEN}
            server[f"server.services.{kind}"] = {**service, "bind_addr": host_and_port(site.public)}
            client[f"client.services.{kind}"] = {**service, "local_addr": host_and_port(site.place.service)}
        return Commands(
            server=[program(), "--server", _write(site.directory / "server.toml", server)],
            client=[program(), "--client", _write(site.directory / "client.toml", client)],
            environment={"RUST_LOG": "warn"},
        )

    def _transports(self, site: Site) -> tuple[Tables, Tables]:
        if self._layer == "tls":
            server = {"pkcs12": os.fspath(_identity(site)), "pkcs12_password": PASSWORD}
            client = {"trusted_root": os.fspath(site.certificate.trusted), "hostname": "localhost"}
        elif self._layer == "noise":
            key = x25519.X25519PrivateKey.generate()
            server = {"local_private_key": base64.b64encode(key.private_bytes_raw()).decode()}
            client = {"remote_public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode()}
        else:
            return {}, {}
        return (
            {"server.transport": {"type": self._layer}, f"server.transport.{self._layer}": server},
            {"client.transport": {"type": self._layer}, f"client.transport.{self._layer}": client},
        )


def _identity(site: Site) -> Path:
    """Write the server's key and certificate in the one form that rathole takes."""
    certificate: Certificate = site.certificate
    key = serialization.load_pem_private_key(certificate.private_key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    path = site.directory / "identity.pfx"
    write_private(
        path,
        pkcs12.serialize_key_and_certificates(
            b"localhost",
            key,
            x509.load_pem_x509_certificate(certificate.certificate.read_bytes()),
            None,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        ),
    )
    return path


def _write(path: Path, tables: Mapping[str, Mapping[str, str]]) -> Path:
    # A JSON string is a TOML string as well, for what is written here.
    lines = []
    for name, keys in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    write_private(path, "\n".join(lines).encode())
    return path
