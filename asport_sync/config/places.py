"""Where each key belongs, and what is suggested for an unknown one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from asport_sync.config.reader import Item, names_of, similarity

T = TypeVar("T")

Side = Literal["client", "server"]

# Field by accepted name: the keys of the table security that are no TLS keys.
SECURITY = {"type": "type", "type_": "type", "tls": "tls", "noise": "noise"}

_CLOSE = 0.6
"""Minimum similarity for suggesting a key: found by trial; a lower value suggests unrelated keys."""

TOP_LEVEL = "the top level"
TLS = "the top level or [security.tls]"

_PLACES: Mapping[Side, dict[str, dict[str, str]]] = {
    "client": {
        TOP_LEVEL: {},
        TLS: {},
        "[security]": SECURITY,
        "the table certificates": {},
        "the table health": {},
        "the table status": {},
    },
    "server": {
        TOP_LEVEL: {},
        TLS: {},
        "[security]": SECURITY,
        "an entry of proxies": {},
        "the table of a user": {},
        "the table status": {},
    },
}
"""Where each key belongs, for hints: the place, then its names. In the order in which hints prefer them.

:func:`belongs_to` fills it while the package is imported; immutable from then on.
"""


def belongs_to(side: Side, place: str) -> Callable[[type[T]], type[T]]:
    """Returns a class decorator that notes where the keys of a dataclass belong, as named in hints."""

    def noted(cls: type[T]) -> type[T]:
        # A class comes after those of its tables. Of equally similar keys, its own are suggested.
        _PLACES[side][place] = names_of(cls) | _PLACES[side][place]
        return cls

    return noted


def report_unknown(unknown: Mapping[str, Item], side: Side, *known_here: Mapping[str, str]) -> None:
    """Reports unknown keys, each with a hint.

    Args:
        unknown: The keys.
        side: Whose configuration it is.
        *known_here: Names of the keys that are allowed there.
    """
    here = [name for names in known_here for name in names]
    for name, item in unknown.items():
        item.source.report(f"unknown key{_hint(name, side, here)}", item.at)


def _hint(name: str, side: Side, here: list[str]) -> str:
    other: Side = "server" if side == "client" else "client"
    for place, names in _PLACES[side].items():
        if name in names:
            return f": it belongs to {place}"
    for place, names in _PLACES[other].items():
        if name in names:
            inside = "" if place == TOP_LEVEL else f", in {place}"
            return f": this is a key of the {other}{inside}; a {side} has no such key"
    # Most likely a key of this table is meant, then one of another table, then one of the other side.
    candidates = [(similarity(name, each), each, "") for each in here]
    for place, names in _PLACES[side].items():
        candidates += [(similarity(name, each) - 0.05, each, f" It belongs to {place}") for each in names]
    for names in _PLACES[other].values():
        candidates += [(similarity(name, each) - 0.1, each, f" But that is a key of the {other}") for each in names]
    score, close, remark = max(candidates, key=lambda candidate: candidate[0])
    return f': did you mean "{close}"?{remark}' if score >= _CLOSE else ""
