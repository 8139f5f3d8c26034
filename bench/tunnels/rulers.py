"""What the tunnels are compared with: no tunnel at all, and one QUIC connection with nothing around it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bench.tunnels.base import (
    Carrier,
    Commands,
    CongestionControl,
    Place,
    Running,
    Site,
    Transport,
    Tunnel,
    TunnelFailed,
    started,
    wait_bound,
)
from bench.tunnels.store import locked, store
from tests.interop.install import NotInstalled
from tests.support.certificates import self_signed
from tests.support.ports import free_port
from vendor import apt
from vendor.cache import publish, scratch
from vendor.distribution import detect
from vendor.steps import Refused, StepFailed, run

# Seconds one download may take.
DOWNLOAD_TIMEOUT = 120.0
# After which the client gives up a server that is silent.
IDLE_TIMEOUT = "10s"
# Seconds to fetch the packages and what they need, about 2 MB.
FETCH_TIMEOUT = 300.0
# For accounts whose path lacks the administrator's folders.
ADMINISTRATOR_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])


class Direct(Tunnel):
    """No tunnel: the public address is the service's."""

    name = "direct"
    encrypted = False
    transport: Transport = "tcp"

    def version(self) -> str:
        """Return nothing: it has none."""
        return ""

    def unavailable(self) -> str | None:
        """Never."""
        return None

    def install(self) -> None:
        """Nothing to do."""

    def configure(self, site: Site) -> Commands:
        """Never called, as nothing is started."""
        raise NotImplementedError

    @contextlib.contextmanager
    def open(
        self, place: Place, *, carrier: Carrier = "native", congestion_control: CongestionControl | None = None
    ) -> Iterator[Running]:
        """Start nothing. The options say nothing here."""
        yield Running(place.service, place.service, (), (0.0, 0.0))


class GtlsServer:
    """A server that runs; :meth:`Gtls.open` makes it."""

    def __init__(self, programs: _Programs, directory: Path, port: int, pid: int) -> None:
        self.pid = pid
        self._programs = programs
        self._directory = directory
        self._port = port

    def download(self, size: int) -> float:
        """Download that many bytes on one stream of a new connection; return the seconds, handshake included.

        The client drops what arrives and ends with status 0 whatever happened, so it is the loopback interface that
        must have carried as much.

        Raises:
            TunnelFailed: It has not, or the client failed.
        """
        file = self._directory / str(size)
        if not file.exists():
            with file.open("wb") as empty:
                empty.truncate(size)
            # The first download of a file pays for bringing it into the server's memory.
            self.download(size)
        argv = [
            *(self._programs.client, "-q", "--no-quic-dump", "--no-http-dump", "--exit-on-all-streams-close"),
            f"--timeout={IDLE_TIMEOUT}",
            *("127.0.0.1", str(self._port), f"https://localhost:{self._port}/{file.name}"),
        ]
        carried = _loopback_bytes()
        began = time.monotonic()
        try:
            subprocess.run(
                argv,
                env={**os.environ, **self._programs.environment},
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=DOWNLOAD_TIMEOUT,
            )
        except subprocess.SubprocessError as error:
            raise TunnelFailed(f"gtlsclient: {error}") from error
        seconds = time.monotonic() - began
        if _loopback_bytes() - carried < size:
            raise TunnelFailed("gtlsclient ended without all that it was to download")
        return seconds


def _loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


class _Programs:
    """The two programs, and what their environment needs."""

    def __init__(self, server: str, client: str, environment: Mapping[str, str]) -> None:
        self.server = server
        self.client = client
        self.environment = environment


class Gtls:
    """The example server and client of ngtcp2 with GnuTLS, as the distribution packages them."""

    name = "gtls"

    def version(self) -> str:
        """Return the version of the packages, or "of the system" where the machine had them."""
        programs = _programs()
        return "of the system" if programs is None or not programs.environment else _version_file().read_text().strip()

    def unavailable(self) -> str | None:
        """The programs are missing."""
        return "gtlsserver and gtlsclient are not installed" if _programs() is None else None

    def install(self) -> None:
        """Unpack the packages into the store: installing them would start a server of its own on the machine.

        Raises:
            NotInstalled: There is no apt, or it has not got them.
        """
        if self.unavailable() is None:
            return
        try:
            with locked():
                if self.unavailable() is not None:  # no other process fetched them while this one waited
                    _fetch()
        except (StepFailed, Refused, OSError) as error:
            raise NotInstalled(f"ngtcp2-server and ngtcp2-client could not be fetched: {error}") from error
        if self.unavailable() is not None:
            raise NotInstalled("ngtcp2-server and ngtcp2-client were fetched, but do not hold the programs")

    @contextlib.contextmanager
    def open(self, directory: Path) -> Iterator[GtlsServer]:
        """Start a server on loopback, and end it with the block.

        Args:
            directory: An empty folder.
        """
        programs = _programs()
        assert programs is not None, self.unavailable()
        certificate = self_signed(directory)
        files = directory / "files"
        files.mkdir()
        port = free_port()
        argv = [
            *(programs.server, "-q", "-d", str(files), "127.0.0.1", str(port)),
            *(str(certificate.private_key), str(certificate.certificate)),
        ]
        with started(argv, "gtlsserver", programs.environment) as process:
            wait_bound(process, "udp", port)
            yield GtlsServer(programs, files, port, process.pid)


def _place() -> Path:
    return store() / "gtls"


def _version_file() -> Path:
    return _place() / "version"


def _programs() -> _Programs | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), ADMINISTRATOR_PATH])
    server, client = shutil.which("gtlsserver", path=path), shutil.which("gtlsclient", path=path)
    if server is not None and client is not None:
        return _Programs(server, client, {})
    servers, clients = sorted(_place().rglob("gtlsserver")), sorted(_place().rglob("gtlsclient"))
    if not servers or not clients:
        return None
    libraries = sorted({str(file.parent) for file in _place().rglob("*.so.*")})
    return _Programs(str(servers[0]), str(clients[0]), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})


def _fetch() -> None:
    """Fetch both packages with the libraries they need that this machine lacks, and unpack all of them."""
    distribution = detect()
    source, names = apt.find_archive(distribution)
    source = apt.with_suite(source, names, distribution.codename, source.components)
    newer = names.newer_suite
    if newer:
        source = replace(source, suites=(distribution.codename, newer))
    with scratch(store()) as folder, apt.private(folder / "apt", source) as private:
        private.run(
            [
                *("install", "--download-only", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=1"),
                *(("--target-release", newer) if newer else ()),
                *("ngtcp2-server", "ngtcp2-client"),
            ],
            timeout=FETCH_TIMEOUT,
        )
        finished = folder / "finished"
        finished.mkdir()
        for package in sorted((folder / "apt" / "cache" / "archives").glob("*.deb")):
            run(["dpkg-deb", "--extract", str(package), str(finished)])
            if package.name.startswith("ngtcp2-client_"):
                version = run(["dpkg-deb", "--field", str(package), "Version"])
                (finished / "version").write_text(version)
        publish(finished, _place())
