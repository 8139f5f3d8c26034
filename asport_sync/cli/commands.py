"""What each command does. All return an exit status and raise AsportError or OSError for what the user has to mend."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import uuid as uuid_module
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from asport_sync import config
from asport_sync._version import __version__
from asport_sync.config.formats import FORMATS
from asport_sync.engine import versions
from asport_sync.runtime import log
from asport_sync.tunnel import Client, Server

_log = log.logger("cli")


def run_client(arguments: argparse.Namespace) -> int:
    """Runs a client until a signal."""
    settings = config.load_client(arguments.config)
    _set_up_logging(settings, arguments)
    _warn(_client_secrets(settings, arguments.config))
    Client.from_config(settings).run_forever()
    return 0


def run_server(arguments: argparse.Namespace) -> int:
    """Runs a server until a signal."""
    settings = config.load_server(arguments.config)
    _set_up_logging(settings, arguments)
    _warn(_server_secrets(settings, arguments.config))
    Server.from_config(settings).run_forever()
    return 0


def check_client(arguments: argparse.Namespace) -> int:
    """Says ok about a client's configuration, or raises what is wrong with it."""
    settings = config.load_client(arguments.config)
    return _ok(_client_secrets(settings, arguments.config))


def check_server(arguments: argparse.Namespace) -> int:
    """Says ok about a server's configuration, or raises what is wrong with it."""
    settings = config.load_server(arguments.config)
    return _ok(_server_secrets(settings, arguments.config))


def uuid(_: argparse.Namespace) -> int:
    """Prints a random UUID (RFC 9562, version 4)."""
    print(uuid_module.uuid4())
    return 0


def version() -> str:
    """What is installed: a line each for the package, Python and the libraries linked."""
    linked = versions()
    return "\n".join(
        (
            f"asport-sync {__version__}",
            f"Python {platform.python_version()}",
            f"ngtcp2 {linked['ngtcp2']} ({linked['ngtcp2_origin']})",
            f"GnuTLS {linked['gnutls']}",
        )
    )


def _set_up_logging(settings: config.ClientConfig | config.ServerConfig, arguments: argparse.Namespace) -> None:
    level = arguments.log_level or ("", "info", "debug")[min(arguments.verbose, 2)] or settings.log_level
    log.configure(level)


# --- secrets that others can read -------------------------------------------------------------------------------------


def _client_secrets(settings: config.ClientConfig, path: str | None) -> Iterator[Path]:
    """The files that hold a client's secrets."""
    if settings.password_file is None:
        yield _file("client", path)
    else:
        yield settings.password_file


def _server_secrets(settings: config.ServerConfig, path: str | None) -> Iterator[Path]:
    """The files that hold a server's secrets."""
    users = [user for proxy in settings.proxies for user in proxy.users]
    key = settings.tls.private_key
    if key.path is None or any(user.password_file is None for user in users):
        yield _file("server", path)
    if key.path is not None:
        yield key.path
    yield from sorted({user.password_file for user in users if user.password_file is not None})


def _file(side: Literal["client", "server"], path: str | None) -> Path:
    """The configuration file that was read; an extension may have been left out."""
    if path is None:
        return config.find(side)
    names = [path, *(path + extension for extension in FORMATS)]
    return Path(next((name for name in names if os.path.exists(name)), path))


def _loose(secrets: Iterator[Path]) -> Iterator[str]:
    for path in secrets:
        problem = config.loose_permissions(path)
        if problem is not None:
            yield problem


def _warn(secrets: Iterator[Path]) -> None:
    for problem in _loose(secrets):
        _log.warning("%s", problem)


def _ok(secrets: Iterator[Path]) -> int:
    for problem in _loose(secrets):
        print(f"asport-sync: warning: {problem}", file=sys.stderr)
    print("ok")
    return 0
