"""The command ``expose``: makes local services public until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType

from asport_sync import config
from asport_sync.cli import output, table
from asport_sync.cli.given_uri import given, names_uri
from asport_sync.client.expose import TIMEOUT, Exposed, base_of
from asport_sync.engine import limit_arenas
from asport_sync.errors import (
    AsportError,
    AuthenticationError,
    BindError,
    CertificateError,
    ConfigError,
    HandshakeTimeoutError,
    LifecycleError,
    NetworkDeniedError,
    PortDeniedError,
    RefusedError,
)
from asport_sync.runtime import descriptors, log, process
from asport_sync.runtime.log import printable
from asport_sync.runtime.signals import Signals

_LOOK = 0.1  # seconds between two looks whether the services are public
_REDRAW = 0.5  # seconds between two states of the live line
_ERASE = "\r\x1b[K"  # first column, erase to the end of the line (ECMA-48)

# What to do about an error that does not say so itself. Subclasses come first.
_CURES: tuple[tuple[type[AsportError], str], ...] = (
    (
        AuthenticationError,
        "compare them with the server's file, or get a new URI: asport-sync user rotate, on the server",
    ),
    (BindError, "ask for other ports with --port, or leave it out"),
    (PortDeniedError, "ask for other ports with --port, or leave it out; allow_ports of the server has those allowed"),
    (NetworkDeniedError, "ask for another network with --network; allow_network of the server has those allowed"),
    (RefusedError, "the server's log says why"),
    (HandshakeTimeoutError, "is the server running, and does every firewall on the way let its UDP port through?"),
)


def sort_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Moves the URI from ``target`` to ``uri``. Ends the command if there are two, or nothing else."""
    uris = [each for each in arguments.target if names_uri(each)]
    arguments.target = [each for each in arguments.target if each not in uris]
    if len(uris) + (arguments.config is not None) > 1:
        parser.error("more than one server: expected a URI, or -c")
    if not arguments.target:
        parser.error("no TARGET: expected what is to become public, such as 8080")
    arguments.uri = uris[0] if uris else None


def run(arguments: argparse.Namespace) -> int:
    """Makes local services public until a signal ends it."""
    source = _source(arguments)
    base = base_of(source)
    process.prepare()
    if process.address_space_is_limited():
        limit_arenas(1)
    level = arguments.log_level or ("", "info", "debug")[min(arguments.verbose, 2)]
    # What goes wrong before the services are public is said once, at the end.
    handler = log.configure(level or "error", form=base.log_format)
    trust = log.logger("client.trust")
    if not level:
        trust.setLevel(logging.WARNING)  # except for the pin that is trusted, which nothing shows later
    try:
        descriptors.raise_limit()
        with (
            Signals() as signals,
            Exposed(arguments.target, base, port=arguments.port, network=arguments.network) as exposed,
            _LiveLine(is_wanted=not arguments.json) as live,
        ):
            if _is_public(exposed, signals, live):
                log.set_level(level or base.log_level)
                live.clear()
                _warn(exposed, source)
                _report(exposed, signals, live, as_json=arguments.json)
    except AsportError as problem:
        output.complain(f"{problem}{_cure_of(problem)}")
        return 1
    finally:
        trust.setLevel(logging.NOTSET)
        handler.close()
    return 0


def _source(arguments: argparse.Namespace) -> config.ClientConfig | Path | None:
    """Returns what names the server; None: the environment.

    Raises:
        ConfigError: Nothing does, or the URI is malformed.
    """
    refusal = "--trust-on-first-use is for a URI without pin"
    uri, file = given(arguments.uri, arguments.config)
    if uri is None:
        if arguments.trust_on_first_use:
            raise ConfigError(refusal)
        return file
    server = config.parse_uri(uri)
    keys: dict[str, object] = {}
    if arguments.trust_on_first_use:
        if server.pins:
            raise ConfigError(refusal)
        keys["certificates"] = {"trust_on_first_use": True}
    return config.client_of_uri(server, keys, with_tunnels=False)


def _warn(exposed: Exposed, source: object) -> None:
    """Prints warnings about the file with the password, about directories, and about services that do not run."""
    from asport_sync.doctor.local import missing  # not at the top: completion and --help do without the doctor

    if isinstance(source, Path):
        for problem in config.loose_files(exposed.client.config, source):
            output.complain(f"warning: {problem}")
    for each, tunnel in zip(exposed.services, exposed.client.config.tunnels.values(), strict=True):
        if each.target.startswith("dir:"):
            from asport_sync.client.directory import private_files  # loaded by now

            output.complain(
                f"warning: {each.target}: anyone who has the address can read every file in it that is neither hidden "
                "nor private"
            )
            if count := private_files(Path(each.target.removeprefix("dir:")).expanduser()):
                files = "1 private file is" if count == 1 else f"{count} private files are"
                output.complain(
                    f"warning: {each.target}: {files} not served, as others on this machine may not read them either; "
                    "chmod o+r serves them"
                )
        else:
            for problem in missing(tunnel):
                output.complain(f"warning: {each.target}: {problem}: visitors are turned away until one listens")


def _report(exposed: Exposed, signals: Signals, live: _LiveLine, *, as_json: bool) -> None:
    """Prints the addresses, and again when they have changed, until a signal comes."""
    printed = ""
    while True:
        addresses = _addresses(exposed, as_json=as_json)
        if addresses != printed:
            live.clear()
            output.say(addresses)
            printed = addresses
        live.show(_state_of(exposed))
        if signals.wait(None, _REDRAW):
            return


def _is_public(exposed: Exposed, signals: Signals, live: _LiveLine) -> bool:
    """Waits until all services are public; returns False if a signal came first.

    Raises:
        AsportError: As ``expose``.
    """
    deadline = time.monotonic() + TIMEOUT
    servers = dict.fromkeys(str(each.server) for each in exposed.client.config.tunnels.values())
    live.show(f"connecting to {', '.join(servers)}")
    while True:
        try:
            exposed.wait_ready(0)
        except (CertificateError, LifecycleError, RefusedError):
            raise
        except AsportError:
            if time.monotonic() >= deadline:
                raise
        else:
            return True
        if signals.wait(None, _LOOK):
            return False


def _cure_of(problem: AsportError) -> str:
    if isinstance(problem, CertificateError):
        return ""  # it says so
    return next((f": {cure}" for kind, cure in _CURES if isinstance(problem, kind)), "")


def _addresses(exposed: Exposed, *, as_json: bool) -> str:
    """Returns a line about each service."""
    lines = []
    for each in exposed.services:
        host, port = each.address
        if as_json:
            line = {"target": each.target, "network": each.network, "host": host, "port": port, "url": each.url}
            lines.append(json.dumps(line, ensure_ascii=False))
        else:
            by = {"both": "TCP and UDP"}.get(each.network, each.network.upper())
            # Only what is served here is known to speak HTTP.
            before = " " if each.target.startswith("dir:") else "; if it speaks HTTP: "
            url = "" if each.url is None else f"{before}{each.url}"
            lines.append(printable(f"{each.target} is public: {config.HostPort(host, port)} ({by}){url}"))
    return "\n".join(lines)


def _state_of(exposed: Exposed) -> str:
    """Returns the state of all tunnels together in one line."""
    stats = exposed.client.stats().tunnels.values()
    connections = [each for tunnel in stats for each in tunnel.connections]
    count = sum(each.streams + each.associations for each in connections)
    parts = [
        f"{count} {'connection' if count == 1 else 'connections'}",
        f"in {table.size(sum(each.totals.payload_received for each in stats))}",
        f"out {table.size(sum(each.totals.payload_sent for each in stats))}",
    ]
    if connections:
        parts.append(f"RTT {max(each.smoothed_rtt for each in connections) * 1000:.1f} ms")
    missing = sum(each.public is None for each in stats)
    if missing:
        parts.append("connecting again" if len(stats) == 1 else f"{missing} of {len(stats)} connecting again")
    return ", ".join(parts)


class _LiveLine:
    """The last line of a terminal, which is replaced again and again; nothing if stdout is something else.

    The cursor stays in its first column, where a line of the log may follow.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_drawn = is_wanted and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._text = ""

    def __enter__(self) -> _LiveLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._text:
            self._write(f"{_ERASE}{self._text}\n")  # stays; the terminal itself may have written ^C over it
        elif self._text:
            self.clear()

    def show(self, text: str) -> None:
        """Replaces the line."""
        text = text[: shutil.get_terminal_size().columns - 1]
        if self._is_drawn and text != self._text:
            self._text = text
            self._write(f"{_ERASE}{text}\r")

    def clear(self) -> None:
        """Erases the line."""
        if self._text:
            self._text = ""
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; its SIGHUP ends the command
            sys.stdout.write(text)
            sys.stdout.flush()
