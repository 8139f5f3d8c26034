"""The commands that set up a server and its users."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

from asport_sync.cli import output
from asport_sync.config import written_pin
from asport_sync.errors import AsportError
from asport_sync.trust import NewServer, create_server


def init(arguments: argparse.Namespace) -> int:
    """Writes the files of a new server and of its first client, and prints the client's URI."""
    if arguments.qr and importlib.util.find_spec("segno") is None:
        raise AsportError("--qr needs segno: install asport-sync[qr]")
    created = create_server(
        arguments.host, arguments.port, directory=arguments.directory, user=arguments.user, days=arguments.days
    )
    output.say(_as_json(created) if arguments.json else _as_text(created))
    if arguments.qr:
        _print_qr(created.uri.reveal())
    return 0


def _as_json(created: NewServer) -> str:
    return json.dumps(
        {
            "uri": created.uri.reveal(),
            "uuid": str(created.uri.uuid),
            "server": str(created.uri.server),
            "pin": written_pin(created.uri.pins[0]),
            "not_after": f"{created.not_after:%Y-%m-%dT%H:%M:%SZ}",
            "server_file": str(created.server_file),
            "client_file": str(created.client_file),
            "certificate": str(created.certificate),
            "private_key": str(created.private_key),
        }
    )


def _as_text(created: NewServer) -> str:
    return f"""\
{created.private_key}: the key (ECDSA, P-256)
{created.certificate}: the certificate for {created.uri.server.host}, valid until {created.not_after:%Y-%m-%d}
{created.server_file}: the server's configuration; start it with
    asport-sync server run -c {created.server_file}
{created.client_file}: the configuration of a client, with the same as this URI, which holds a password:

{created.uri.reveal()}
"""


def _print_qr(text: str) -> None:
    import segno

    segno.make(text, micro=False).terminal(sys.stdout, compact=True)
    sys.stdout.flush()
