"""The commands that set up a server and its users."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from asport_sync import trust
from asport_sync.cli import output, table
from asport_sync.config import load_server, locate, loose_files, written_pin
from asport_sync.control.caller import Caller, ControlError, NoneFoundError, none_found, running
from asport_sync.errors import AsportError


def init(arguments: argparse.Namespace) -> int:
    """Writes the files of a new server and of its first client, and prints the client's URI."""
    _check_qr(arguments)
    created = trust.create_server(
        arguments.host, arguments.port, directory=arguments.directory, user=arguments.user, days=arguments.days
    )
    uri = created.uri
    if arguments.json:
        members = {
            "uri": uri.reveal(),
            "uuid": str(uri.uuid),
            "server": str(uri.server),
            "pin": written_pin(uri.pins[0]),
            "not_after": f"{created.not_after:%Y-%m-%dT%H:%M:%SZ}",
            "server_file": str(created.server_file),
            "client_file": str(created.client_file),
            "certificate": str(created.certificate),
            "private_key": str(created.private_key),
        }
        output.say(json.dumps(members))
        return 0
    output.say(
        f"""\
{created.private_key}: the key (ECDSA, P-256)
{created.certificate}: the certificate for {uri.server.host}, valid until {created.not_after:%Y-%m-%d}
{created.server_file}: the server's configuration; start it with
    asport-sync server run -c {created.server_file}
{created.client_file}: the configuration of a client, with the same as this URI, which holds a password:

{uri.reveal()}
"""
    )
    if arguments.qr:
        _print_qr(uri.reveal())
    return 0


def add_user(arguments: argparse.Namespace) -> int:
    """Adds a user, and prints the URI for their clients."""
    _check_qr(arguments)
    added = trust.add_user(
        arguments.name, arguments.config, entry=arguments.entry, ports=arguments.ports, host=arguments.host
    )
    if arguments.ports is not None:
        _warn_of_others(arguments, added.user)
    return _print_new(arguments, added, f"added {added.user.label}")


def list_users(arguments: argparse.Namespace) -> int:
    """Prints the users, without their passwords."""
    users = trust.list_users(arguments.config)
    if arguments.json:
        output.say(json.dumps([{"name": each.name, "uuid": str(each.uuid), "entry": each.entry} for each in users]))
        return 0
    rows = [[each.name or "-", str(each.uuid), f"proxies[{each.entry}]"] for each in users]
    output.say("\n".join(table.columns([["NAME", "UUID", "ENTRY"], *rows])))
    return 0


def remove_user(arguments: argparse.Namespace) -> int:
    """Removes a user. A server that reloads ends the connections of their clients."""
    removed = trust.remove_user(arguments.user, arguments.config)
    output.say(f"removed {removed.label}\n{_reload(arguments)}")
    return 0


def rotate_password(arguments: argparse.Namespace) -> int:
    """Gives a user a new password, and prints the URI for their clients."""
    _check_qr(arguments)
    rotated = trust.rotate_password(arguments.user, arguments.config, host=arguments.host)
    return _print_new(arguments, rotated, f"{rotated.user.label} has a new password")


def _print_new(arguments: argparse.Namespace, new: trust.NewPassword, what: str) -> int:
    _warn(arguments.config)
    reloaded = _reload(arguments)
    uri = None if new.uri is None else new.uri.reveal()
    if arguments.json:
        members = {"name": new.user.name, "uuid": str(new.user.uuid), "password": str(new.password), "uri": uri}
        output.say(json.dumps({**members, "reload": reloaded}))
        return 0
    secret = uri
    if secret is None:
        secret = f"uuid: {new.user.uuid}\npassword: {new.password}\n\nFor a URI, name the server's address: --host HOST"
    output.say(f"{what}\n{reloaded}\n\n{secret}")
    if arguments.qr and uri is not None:
        _print_qr(uri)
    return 0


def _warn(file: str | None) -> None:
    """Prints a warning for each file of the configuration that others may read or change."""
    path = locate("server", file)
    for problem in loose_files(load_server(path), path):
        output.complain(f"warning: {problem}")


def _warn_of_others(arguments: argparse.Namespace, user: trust.User) -> None:
    """Prints a warning for each entry of the configuration whose users may open ports of this one, too."""
    for index, proxy in enumerate(load_server(arguments.config).proxies):
        if index != user.entry and (shared := proxy.allow_ports.intersection(*arguments.ports)):
            others = f"the users of proxies[{index}] may open {shared} as well"
            output.complain(f"warning: {others}; narrow its allow_ports to prevent it")


def _reload(arguments: argparse.Namespace) -> str:
    """Has the server of this configuration reload it, if one runs; returns what happened."""
    if arguments.no_reload:
        return "not reloaded (--no-reload): a running server follows when it reloads"
    configured = load_server(arguments.config).control_socket
    if configured == "off":
        return "not reloaded: the server has no control socket (control_socket: off); it follows on SIGHUP"
    try:
        caller = Caller(configured) if isinstance(configured, Path) else running("server")
        done = caller.post("/v1/reload")
    except NoneFoundError:
        return f"not reloaded: {none_found('server')}; one that runs follows on SIGHUP, or when it is restarted"
    except ControlError as problem:
        return f"not reloaded: {problem}"
    if not done["changes"]:
        return f"reloaded, but nothing has changed for the server at {caller.path}: does it have another configuration?"
    return "\n".join(f"reloaded: {each}" for each in done["changes"])


def _check_qr(arguments: argparse.Namespace) -> None:
    """Checks that a QR code can be printed, before anything is written.

    Raises:
        AsportError: It is wanted, but cannot.
    """
    if arguments.qr and not _is_installed("segno"):
        raise AsportError("--qr needs the package segno: pip install 'asport-sync[qr]'")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # blocked in sys.modules
        return False


def _print_qr(text: str) -> None:
    import segno

    segno.make(text, micro=False).terminal(sys.stdout, compact=True)
    sys.stdout.flush()
