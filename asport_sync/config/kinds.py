"""JSON Schemas (draft 7) of single values: which forms a key accepts in a file.

Editors check and complete with them, and they say which values of environment variables are JSON. A schema accepts
every value that the parser of the key accepts, and refuses what can be refused by looking at its form. Constants and
pure functions; patterns are in the subset of regular expressions that JavaScript and Python share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

Schema: TypeAlias = Mapping[str, object]


def any_of(*kinds: Schema) -> Schema:
    """Returns the schema of values of one of these kinds."""
    return {"anyOf": list(kinds)}


def list_of(kind: Schema, *, minimum: int = 0, maximum: int | None = None) -> Schema:
    """Returns the schema of a list."""
    limits: dict[str, object] = {} if maximum is None else {"maxItems": maximum}
    return {"type": "array", "items": kind, **({"minItems": minimum} if minimum else {}), **limits}


def one_or_list(kind: Schema) -> Schema:
    """Returns the schema of a value, or of a list of some that is not empty."""
    return any_of(kind, list_of(kind, minimum=1))


def word(words: Iterable[str]) -> Schema:
    """Returns the schema of words in any case."""
    any_case = "|".join("".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in each) for each in words)
    return {"type": "string", "pattern": f"^({any_case})$"}


def choice(choices: Mapping[str, object]) -> Schema:
    """Returns the schema of a word: an editor offers those that are their own meaning, and accepts all in any case."""
    return any_of({"enum": [each for each, meaning in choices.items() if each == meaning]}, word(choices))


def integer(low: int, high: int) -> Schema:
    """Returns the schema of a whole number, which may also be text."""
    # Editors compute with floating-point numbers: a limit that is none in practice is omitted.
    limits = {"minimum": low} if high >= 2**53 else {"minimum": low, "maximum": high}
    return any_of({"type": "integer", **limits}, {"type": "string", "pattern": r"^[+-]?[0-9]{1,20}$"})


def text(minimum: int = 1) -> Schema:
    """Returns the schema of text with that many characters, which may also be a whole number or a boolean."""
    return {"type": ["string", "integer", "boolean"], "minLength": minimum}


def matching(pattern: str, **limits: int) -> Schema:
    """Returns the schema of text that matches a regular expression."""
    return {"type": "string", "pattern": pattern, **limits}


BOOLEAN: Final = any_of(
    {"type": "boolean"}, {"enum": [0, 1]}, word(("true", "on", "yes", "1", "false", "off", "no", "0"))
)
_OFF: Final = any_of({"enum": ["off", False, 0]}, word(("off", "no", "0", "false")))
DURATION: Final = matching(r"^(?=.*[1-9])\s*([0-9]+\s*[A-Za-z]+\s*)+$")
OFF_OR_DURATION: Final = any_of(matching(r"^\s*([0-9]+\s*[A-Za-z]+\s*)+$"), _OFF)
_RATE: Final = any_of(matching(r"^\s*[0-9]{1,15}\s*[kKmMgG]([bB][iI][tT]|[bB][yY][tT][eE])\s*$"), _OFF)
BANDWIDTH: Final[Schema] = {
    "type": "object",
    "properties": {"in": _RATE, "out": _RATE},
    "additionalProperties": False,
    "minProperties": 1,
}
PATH: Final[Schema] = {"type": "string", "minLength": 1}
PATHS: Final = list_of(PATH)
PATH_OR_OFF: Final = any_of(PATH, {"enum": [False, 0]})
HTTP_PATH: Final = matching(r"^/[!-~]*$", maxLength=2000)
PEM: Final = matching("-----BEGIN CERTIFICATE")
PINS: Final = list_of(
    matching(r"^\s*(sha256//[A-Za-z0-9+/]{43}=|[0-9a-fA-F]{64}|[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){31})\s*$"), minimum=1
)
TABLE: Final[Schema] = {"type": "object"}
TABLES: Final = list_of(TABLE)
IP: Final = matching(r"^(\[?[0-9A-Fa-f:.%]+\]?|[0-9.]+)$")
HOST: Final = matching(r"^\S+$")
HOST_PORT: Final = matching(r"^(?!.*://).+:0*[1-9][0-9]{0,4}$")
IP_PORT: Final = matching(r"^(\[[0-9A-Fa-f:.%]+\]|[0-9A-Fa-f:.]+):[0-9]{1,5}$")
TOKEN: Final = any_of(matching("^[!-~]*$", minLength=16), {"type": "integer"})
USER_NAME: Final = matching(r"^[A-Za-z0-9._-]{1,64}$")
_HYPHENATED: Final = r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
UUID: Final = matching(
    rf"^([0-9a-fA-F]{{32}}|{_HYPHENATED}|\{{{_HYPHENATED}\}}|[uU][rR][nN]:[uU][uU][iI][dD]:{_HYPHENATED})$"
)
_PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}
_PORTS: Final[Schema] = {
    "type": "object",
    "properties": {"start": _PORT, "end": _PORT},
    "required": ["start", "end"],
    "additionalProperties": False,
}
PORT_RANGE: Final = any_of(_PORT, list_of(_PORT, minimum=2, maximum=2), _PORTS)
PORT_SET: Final = any_of(_PORT, _PORTS, list_of(PORT_RANGE))
LOCAL: Final = any_of(
    matching(r"^(unix:.+|(?!.*://).+:[0-9]{1,5}|[0-9]{1,5})$"),
    _PORT,
    list_of(any_of(matching(r"^(?!unix:)(.+:[0-9]{1,5}|[0-9]{1,5})$"), _PORT), minimum=1),
)
_NETWORK: Final = matching(r"^(\[?[0-9A-Fa-f:.]+\]?)(/[0-9]{1,3})?$")


def addresses(maximum: int, *, minimum: int = 0) -> Schema:
    """Returns the schema of networks."""
    return any_of(_NETWORK, list_of(_NETWORK, minimum=minimum, maximum=maximum))


def from_environment(kind: Schema, value: str) -> object:
    """Returns the value that the text of an environment variable stands for.

    Lists, tables, and numbers that must not be text are JSON. Everything else, including text that is not JSON, is
    text: passwords and names are never changed, and the parsers of keys report what is unusable.
    """
    types = set(_types(kind))
    if not types & {"array", "object"}:
        return value
    try:
        found: object = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_number = isinstance(found, int) and not isinstance(found, bool) and "string" not in types
    return found if is_number or isinstance(found, (list, dict)) else value


def _types(kind: Schema) -> Iterable[object]:
    """Yields the JSON types of the values that a schema accepts."""
    alternatives = kind.get("anyOf")
    for each in alternatives if isinstance(alternatives, list) else ():
        yield from _types(each)
    found = kind.get("type")
    yield from found if isinstance(found, list) else (found,)
