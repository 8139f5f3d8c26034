"""docs/configuration.md has every key of the model, and says of each what the model says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from asport_sync.config import ClientConfig, ServerConfig, TunnelConfig, common, layout, places, tls, tunnel
from asport_sync.config import client as client_model
from asport_sync.config import server as server_model
from asport_sync.config.reader import FIRST_RELEASE, Key, names_of
from asport_sync.config.structure import descriptions, own_fields
from asport_sync.config.tls import TlsClientConfig, TlsServerConfig

from .reference import NO_KEYS, PAGE, PLACE, SECTIONS, rows

CLASSES = [section.cls for section in SECTIONS]
CHANGES = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
# How many keys the first release had, counted once in each section. A key that is added later says since when.
KEYS_OF_THE_FIRST_RELEASE = 58

every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def test_every_class_of_the_model_is_in_the_page() -> None:
    model = (common, tls, tunnel, client_model, server_model)
    found = {
        each
        for module in model
        for each in vars(module).values()
        if isinstance(each, type) and each.__name__.endswith("Config")
    }
    assert found == {cls for cls in CLASSES if cls.__name__.endswith("Config")}


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if dataclasses.is_dataclass(cls)], ids=lambda cls: cls.__name__)
def test_every_field_is_a_key_with_a_row(cls: type) -> None:
    keys = {name for row in rows(cls) for name in re.findall(r"`(\w+)`", row.key)}
    own = set(own_fields(cls))
    assert keys == {name for name, field in names_of(cls).items() if field in own}
    assert own - set(names_of(cls)) == {name for owner, name in NO_KEYS if owner is cls}


@every_class
def test_every_key_has_a_description_and_each_description_a_key(cls: type) -> None:
    for row in rows(cls):
        assert re.fullmatch(r"[A-Z`].{10,}\.", row.meaning), f"{cls.__name__}.{row.key}: {row.meaning!r}"
        assert row.values, f"{cls.__name__}.{row.key}"
    fields = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else own_fields(cls)
    assert sorted(descriptions(cls)) == sorted(fields)


@every_class
def test_rows_are_written_for_files(cls: type) -> None:
    for row in rows(cls):
        assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|``|:\w+:`|\||\n", " ".join(row)), row


@pytest.mark.parametrize("cls", [ClientConfig, TunnelConfig, ServerConfig, TlsClientConfig, TlsServerConfig])
def test_help_has_inherited_keys_too(cls: type) -> None:
    assert cls.__doc__
    assert [name for name in names_of(cls).values() if f" {name}: " not in cls.__doc__] == []


@every_class
def test_a_default_that_is_no_constant_has_words(cls: type) -> None:
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        found = field.metadata.get("key")
        if isinstance(found, Key) and callable(field.default_factory) and not isinstance(field.default_factory, type):
            assert found.default, f"{cls.__name__}.{field.name}"


def test_since_when_is_a_release_that_names_the_key() -> None:
    releases = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", CHANGES, re.MULTILINE | re.DOTALL))
    of_the_first = 0
    for cls in CLASSES:
        for row in rows(cls):
            assert row.since in releases, f"{cls.__name__}.{row.key}"
            if row.since == FIRST_RELEASE:
                of_the_first += 1
            else:
                assert re.search(rf"[`.]{row.key.strip('`')}`", releases[row.since]), f"{cls.__name__}.{row.key}"
    assert of_the_first == KEYS_OF_THE_FIRST_RELEASE, "a new key says since when: documented(..., since='Unreleased')"


def test_the_keys_of_the_table_security_are_named() -> None:
    prose, _, _ = PAGE.read_text(encoding="utf-8").partition(PLACE.begin)
    assert [name for name in (*places.SECURITY, *layout._NOISE, *layout._MISPLACED) if f"`{name}`" not in prose] == []
