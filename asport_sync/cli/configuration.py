"""The commands ``asport-sync config``. All return an exit status; AsportError and OSError are for the operator."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from asport_sync.cli import output
from asport_sync.runtime.log import printable


def show(arguments: argparse.Namespace) -> int:
    """Prints the effective value of every key, and where it comes from."""
    from asport_sync.config import effective  # each command imports only what it needs

    settings = effective.effective(arguments.side, arguments.config)
    if arguments.json:
        output.say(json.dumps(effective.as_json(settings), indent=2, ensure_ascii=False))
        return 0
    lines = [(f"{each.key}: {_written(each.value)}", str(each.origin)) for each in settings]
    width = min(max(len(line) for line, _ in lines), _WIDEST)
    output.say("\n".join(printable(f"{line:{width}}  # {source}") for line, source in lines))
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """Prints the JSON Schema of configuration files, or writes it into a file."""
    from asport_sync.config.schema import schema as made

    _put(json.dumps(made(arguments.side), indent=1) + "\n", arguments.output)
    return 0


def _put(text: str, file: str | None) -> None:
    if file is None:
        output.say(text.removesuffix("\n"))
    else:
        Path(file).write_text(text, encoding="utf-8")


_WIDEST = 60
"""Characters: where the sources begin, unless a value is longer."""


def _written(value: object) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
