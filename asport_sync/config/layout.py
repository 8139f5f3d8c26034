"""Sorts the keys of a configuration by field, wherever in the file they are allowed to be."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from asport_sync.config import choices
from asport_sync.config.places import SECURITY, Side, report_unknown
from asport_sync.config.reader import Invalid, Item, gather

_NOISE = {name: name for name in ("pattern", "local_private_key", "remote_public_key")}
_MISPLACED = {"congestion_control": "congestion_control"}
"""Top-level keys that an example of the reference implementation has among the TLS keys."""


@dataclass(slots=True)
class SortedKeys:
    """The keys of a configuration, or of a tunnel, by field, regardless of their place in the file.

    Attributes:
        own: Keys of the top level or of the tunnel.
        tls: TLS keys.
        tls_owner: The table in which TLS keys are expected, for errors about missing ones.
        noise: Whether the Noise handshake is requested.
    """

    own: dict[str, Item]
    tls: dict[str, Item]
    tls_owner: Item
    noise: bool = False


def sorted_keys(
    root: Item,
    side: Side,
    own_names: Mapping[str, str],
    tls_names: Mapping[str, str],
    of_the_client: Container[str] = (),
) -> SortedKeys:
    """Sorts the keys of a configuration, or of a tunnel; unknown ones are reported.

    Args:
        root: The top level, or the table of the tunnel.
        side: Whose configuration it is.
        own_names: Field by accepted name of the keys at the top level or of the tunnel.
        tls_names: The same of the TLS keys.
        of_the_client: Names of keys that a tunnel cannot have, because they are for the whole client.
    """
    found = SortedKeys(own={}, tls={}, tls_owner=root)

    def sort(item: Item, *targets: tuple[Mapping[str, str], dict[str, Item]]) -> None:
        if item.value is None:  # an empty table in YAML
            return
        try:
            rest = item.parsed(Item.table)
        except Invalid:
            return
        for names, gathered in targets:
            rest = gather(rest, names, gathered)
        rest = _without_keys_of_the_client(rest, of_the_client)
        report_unknown(rest, side, *(names for names, _ in targets))

    security: dict[str, Item] = {}
    sort(root, (own_names, found.own), (tls_names, found.tls), ({"security": "security"}, security))
    if "security" not in security:
        return found
    found.tls_owner = security["security"]
    inner: dict[str, Item] = {}
    sort(found.tls_owner, (SECURITY, inner), (tls_names, found.tls), (_MISPLACED, found.own))
    if "tls" in inner:
        found.tls_owner = inner["tls"]
        sort(found.tls_owner, (tls_names, found.tls), (_MISPLACED, found.own))
    if "noise" in inner:
        sort(inner["noise"], (_NOISE, {}))
    if "type" in inner:
        try:
            found.noise = inner["type"].parsed(_security_type) == "noise"
        except Invalid:
            pass
    if found.noise:
        root.source.report('Noise is not supported yet: only type = "tls" is', inner["type"].at)
    return found


def _without_keys_of_the_client(unknown: Mapping[str, Item], of_the_client: Container[str]) -> dict[str, Item]:
    """Returns the unknown keys of a tunnel without those of the whole client, which are reported."""
    rest = {name: item for name, item in unknown.items() if name not in of_the_client}
    for item in (item for name, item in unknown.items() if name in of_the_client):
        item.source.report("this key is for the whole client, not for one tunnel: it belongs to the top level", item.at)
    return rest


def _security_type(item: Item) -> str:
    return choices.choice(item.value, {"tls": "tls", "noise": "noise"})
