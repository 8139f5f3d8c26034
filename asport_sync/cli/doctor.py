"""The command ``doctor``: prints findings as they are made, or all of them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from asport_sync import config
from asport_sync.cli import output
from asport_sync.cli.given_uri import given
from asport_sync.doctor import Finding, State, check_client, check_server
from asport_sync.errors import AsportError
from asport_sync.runtime.log import printable

_FINDINGS = 1
_CANNOT_RUN = 2
_NO_LOCAL = 9  # the discard port, in the place of the local service that a URI does not name; never dialled
_COLOURS = {State.OK: "32", State.WARNING: "33", State.ERROR: "31", State.SKIPPED: "2"}  # SGR (ECMA-48)


def run(arguments: argparse.Namespace) -> int:
    """Checks a client or a server; returns 0 without problems, 1 with some, 2 if the configuration is not usable."""
    report = None if arguments.json else _print
    try:
        if arguments.side == "client":
            client, file, has_local = _client(arguments.config)
            findings = check_client(client, file=file, nat_binding=arguments.nat, has_local=has_local, report=report)
        else:
            file = config.origin("server", arguments.config)
            findings = check_server(config.load_server(file), file=file, report=report)
    except AsportError as problem:
        output.complain(str(problem))
        return _CANNOT_RUN
    problems = [each for each in findings if each.state in (State.WARNING, State.ERROR)]
    if arguments.json:
        result = {"side": arguments.side, "problems": len(problems), "findings": [each.as_dict() for each in findings]}
        output.say(json.dumps(result, ensure_ascii=False))
    else:
        output.say(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found")
    return _FINDINGS if problems else 0


def _client(source: str | None) -> tuple[config.ClientConfig, Path | None, bool]:
    """Returns the configuration of a client, the file that it is from if there is one, and whether it has local.

    Raises:
        ConfigError: It is not usable.
    """
    uri, file = given(None, source)
    if uri is None:
        return config.load_client(file), file, True
    server = config.parse_uri(uri)
    if "local" in config.client_of_uri(server, {}, with_tunnels=False).defaults:
        return config.client_of_uri(server, {}), None, True
    return config.client_of_uri(server, {"local": _NO_LOCAL}), None, False


def _print(finding: Finding) -> None:
    """Prints a finding: a line, and another one with the cure."""
    state = f"{finding.state.value:8}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        state = f"\x1b[{_COLOURS[finding.state]}m{state}\x1b[0m"
    tunnel = f"{finding.tunnel}: " if finding.tunnel else ""
    output.say(f"{state} {printable(f'{finding.id:21} {tunnel}{finding.found}')}")
    if finding.cure:
        output.say(f"{'':9}what to do: {printable(finding.cure)}")
