"""What differs between two configurations of the same side, in words without secrets; and the paths in one."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from asport_sync.config.addresses import AddressSet
from asport_sync.config.credentials import Credential
from asport_sync.config.hosts import LocalTargets, UnixSocket
from asport_sync.config.pins import written_pin
from asport_sync.config.ports import PortSet
from asport_sync.config.reader import Key
from asport_sync.config.server import ProxyConfig, UserConfig

T = TypeVar("T")

_LONGEST: Final = 300
"""Characters of two values that are shown: two paths are shorter; a list of a thousand networks says nothing."""

_WHOLE: Final = (AddressSet, Credential, LocalTargets, PortSet)
"""Dataclasses that are one value in a file."""

# Keys that an entry of ``proxies`` and a user both have, and that both apply; and how those of the entry are named.
_BOTH: Final = ("bandwidth", "allow_from", "deny_from")
_SHARED: Final = "proxies."

NOT_READ: Final = frozenset({"access_log", "control_socket", "keylog", "known_servers", "local"})
"""Keys with paths of files that are written, and of sockets. Those of all other keys are files that are read."""


def differences(before: Any, after: Any) -> tuple[str, ...]:
    """Returns what differs between two configurations.

    Args:
        before: An instance of a dataclass of the model.
        after: An instance of the same class.

    Returns:
        One line each, such as ``log_level: warn -> info``, ``password: new`` or ``user UUID: removed``.
    """
    return tuple(_differences(before, after, ""))


def keys_to_restart(before: Any, after: Any) -> tuple[str, ...]:
    """Returns the names of top-level keys that differ and take effect only after a restart."""
    return tuple(
        each.name
        for each in dataclasses.fields(after)
        if isinstance(found := each.metadata.get("key"), Key)
        and found.needs_restart
        and getattr(before, each.name) != getattr(after, each.name)
    )


def keep(before: T, after: T, names: Iterable[str]) -> T:
    """Returns a copy of ``after`` in which these top-level keys have their value of ``before``."""
    return dataclasses.replace(after, **{name: getattr(before, name) for name in names})  # type: ignore[type-var]


def files_of(config: Any) -> frozenset[Path]:
    """Returns the files that a configuration names and that are read: passwords, certificates, keys."""
    return frozenset(path for key, path in paths_of(config) if key.rpartition(".")[2] not in NOT_READ)


def paths_of(config: Any) -> Iterator[tuple[str, Path]]:
    """Yields every path that a configuration names, with its key, such as ``tunnels.web.password_file``.

    A key above ``tunnels`` counts as one of each tunnel. Abstract unix sockets, and ``-`` for stderr, are no paths.
    """
    yield from _paths(config, "")


def tunnel_label(name: str) -> str:
    """Returns the prefix of what is said of a tunnel; empty for the only one of a client without names."""
    return f"tunnel {name}: " if name else ""


def _differences(before: Any, after: Any, where: str) -> Iterator[str]:
    for each in dataclasses.fields(after):
        if each.compare:
            yield from _difference(each, getattr(before, each.name), getattr(after, each.name), where)


def _difference(field: dataclasses.Field[Any], old: Any, new: Any, where: str) -> Iterator[str]:
    """Yields what differs between two values of a field."""
    name = where + field.name
    if old == new:
        return
    if not field.repr:
        yield f"{name}: new"
    elif field.name == "proxies":
        yield from _users(old, new)
    elif field.name == "tunnels":
        yield from _tunnels(old, new)
    elif field.name == "tls":  # a file has these keys at the top level
        yield from _differences(old, new, where)
    elif dataclasses.is_dataclass(new) and type(old) is type(new) and not isinstance(new, _WHOLE):
        yield from _differences(old, new, f"{name}.")
    else:
        words = f"{_shown(old)} -> {_shown(new)}"
        yield f"{name}: {words if len(words) <= _LONGEST else 'changed'}"


def _users(before: Iterable[ProxyConfig], after: Iterable[ProxyConfig]) -> Iterator[str]:
    old, new = _keys_of_users(before), _keys_of_users(after)
    for user in old:
        if user not in new:
            yield f"user {_label(user, old)}: removed"
    for user, keys in new.items():
        label = _label(user, new)
        if user not in old:
            yield f"user {label}: added"
            continue
        for name, (field, value) in keys.items():
            place = _SHARED if name.startswith(_SHARED) else ""
            yield from _difference(field, old[user][name][1], value, f"user {label}: {place}")


def _label(user: uuid.UUID, users: Mapping[uuid.UUID, Mapping[str, tuple[object, Any]]]) -> str:
    """Returns a user for a log line: the UUID, after the name if there is one."""
    name = users[user]["name"][1]
    return str(user) if name is None else f"{name} ({user})"


def _keys_of_users(proxies: Iterable[ProxyConfig]) -> dict[uuid.UUID, dict[str, tuple[dataclasses.Field[Any], Any]]]:
    """Returns the keys of each user by name: the user's own if there is one, else that of the entry of ``proxies``.

    Of those that both apply it returns both.
    """
    found = {}
    for proxy in proxies:
        of_entry = {each.name: (each, getattr(proxy, each.name)) for each in dataclasses.fields(proxy)}
        del of_entry["users"]
        shared = {_SHARED + name: of_entry.pop(name) for name in _BOTH}
        for user in proxy.users:
            own = {each.name: (each, getattr(user, each.name)) for each in dataclasses.fields(user)}
            inherited = {name for name, (_, value) in own.items() if value is None and name in of_entry}
            found[user.uuid] = of_entry | shared | {name: each for name, each in own.items() if name not in inherited}
    return found


def _tunnels(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in before:
        if name not in after:
            yield f"{tunnel_label(name) or 'the tunnel without a name: '}removed"
    for name, tunnel in after.items():
        if name in before:
            yield from _differences(before[name], tunnel, tunnel_label(name))
        else:
            yield f"{tunnel_label(name) or 'the tunnel without a name: '}added"


def _shown(value: Any) -> str:
    """Returns a value much as in a file."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # all of these are durations
        return f"{value:g}s"
    if isinstance(value, bytes):  # all others are secrets
        return written_pin(value)
    if isinstance(value, Credential):
        return "text" if value.path is None else str(value.path)
    if dataclasses.is_dataclass(value) and not isinstance(value, _WHOLE):
        return "set"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):  # named tuples are single values in a file
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Credential):
        value = value.path
    if isinstance(value, Path):
        if value != Path("-"):
            yield key, value
    elif isinstance(value, UnixSocket):
        if not value.path.startswith("@"):
            yield key, Path(value.path)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _paths(each, f"{key}.{name}" if name else "")
    elif isinstance(value, LocalTargets):
        for address in value.addresses:
            yield from _paths(address, key)
    elif isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from _paths(each, _key_of_element(key, number, each))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.compare:
                inner = key if field.name == "tls" else f"{key}.{field.name}".removeprefix(".")
                yield from _paths(getattr(value, field.name), inner)


def _key_of_element(key: str, number: int, element: Any) -> str:
    """Returns the key of an element of a list, or of the table ``users``."""
    if isinstance(element, UserConfig):
        return f"{key}.{element.uuid}"
    return f"{key}[{number}]" if isinstance(element, ProxyConfig) else key
