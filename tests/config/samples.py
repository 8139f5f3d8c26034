"""Configurations for these tests, and their text in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

UUID = "00112233-4455-6677-8899-aabbccddeeff"
OTHER_UUID = "ffeeddcc-bbaa-9988-7766-554433221100"
PASSWORD = "correct horse battery staple"
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


def client(**changes: Any) -> dict[str, Any]:
    """The shortest options of a client, changed."""
    return {"server": "example.org:443", "local": "127.0.0.1:22", "uuid": UUID, "password": PASSWORD, **changes}


def server(**changes: Any) -> dict[str, Any]:
    """The shortest options of a server, changed."""
    return {"server": "[::]:443", "proxies": [], "certificate": PEM, "private_key": KEY, **changes}


def entry(**changes: Any) -> dict[str, Any]:
    """The shortest entry of proxies, changed."""
    return {"users": {UUID: PASSWORD}, **changes}


def toml(tree: Mapping[str, Any]) -> str:
    """A tree as TOML: one key per line, tables inline."""
    return "".join(f"{_quoted(name)} = {_toml_value(value)}\n" for name, value in tree.items())


def _quoted(text: str) -> str:
    # JSON escapes are TOML escapes, but for the halves of surrogate pairs and DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(name)} = {_toml_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return _quoted(value) if isinstance(value, str) else repr(value).lower()


class _Dumper(yaml.SafeDumper):
    """Quotes all text: PyYAML leaves bare what is text in YAML 1.1 but a number in YAML 1.2, such as 0E0."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def yaml_text(tree: Mapping[str, Any]) -> str:
    """A tree as YAML."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    ".json": lambda tree: json.dumps(tree, indent=1),
    ".toml": toml,
    ".yaml": yaml_text,
}


def write(directory: Path, name: str, text: str) -> Path:
    """Write a file and return its path."""
    path = directory / name
    path.write_bytes(text.encode())
    return path
