"""What fields of the model have as metadata: keys by kind of value, for keys of several tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from asport_sync.config import choices, durations, kinds, passwords, paths, rates, values
from asport_sync.config.reader import Key, key, scalar

T = TypeVar("T")


def choice_of(meanings: Mapping[str, object]) -> Mapping[str, Key]:
    """Returns the metadata of a key whose value is one of a few words, see :func:`choices.choice`."""
    return scalar(
        lambda value: choices.choice(value, meanings), accepts=choices.words(meanings), schema=kinds.choice(meanings)
    )


def integer_of(low: int, high: int, unit: str = "") -> Mapping[str, Key]:
    """Returns the metadata of a key whose value is a whole number from low to high, inclusive."""
    limits = f"`{low}` to `{high}`" if high < 2**63 - 1 else f"`{low}` or more"
    return scalar(
        lambda value: values.integer(value, low, high, unit),
        accepts=f"whole number{unit and f' of {unit}'}, {limits}",
        schema=kinds.integer(low, high),
    )


BOOLEAN = scalar(values.boolean, accepts="`true`, `false`", schema=kinds.BOOLEAN)
DURATION = key(
    lambda item: durations.duration(item.value, bare_seconds=item.source.path is None),
    accepts="duration, `1ms` to `100years`",
    schema=kinds.DURATION,
)
BANDWIDTH = scalar(
    rates.bandwidth,
    accepts="table of `in` and `out`: whole number with `kbit`, `mbit`, `gbit` (bits per second) or `kbyte`, `mbyte`, "
    "`gbyte` (bytes per second), `8kbit` to `100gbit`; or `off`",
    schema=kinds.BANDWIDTH,
)
DIALECT = choice_of(choices.DIALECTS)
NETWORK = scalar(
    choices.networks,
    accepts=f"{choices.words(choices.NETWORKS)}; or a list of these",
    schema=kinds.one_or_list(kinds.choice(choices.NETWORKS)),
)
PATH = key(lambda item: paths.file_path(item.value, item.source.directory), accepts="path", schema=kinds.PATH)
PASSWORD = scalar(passwords.secret, accepts="text, not empty", schema=kinds.text())


def with_inherited_keys(cls: type[T]) -> type[T]:
    """Adds the inherited keys to the docstring of a dataclass, so that ``help`` shows all of them."""
    for base in cls.__bases__:
        if cls.__doc__ and base.__doc__:
            cls.__doc__ = cls.__doc__.rstrip() + "\n" + base.__doc__.partition("Attributes:\n")[2]
    return cls
