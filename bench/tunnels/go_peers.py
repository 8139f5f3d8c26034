"""frp and chisel, built from the Go module in bench/peers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bench.tunnels.base import Commands, Site, Transport, Tunnel
from bench.tunnels.store import build, locked, runs, store
from tests.interop.install import NotInstalled
from tests.support.certificates import write_private
from tests.support.services import host_and_port

MODULE = Path(__file__).resolve().parents[1] / "peers"
PACKAGES = {
    "frps": "github.com/fatedier/frp/cmd/frps",
    "frpc": "github.com/fatedier/frp/cmd/frpc",
    "chisel": "github.com/jpillora/chisel",
}
TOKEN = "token"
# Where Go may be when it is not on the path.
USUAL_FOLDER = "/usr/local/go/bin"


def _folder() -> Path:
    """Where the programs of exactly these versions are, or would be."""
    state = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        state.update((MODULE / name).read_bytes())
    return store() / "go" / "programs" / state.hexdigest()[:16]


def program(name: str) -> Path:
    """Where a program is, or would be."""
    return _folder() / name


def release(package: str) -> str:
    """The version that go.mod names, as their builds outside a release don't know their own."""
    found = re.search(rf"^\s*{re.escape(package)} v(\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def _missing() -> str | None:
    absent = [name for name in PACKAGES if not runs([program(name), "--version"])]
    return f"{' and '.join(absent)} not installed" if absent else None


def _install() -> None:
    if _missing() is None:
        return
    go = shutil.which("go") or shutil.which("go", path=USUAL_FOLDER)
    if go is None:
        raise NotInstalled("not installed, and there is no Go to build it")
    root = store() / "go"
    with locked():
        if _missing() is None:  # another process built them while this one waited
            return
        folder = _folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder.parent) as unfinished:
            finished = Path(unfinished, "programs")
            finished.mkdir()
            build(
                "frp and chisel",
                [go, "build", "-o", f"{finished}/", *PACKAGES.values()],
                directory=MODULE,
                environment={
                    "GOMODCACHE": str(root / "modules"),
                    "GOCACHE": str(root / "build"),
                    # Without the first, the module cache could not be deleted by its owner.
                    "GOFLAGS": "-modcacherw -mod=readonly",
                    "GOWORK": "off",
                },
            )
            shutil.rmtree(folder, ignore_errors=True)
            finished.rename(folder)
    if (reason := _missing()) is not None:
        raise NotInstalled(f"built, but {reason}")


def _write(path: Path, keys: Mapping[str, Any]) -> Path:
    write_private(path, json.dumps(keys, indent=2).encode())
    return path


class GoTunnel(Tunnel):
    """A tunnel out of the Go module. ``module`` is its own module's path."""

    module: str

    def version(self) -> str:
        """Return the release."""
        return release(self.module)

    def unavailable(self) -> str | None:
        """The programs are missing."""
        return _missing()

    def install(self) -> None:
        """Build all Go programs."""
        _install()


class Frp(GoTunnel):
    """frp, its sides joined by TLS over TCP or by QUIC."""

    module = "github.com/fatedier/frp"

    def __init__(self, carrier: Literal["tls", "quic"]) -> None:
        self.name = f"frp {carrier.upper()}"
        self.transport: Transport = "udp" if carrier == "quic" else "tcp"

    def configure(self, site: Site) -> Commands:
        """Write one file a side, as JSON: a proxy for TCP and one for UDP."""
        host, port = site.server
        over_quic = self.transport == "udp"
        token = {"auth": {"method": "token", "token": TOKEN}, "log": {"level": "warn"}}
        server = {
            "bindAddr": host,
            "bindPort": port,
            **({"quicBindPort": port} if over_quic else {}),
            "proxyBindAddr": site.place.public_address,
            "transport": {
                "tls": {
                    "force": True,
                    "certFile": str(site.certificate.certificate),
                    "keyFile": str(site.certificate.private_key),
                }
            },
            **token,
        }
        local_host, local_port = site.place.service
        client = {
            "serverAddr": host,
            "serverPort": port,
            "transport": {
                "protocol": "quic" if over_quic else "tcp",
                "tls": {"trustedCaFile": str(site.certificate.trusted), "serverName": "localhost"},
            },
            "proxies": [
                {
                    "name": kind,
                    "type": kind,
                    "localIP": local_host,
                    "localPort": local_port,
                    "remotePort": site.public_port,
                }
                for kind in ("tcp", "udp")
            ],
            **token,
        }
        return Commands(
            server=[program("frps"), "-c", _write(site.directory / "server.json", server)],
            client=[program("frpc"), "-c", _write(site.directory / "client.json", client)],
        )


class Chisel(GoTunnel):
    """chisel: SSH over WebSocket over TLS."""

    name = "chisel"
    module = "github.com/jpillora/chisel"
    transport: Transport = "tcp"

    def configure(self, site: Site) -> Commands:
        """Everything is on the command lines."""
        host, port = site.server
        credentials = f"user:{TOKEN}"
        remote = f"R:{host_and_port(site.public)}:{host_and_port(site.place.service)}"
        return Commands(
            server=[
                *(program("chisel"), "server", "--host", host, "--port", str(port), "--reverse"),
                *("--auth", credentials),
                *("--tls-cert", site.certificate.certificate, "--tls-key", site.certificate.private_key),
            ],
            client=[
                *(program("chisel"), "client", "--auth", credentials),
                *("--tls-ca", site.certificate.trusted, "--sni", "localhost"),
                *(f"https://{host_and_port(site.server)}", remote, f"{remote}/udp"),
            ],
        )
