"""The JSON Schema of configuration files, from the model: editors check and complete with it.

Draft 7, which all editors have. A schema accepts every configuration that ``check`` accepts, except one that gets a
required key from the environment; it refuses what can be refused by looking at one value, and unknown keys. What
depends on several keys, or on files, is left to ``check``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from asport_sync.config import Side, TlsClientConfig, TlsServerConfig
from asport_sync.config.environment import VALUE_PREFIX
from asport_sync.config.kinds import Schema, any_of, text
from asport_sync.config.places import SECURITY
from asport_sync.config.structure import REQUIRED, Entry, Table, table_of

DRAFT: Final = "http://json-schema.org/draft-07/schema#"

_ENVIRONMENT: Final[Schema] = {"$ref": "#/definitions/environment"}
_NULL: Final[Schema] = {"type": "null"}


def schema(side: Side) -> dict[str, Any]:
    """Returns the JSON Schema of a client's or a server's configuration."""
    table = table_of(side)
    found = _table(table, requires=side == "server")
    if side == "client":
        # With tunnels, each key may be in each of them, or at the top level.
        found["if"] = {"not": {"required": ["tunnels"]}}
        found["then"] = {"allOf": list(_required(table))}
    found["properties"]["$schema"] = {"type": "string", "description": "The schema of this file, for editors."}
    environment = {
        "type": "string",
        "pattern": f"^{VALUE_PREFIX}",
        "description": "env:NAME or env:text with ${NAME}: from environment variables",
    }
    return {
        "$schema": DRAFT,
        "title": f"Configuration of an asport-sync {side}",
        **found,
        "definitions": {"environment": environment},
    }


def _table(table: Table, *, requires: bool) -> dict[str, Any]:
    """Returns the schema of a table.

    Args:
        table: The table.
        requires: Whether its required keys must be in it.
    """
    properties: dict[str, Any] = {}
    for entry in table.entries.values():
        described = {"description": _description(entry), **_value(entry)}
        properties |= {name: described if name == entry.name else _alias(entry, described) for name in entry.names}
    if table.has_security:
        properties["security"] = _security(table)
    secrets = [name for name in table.entries if f"{name}_file" in table.entries]
    rules: list[Schema] = [{"not": {"required": [name, f"{name}_file"]}} for name in secrets]
    if requires:
        rules += _required(table)
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"allOf": rules} if rules else {})


def _security(table: Table) -> dict[str, Any]:
    """Returns the schema of the table in which files of the reference implementation have the TLS keys."""
    keys = {
        name: {"description": _description(entry), **_value(entry)}
        for entry in table.entries.values()
        if issubclass(entry.cls, (TlsClientConfig, TlsServerConfig)) or entry.name == "congestion_control"
        for name in entry.names
    }
    tls = {"type": ["object", "null"], "properties": keys, "additionalProperties": False}
    kind = {"enum": ["tls"], "description": "Noise is not supported."}
    rest = {name: {"type": ["object", "null"]} if name == "noise" else kind for name in SECURITY if name != "tls"}
    return {
        "description": "TLS keys, as in files of the reference implementation. They may be at the top level as well.",
        "type": ["object", "null"],
        "properties": {**keys, **rest, "tls": tls},
        "additionalProperties": False,
    }


def _alias(entry: Entry, described: dict[str, Any]) -> dict[str, Any]:
    return described | {"description": f"The same as {entry.name}. {described['description']}"}


def _description(entry: Entry) -> str:
    meaning = entry.meaning.replace("`", "")
    default = entry.written_default.replace("`", "")
    return f"{meaning} {default.capitalize() if default == 'required' else f'Default: {default}'}.".strip()


def _value(entry: Entry) -> Schema:
    """Returns the schema of the value of a key."""
    kinds: list[Schema] = [_form(entry)]
    if kinds[0].get("type") != "string" or len(kinds[0]) > 1:
        kinds.append(_ENVIRONMENT)
    if entry.default is None or entry.default == ():
        kinds.append(_NULL)
    return any_of(*kinds)


def _form(entry: Entry) -> Schema:
    if entry.inside is None:
        return entry.key.schema
    inside = _table(entry.inside, requires=entry.name != "tunnels")
    if entry.name == "health":
        inside["anyOf"] = [{"required": ["tcp"]}, {"required": ["http"]}]
    if entry.form == "table":
        return inside
    if entry.form == "list":
        return {"type": "array", "items": inside}
    if entry.name == "users":
        return {"type": "object", "additionalProperties": any_of(text(), inside, _ENVIRONMENT), "minProperties": 1}
    names = {"pattern": "^[A-Za-z0-9._-]{1,64}$"}
    return {
        "type": "object",
        "additionalProperties": any_of(inside, _NULL),
        "propertyNames": names,
        "minProperties": 1,
    }


def _required(table: Table) -> Iterable[Schema]:
    """Yields, for each required key, that it is given under one of its names, in a file, or in a table ``security``."""
    for entry in table.entries.values():
        if entry.default is REQUIRED:
            names = [*entry.names, *(f"{entry.name}_file" for _ in (0,) if f"{entry.name}_file" in table.entries)]
            if issubclass(entry.cls, (TlsClientConfig, TlsServerConfig)):
                names.append("security")
            yield {"required": names} if len(names) == 1 else {"anyOf": [{"required": [name]} for name in names]}
