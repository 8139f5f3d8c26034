"""Trust on first use: the file with the pins of servers that this user has connected to before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from asport_sync.config import HostPort, loose_permissions, written_pin
from asport_sync.config.bad_value import BadValue
from asport_sync.config.hosts import host_port
from asport_sync.config.pins import pins
from asport_sync.engine import certificate_pin
from asport_sync.errors import CertificateError, EngineError
from asport_sync.runtime import files

FILE_NAME: Final = "known_servers"

_HEAD: Final = b"# Servers that clients with trust_on_first_use have connected to: HOST:PORT and the pin of the key.\n"


def default_path() -> Path:
    """Returns the file of this user: in ``$XDG_STATE_HOME``, or else ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "asport-sync" / FILE_NAME


class KnownServers:
    """The file. Any thread, and any number of processes at the same time; every method may block.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, server: HostPort, chain: bytes) -> str | None:
        """Compares the key of a server with the known one, or adds the server to the file.

        Args:
            server: Host and port as configured.
            chain: The certificates that it has sent, as DER one after the other.

        Returns:
            The pin, if the server was added; None: it was known, and has the same key.

        Raises:
            CertificateError: The key is another one than the known one, or the file is not usable.
        """
        try:
            pin = certificate_pin(_first(chain))
        except EngineError as problem:
            raise CertificateError(f"the server's certificate cannot be read: {problem}") from None
        try:
            self._create()
            with files.locked(self._path) as file:
                loose = loose_permissions(self._path, secret=False)
                if loose is not None:
                    raise CertificateError(f"the server's key cannot be verified: {loose}")
                known = self._known(file.content)
                lines = known.get((server.host.lower(), server.port))
                if lines is None:
                    end = b"" if file.content.endswith(b"\n") or not file.content else b"\n"
                    file.replace(file.content + end + f"{server} {written_pin(pin)}\n".encode())
                    return written_pin(pin)
        except OSError as problem:
            if isinstance(problem, CertificateError):
                raise
            raise CertificateError(
                f"the server's key cannot be verified: {self._path}: {problem.strerror or problem}"
            ) from None
        if pin not in lines.values():
            raise self._changed(server, pin, lines)
        return None

    def is_known(self, server: HostPort, chain: bytes) -> bool:
        """Compares the key of a server with the known one, as ``check``, but adds nothing.

        Raises:
            CertificateError: The key is another one than the known one, or the file is not usable.
        """
        pin = certificate_pin(_first(chain))
        try:
            lines = self._known(self._path.read_bytes()).get((server.host.lower(), server.port))
        except FileNotFoundError:
            return False
        except OSError as problem:
            if isinstance(problem, CertificateError):
                raise
            raise CertificateError(
                f"the server's key cannot be verified: {self._path}: {problem.strerror or problem}"
            ) from None
        if lines is not None and pin not in lines.values():
            raise self._changed(server, pin, lines)
        return lines is not None

    def _create(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            files.create(self._path, _HEAD)

    def _known(self, content: bytes) -> dict[tuple[str, int], dict[int, bytes]]:
        """Returns the pins of each server, by number of their line.

        A line that cannot be read is an error: it may be the one with the key that the server should have.
        """
        known: dict[tuple[str, int], dict[int, bytes]] = {}
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                place, written = words
                server = host_port(place)
                (pin,) = pins([written])
            except (BadValue, ValueError):
                raise CertificateError(
                    f"the server's key cannot be verified: {self._path}:{number}: expected HOST:PORT and a pin"
                ) from None
            known.setdefault((server.host.lower(), server.port), {})[number] = pin
        return known

    def _changed(self, server: HostPort, pin: bytes, lines: dict[int, bytes]) -> CertificateError:
        known = ", ".join(f"{written_pin(each)} ({self._path}:{number})" for number, each in lines.items())
        return CertificateError(
            f"the key of {server} has changed: it is {written_pin(pin)}, but known is {known}; either the server has a "
            "new key, or someone on the path impersonates it; what to do: compare it with what asport-sync pin prints "
            "on the server, and remove that line only if both are the same"
        )


def _first(chain: bytes) -> bytes:
    """Returns the first of several certificates in DER: its length is in its head (X.690, 8.1.3)."""
    if len(chain) < 2:
        raise CertificateError("the server has sent no certificate")
    size, head = chain[1], 2
    if size & 0x80:
        head += size & 0x7F
        size = int.from_bytes(chain[2:head], "big")
    return chain[: head + size]
