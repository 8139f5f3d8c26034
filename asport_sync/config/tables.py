"""Reads nested tables, and secrets that are in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from asport_sync.config import passwords, paths
from asport_sync.config.credentials import first_line
from asport_sync.config.places import Side, report_unknown
from asport_sync.config.reader import Invalid, Item, build, gather, names_of

T = TypeVar("T")

# Keys whose value may instead be the first line of a file, named by the key with the suffix "_file".
SECRETS_IN_FILES: Mapping[str, Callable[[object], object]] = {
    "password": passwords.secret,
    "reset_key": passwords.reset_key,
    "token": passwords.token,
}


def read_table(cls: type[T], item: Item, entries: Mapping[str, Item], side: Side, **ready: object) -> T:
    """Returns a dataclass instance from the entries of a table; unknown keys are reported."""
    gathered: dict[str, Item] = {}
    names = names_of(cls)
    report_unknown(gather(entries, names, gathered), side, names)
    return build(cls, gathered, item, **ready, **from_files(gathered))


def from_files(gathered: Mapping[str, Item]) -> dict[str, object]:
    """Returns the secret fields for which a file is given, and the fields with its path."""
    found: dict[str, object] = {}
    for name, parse in SECRETS_IN_FILES.items():
        found |= _from_file(gathered, name, parse)
    return found


def _from_file(gathered: Mapping[str, Item], name: str, parse: Callable[[object], object]) -> dict[str, object]:
    in_file = f"{name}_file"
    file = gathered.get(in_file)
    if file is None or file.value is None:
        return {}
    # Placeholder: an error has been reported, so this never becomes part of a configuration.
    unusable: dict[str, object] = {name: "", in_file: None}
    if name in gathered:
        file.source.report(f"given together with {name}: only one of them is allowed", file.at)
        return unusable
    try:
        path = file.parsed(lambda item: paths.file_path(item.value, item.source.directory))
        return {name: file.parsed(lambda item: parse(first_line(path, item.value))), in_file: path}
    except Invalid:
        return unusable
