"""The commands. All return an exit status; AsportError and OSError are problems that the operator has to fix."""

from __future__ import annotations

import argparse
import functools
import os
import platform
import uuid as uuid_module
from pathlib import Path
from typing import TYPE_CHECKING

from asport_sync import config
from asport_sync._version import __version__
from asport_sync.cli import output
from asport_sync.cli.given_uri import given
from asport_sync.config.environment import URI
from asport_sync.control.services import by_default
from asport_sync.engine import certificate_pin, limit_arenas, versions
from asport_sync.errors import ConfigError, EngineError
from asport_sync.runtime import descriptors, log, process

if TYPE_CHECKING:
    from asport_sync.client.client import Client
    from asport_sync.control.operations import Operations
    from asport_sync.server.server import Server

_log = log.logger("cli")


def run(arguments: argparse.Namespace) -> int:
    """Runs a client or a server until it receives a signal."""
    file: Path | None
    service: Client | Server
    operations: Operations
    # Import only the side that runs: each is about a megabyte.
    if arguments.side == "client":
        from asport_sync.client.client import Client
        from asport_sync.client.operations import ClientOperations

        source = _client_source(arguments)
        file = source if isinstance(source, Path) else None
        service = Client.from_config(source)
        operations = ClientOperations(service)
    else:
        from asport_sync.server.operations import ServerOperations
        from asport_sync.server.server import Server

        file = config.origin("server", arguments.config)
        service = Server.from_config(file)
        operations = ServerOperations(service)
    process.prepare()
    if process.address_space_is_limited():
        limit_arenas(1)
    given = arguments.log_level or ("", "info", "debug")[min(arguments.verbose, 2)]
    handler = log.configure(
        given or service.config.log_level, form=arguments.log_format or service.config.log_format, follows=not given
    )
    try:
        for problem in config.loose_files(service.config, file):
            _log.warning("%s", problem)
        _log.debug("file descriptor limit: %s", descriptors.raise_limit() or "none")
        with by_default(service.config, operations):
            service.run_forever()
    finally:
        handler.close()
    return 0


def _client_source(arguments: argparse.Namespace) -> config.ClientConfig | Path | None:
    """Returns the configuration of a client that the URI and options of a command line describe; without URI, its file.

    None: environment variables are the whole configuration.
    """
    uri, file = given(arguments.uri, arguments.config)
    if uri is None:
        for option, key in (("local", "local"), ("trust_on_first_use", "certificates.trust_on_first_use")):
            if getattr(arguments, option):
                name = f"--{option.replace('_', '-')}"
                where = "the environment" if file is None else file
                raise ConfigError(f"{name} is for a URI, and none is given: set the key {key} in {where}")
        return file
    server = config.parse_uri(uri)
    keys: dict[str, object] = {} if arguments.local is None else {"local": arguments.local}
    if arguments.trust_on_first_use:
        if server.pins:
            raise ConfigError("--trust-on-first-use: the URI has a pin, so that the server need not be trusted blindly")
        keys["certificates"] = {"trust_on_first_use": True}
    return config.client_of_uri(server, keys)


def check(arguments: argparse.Namespace) -> int:
    """Prints ok for a valid configuration, or raises what is wrong with it or with the files that it names."""
    from asport_sync.host.certificates import try_out  # not at the top, for the same reason

    is_client = arguments.side == "client"
    source = _client_source(arguments) if is_client else config.origin("server", arguments.config)
    file = None if isinstance(source, config.ClientConfig) else source
    settings = source if isinstance(source, config.ClientConfig) else _read(arguments.side, source)
    for problem in config.loose_files(settings, file):
        output.complain(f"warning: {problem}")
    for problem in try_out(settings):
        output.complain(f"warning: {problem}")
    output.say("ok")
    return 0


def pin(arguments: argparse.Namespace) -> int:
    """Prints the pin of a certificate file, or of the certificate that a server's configuration names."""
    if arguments.certificate is not None:
        certificate = config.Credential(path=Path(arguments.certificate))
    else:
        certificate = config.load_server(arguments.config).tls.certificate
    try:
        found = certificate_pin(certificate.read())
    except EngineError:
        problem = "contains no certificate in PEM or DER"
        raise ConfigError(problem, path=None if certificate.path is None else str(certificate.path)) from None
    output.say(config.written_pin(found))
    return 0


def install_unit(arguments: argparse.Namespace) -> int:
    """Writes or prints a unit file for systemd."""
    from asport_sync.cli import systemd  # not at the top: the other commands may run for months without it

    systemd.install(
        functools.partial(_read, arguments.side),
        _file_of_service(arguments),
        side=arguments.side,
        by_user=arguments.user,
        account=arguments.account,
        command=arguments.command,
        prints=arguments.print,
        force=arguments.force,
    )
    return 0


def _file_of_service(arguments: argparse.Namespace) -> Path:
    has_uri = arguments.side == "client" and arguments.config is None and os.environ.get(URI)
    ignored = f"{URI} is ignored: the service has no variables of this shell"
    try:
        found = config.locate(arguments.side, arguments.config)
    except ConfigError as problem:
        if not has_uri or problem.path is not None:
            raise
        raise ConfigError(
            f"{problem.problem}; {ignored}; put what it says into client.yaml, which asport-sync config example client "
            "-o client.yaml begins"
        ) from None
    if has_uri:
        output.complain(f"warning: {ignored}")
    return found


def uuid(_: argparse.Namespace) -> int:
    """Prints a random UUID (RFC 9562, version 4)."""
    output.say(str(uuid_module.uuid4()))
    return 0


def version(arguments: argparse.Namespace) -> int:
    """Prints the installed versions: a line each for the package, Python and the linked libraries."""
    linked = versions()
    lines = [
        f"asport-sync {__version__}",
        f"Python {platform.python_version()}",
        f"ngtcp2 {linked['ngtcp2']} ({linked['ngtcp2_origin']})",
        f"GnuTLS {linked['gnutls']}",
    ]
    if arguments.more:
        from asport_sync.host.certificates import default_authorities  # not at the top, for the same reason

        try:
            lines.append(f"certificate authorities: {default_authorities()}")
        except ConfigError as problem:
            lines.append(f"certificate authorities: none ({problem})")
    output.say("\n".join(lines))
    return 0


# --- the files of a configuration -------------------------------------------------------------------------------------


def _read(side: str, file: Path | None) -> config.ClientConfig | config.ServerConfig:
    return config.load_client(file) if side == "client" else config.load_server(file)
