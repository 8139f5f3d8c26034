"""Configurations to begin with: every key with its description, from the model."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

from asport_sync.config import WITHOUT_EFFECT, Side
from asport_sync.config.effective import plain
from asport_sync.config.environment import PREFIX
from asport_sync.config.structure import REQUIRED, Entry, Table, table_of
from asport_sync.config.writing import Format, Group, Line, Note, Pair, written

SCHEMA: Final[Mapping[Side, str]] = {"client": "client.schema.json", "server": "server.schema.json"}
"""The file that generated configurations name: next to them, as ``config schema`` writes it."""

_EXAMPLES: Final[Mapping[str, object]] = {
    "server": "tunnel.example.org:443",
    "local": "127.0.0.1:8080",
    "certificate": "fullchain.pem",
    "private_key": "privkey.pem",
    "receive_memory": 256 << 20,
    "access_log": "-",
    "control_socket": "/run/asport-sync/control.sock",
    "status": {"http": "127.0.0.1:9464"},
    "max_workers": 4,
    "max_connections": 1000,
    "new_connections_per_second": 100,
    "udp_sessions": 1000,
    "allow_from": ["192.0.2.0/24", "2001:db8::/32"],
    "deny_from": ["192.0.2.7"],
    "keylog": "keys.log",
    "password_file": "password",
    "heartbeat": "3s",
    "health": {"http": "/health", "interval": "10s"},
    "bandwidth": {"in": "10mbit", "out": "10mbit"},
    "server_name": "tunnel.example.org",
    "certificates": {"pins": ["sha256//" + 43 * "A" + "="]},
    "tunnels": {"web": {"local": "127.0.0.1:8080"}, "ssh": {"local": "127.0.0.1:22", "network": "tcp"}},
    "only_v6": True,
    "allow_ports": {"start": 30000, "end": 30100},
    "dialect": "auto",
    "max_clients": 64,
    "max_clients_total": 1000,
    "balance": "round_robin",
    "reset_key": "at least 32 characters: openssl rand -base64 32",
    "reset_key_file": "reset.key",
}
"""Values of keys without a default that can be shown."""


def example(side: Side, form: Format) -> str:
    """Returns a configuration with every key; those that are not required are comments.

    The UUID and the password are random.

    Args:
        side: Whose configuration.
        form: Its format; JSON has only the required keys.
    """
    identifier, password = str(uuid.uuid4()), secrets.token_urlsafe(24)
    table = table_of(side)
    required: dict[str, object] = {"uuid": identifier, "password": password}
    if side == "server":
        required = {"server": "[::]:443"}
    lines: list[Line] = [
        Note(
            f"Configuration of an asport-sync {side}. Keys with a # directly in front have the value that is shown, or "
            "none, if they are not given. The first line lets editors check and complete the file, after: asport-sync "
            f"config schema {side} --output {SCHEMA[side]}"
        ),
        Note(
            f"Environment variables replace keys: {PREFIX}LOG_LEVEL=info. "
            "A value may be the content of one: env:NAME. Paths are relative to this file."
        ),
    ]
    lines += _lines(table, required)
    if side == "server":
        lines += _entry(table, identifier, password)
    lines += _rest(table)
    return written(lines, form, SCHEMA[side])


def _lines(table: Table, values: Mapping[str, object]) -> Iterator[Line]:
    """Yields the required keys that have a value."""
    for entry in table.entries.values():
        if entry.default is REQUIRED and entry.inside is None:
            yield Note(_described(entry))
            yield Pair(entry.name, values.get(entry.name, _EXAMPLES.get(entry.name)))


def _entry(table: Table, identifier: str, password: str) -> Iterator[Line]:
    proxies = table.entries["proxies"]
    assert proxies.inside is not None
    users = proxies.inside.entries["users"]
    inside: list[Line] = [
        *_rest(proxies.inside),
        Note(f"{_described(users)} A user's own keys: {', '.join(_names(users))}."),
        Group("users", [Group(identifier, [Pair("name", "first"), Pair("password", password)])]),
    ]
    yield Note(_described(proxies))
    yield Group("proxies", inside, is_element=True)


def _names(users: Entry) -> list[str]:
    assert users.inside is not None
    return list(users.inside.entries)


def _rest(table: Table) -> Iterator[Line]:
    """Yields the keys that are not required, as comments."""
    for entry in table.entries.values():
        if entry.default is not REQUIRED and entry.name not in WITHOUT_EFFECT:
            yield Note(_described(entry))
            default = entry.default
            shown = _EXAMPLES.get(entry.name) if default in (None, ()) else plain(entry, default)
            yield Pair(entry.name, shown, is_comment=True)


def _described(entry: Entry) -> str:
    text = entry.meaning
    if entry.key.accepts != "table, see below":
        text += f" Values: {entry.key.accepts}."
    if entry.default is None or entry.key.default:
        text += f" Default: {entry.written_default}."
    return text.replace("`", "")
