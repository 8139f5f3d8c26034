"""Writes the files of a new server, and of its first client."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asport_sync.config import HostPort, ServerUri, written_pin
from asport_sync.config.bad_value import BadValue
from asport_sync.config.example import SCHEMA
from asport_sync.config.hosts import host as parsed_host
from asport_sync.config.ports import HIGHEST_PORT, LOWEST_PORT
from asport_sync.config.values import integer, user_name
from asport_sync.engine import certificate_pin
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenText
from asport_sync.runtime import files
from asport_sync.trust.certificate import self_signed

DEFAULT_PORT: Final = 443
"""Of HTTP/3: firewalls that let any QUIC pass let it pass there."""
DEFAULT_DAYS: Final = 3650
"""Clients that verify the pin alone do not look at dates; ten years are for all others."""
MAX_DAYS: Final = 36500
FIRST_USER: Final = "first"

SERVER_FILE: Final = "server.yaml"
CLIENT_FILE: Final = "client.yaml"
CERTIFICATE_FILE: Final = "certificate.pem"
PRIVATE_KEY_FILE: Final = "private_key.pem"

FIRST_PUBLIC_PORT: Final = 30000
LAST_PUBLIC_PORT: Final = 32767
"""Below the ephemeral range of Linux: no outgoing connection of the server's machine takes one of these ports."""

_PASSWORD_BYTES: Final = 24
"""Random bytes: 192 bits, as 32 characters that need no encoding in a URI and no quotes in a file."""


@dataclass(frozen=True, slots=True)
class NewServer:
    """What :func:`create_server` has created.

    Attributes:
        uri: What a client needs to know.
        server_file: The server's configuration.
        client_file: The same as ``uri``, as the configuration of a client.
        certificate: The server's certificate.
        private_key: Its key.
        not_after: Until when the certificate is valid.
    """

    uri: ServerUri
    server_file: Path
    client_file: Path
    certificate: Path
    private_key: Path
    not_after: datetime.datetime


def new_password() -> str:
    """Returns a random password: 32 letters, digits, - and _."""
    return HiddenText(secrets.token_urlsafe(_PASSWORD_BYTES))


def create_server(
    host: str,
    port: int = DEFAULT_PORT,
    *,
    directory: str | os.PathLike[str] = ".",
    user: str = FIRST_USER,
    days: int = DEFAULT_DAYS,
) -> NewServer:
    """Writes the configuration of a server with a certificate, a key and a user, and the configuration of a client.

    All files can be read by their owner only. No existing file is changed: if there is one of these names, or one
    cannot be written, none is left. May block.

    Args:
        host: The name or IP address by which clients reach the server.
        port: The server's UDP port.
        directory: Where the files are written; created if there is none.
        user: The name of the first user.
        days: How long the certificate is valid.

    Raises:
        ConfigError: An argument is wrong, or a file exists already.
        AsportError: The package cryptography is missing.
        OSError: A file cannot be written.
    """
    host = _reachable(_checked("HOST", parsed_host, host))
    server = HostPort(host, integer(port, LOWEST_PORT, HIGHEST_PORT))
    user = _checked("the name of the user", user_name, user)
    days = integer(days, 1, MAX_DAYS, "days")
    folder = Path(directory)
    created = self_signed(host, days)
    pin = certificate_pin(created.certificate)
    uri = ServerUri(uuid.uuid4(), new_password(), server, (pin,))
    contents = {
        PRIVATE_KEY_FILE: created.private_key,
        CERTIFICATE_FILE: created.certificate,
        CLIENT_FILE: _client_file(uri).encode(),
        SERVER_FILE: _server_file(uri, user, created.not_after).encode(),
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _create_all({folder / name: content for name, content in contents.items()})
    return NewServer(
        uri=uri,
        server_file=folder / SERVER_FILE,
        client_file=folder / CLIENT_FILE,
        certificate=folder / CERTIFICATE_FILE,
        private_key=folder / PRIVATE_KEY_FILE,
        not_after=created.not_after,
    )


def _checked(what: str, check: Callable[[object], str], value: object) -> str:
    try:
        return check(value)
    except BadValue as error:
        raise ConfigError(f"{what}: {error.problem}") from None


def _reachable(host: str) -> str:
    address = HostPort(host, 0).ip
    if address is not None and address.is_unspecified:
        raise ConfigError(f"HOST: clients cannot connect to {host}: give the name or address that they use")
    return host


def _create_all(contents: dict[Path, bytes]) -> None:
    """Creates all of these files or none."""
    existing = [str(path) for path in contents if os.path.lexists(path)]
    if existing:
        raise _exist(existing)
    made: list[Path] = []
    try:
        for path, content in contents.items():
            files.create(path, content)
            made.append(path)
    except BaseException as problem:
        for each in made:
            with contextlib.suppress(OSError):
                each.unlink()
        if isinstance(problem, FileExistsError):  # made meanwhile
            raise _exist([str(path)]) from None
        raise


def _exist(paths: list[str]) -> ConfigError:
    verb = "exists" if len(paths) == 1 else "exist"
    return ConfigError(f"{', '.join(paths)}: {verb} already, and nothing is overwritten: choose another directory")


def _server_file(uri: ServerUri, user: str, not_after: datetime.datetime) -> str:
    return f"""\
# yaml-language-server: $schema={SCHEMA["server"]}
# For editors that know the line above: asport-sync config schema server --output {SCHEMA["server"]}

# A server: asport-sync server run -c {SERVER_FILE}
server: "[::]:{uri.server.port}"

# Self-signed, valid until {not_after:%Y-%m-%d}. Clients verify the pin of its key:
# {written_pin(uri.pins[0])}
certificate: {CERTIFICATE_FILE}
private_key: {PRIVATE_KEY_FILE}

# The ports that users may open. A firewall has to let them pass, and UDP port {uri.server.port}.
proxies:
  - allow_ports: {{start: {FIRST_PUBLIC_PORT}, end: {LAST_PUBLIC_PORT}}}
    users:
      {uri.uuid}:
        name: "{user}"
        password: "{uri.password}"
"""


def _client_file(uri: ServerUri) -> str:
    return f"""\
# yaml-language-server: $schema={SCHEMA["client"]}
# For editors that know the line above: asport-sync config schema client --output {SCHEMA["client"]}

# A client: asport-sync client run -c {CLIENT_FILE}
server: "{uri.server}"
uuid: {uri.uuid}
password: "{uri.password}"
certificates:
  pins: ["{written_pin(uri.pins[0])}"]
  pins_only: true

# The local service that becomes public: change it to yours.
local: 127.0.0.1:8080
"""
