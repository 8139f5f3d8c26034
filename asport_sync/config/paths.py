"""Converts paths of files and of the control socket.

Of the environment it reads only ``CREDENTIALS_DIRECTORY``, the directory of systemd's credentials.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from asport_sync.config.bad_value import BadValue
from asport_sync.config.values import text

ControlSocket = Path | Literal["off"]

CREDENTIAL_PREFIX: Final = "credential:"


def credentials_directory() -> Path | None:
    """Returns the directory of this service's systemd credentials (``LoadCredential=`` and related options), if any."""
    place = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(place) if place else None


def file_path(value: object, directory: Path | None) -> Path:
    """Returns the path of a file.

    Args:
        value: Text, or a path object from a program. ``credential:NAME`` is a systemd credential.
        directory: Base of relative paths; None leaves them relative.
    """
    name = os.fspath(value) if isinstance(value, os.PathLike) else text(value)
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadValue("expected the path of a file")
    if isinstance(value, str) and name.startswith(CREDENTIAL_PREFIX):
        return _credential_path(name[len(CREDENTIAL_PREFIX) :])
    return directory / name if directory else Path(name)


def _credential_path(name: str) -> Path:
    directory = credentials_directory()
    if directory is None:
        raise BadValue(
            f"{CREDENTIAL_PREFIX} names a systemd credential, but CREDENTIALS_DIRECTORY is not set: "
            "add LoadCredential= to the unit"
        )
    if name in ("", ".", "..") or "/" in name:
        raise BadValue(f'expected the name of a credential after {CREDENTIAL_PREFIX}, without "/"')
    return directory / name


def control_socket(value: object, directory: Path | None) -> ControlSocket:
    """Returns the path of a control socket, or "off"; that also for false, which "off" is in YAML."""
    if value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false")):
        return "off"
    if isinstance(value, bool):
        raise BadValue('expected the path of a socket, or "off"')
    return file_path(value, directory)
