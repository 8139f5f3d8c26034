"""The commands ``asport-sync config``. All return an exit status; AsportError and OSError are for the operator."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from asport_sync.cli import output
from asport_sync.config.environment import URI
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenText
from asport_sync.runtime.log import printable


def show(arguments: argparse.Namespace) -> int:
    """Prints the effective value of every key, and where it comes from."""
    from asport_sync.config import effective, parse_uri  # each command imports only what it needs

    # Of a client that is given neither a file nor a URI, it comes before the default files.
    variable = os.environ.get(URI) if arguments.side == "client" and arguments.config is None else None
    uri = parse_uri(HiddenText(variable)) if variable else None
    settings = effective.effective(arguments.side, arguments.config, uri=uri)
    if arguments.json:
        output.say(json.dumps(effective.as_json(settings), indent=2, ensure_ascii=False))
        return 0
    lines = [(f"{each.key}: {_written(each.value)}", str(each.origin)) for each in settings]
    width = min(max(len(line) for line, _ in lines), _WIDEST)
    output.say("\n".join(printable(f"{line:{width}}  # {origin}") for line, origin in lines))
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """Prints the JSON Schema of configuration files, or writes it into a file."""
    from asport_sync.config.schema import schema as made

    _put(json.dumps(made(arguments.side), indent=1) + "\n", arguments.output)
    return 0


def example(arguments: argparse.Namespace) -> int:
    """Prints a configuration to begin with, or writes it into a new file."""
    from asport_sync.config.example import example as made

    _put_new(made(arguments.side, arguments.format), arguments.output)
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Prints what another program's configuration is here, or writes it into a new file."""
    from asport_sync.config import convert as convert_
    from asport_sync.config.load import read_text

    if arguments.program == "chisel":
        converted = convert_.from_chisel(arguments.input, arguments.format, arguments.uuid)
    else:
        if len(arguments.input) != 1:
            raise ConfigError(f"expected one file of {arguments.program}")
        (path,) = arguments.input
        read = convert_.from_frp if arguments.program == "frp" else convert_.from_rathole
        converted = read(read_text(Path(path)), path, arguments.format, arguments.uuid)
    _put_new(converted.text, arguments.output)
    for each in converted.left_out:
        output.complain(f"left out: {each}")
    return 0


def _put(text: str, file: str | None) -> None:
    """Prints a text, or writes it into a file."""
    if file is None:
        output.say(text.removesuffix("\n"))
    else:
        Path(file).write_text(text, encoding="utf-8")


def _put_new(text: str, file: str | None) -> None:
    """Prints a text with a password, or writes it into a file that did not exist and that only this user can read."""
    if file is None:
        _put(text, None)
        return
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as new:
        new.write(text)


_WIDEST = 60
"""Characters: where the origins begin, unless a value is longer."""


def _written(value: object) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
