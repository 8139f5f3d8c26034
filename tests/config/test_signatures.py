"""The constructors of Client and Server declare every key, with the default and the description of the model."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest

from asport_sync import Client, ConfigErrors, Server
from asport_sync.config import ClientConfig, ServerConfig, TunnelConfig
from asport_sync.config.reader import names_of
from asport_sync.config.tls import TlsClientConfig, TlsServerConfig
from asport_sync.host.lifecycle import CALLABLES

from .samples import client, server

SIDES: list[tuple[Any, Any, list[type], dict[str, Any]]] = [
    (Client, ClientConfig, [TunnelConfig, TlsClientConfig], client()),
    (Server, ServerConfig, [TlsServerConfig], server()),
]

each_side = pytest.mark.parametrize(("kind", "cls", "others", "options"), SIDES, ids=["client", "server"])


@each_side
def test_every_key_is_a_parameter(kind: Any, cls: type, others: list[type], options: dict[str, Any]) -> None:
    declared = inspect.signature(kind).parameters
    keys = {name for each in (cls, *others) for name in names_of(each).values()}
    assert set(declared) - {"listen"} == keys | set(CALLABLES)
    kinds = {name: each.kind for name, each in declared.items() if name != "listen"}
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert set(typing.get_type_hints(kind.__init__)) == {*declared, "return"}


@each_side
def test_defaults_are_those_of_the_model(kind: Any, cls: Any, others: list[type], options: dict[str, Any]) -> None:
    declared = inspect.signature(kind).parameters
    defaults = {name: each.default for name, each in declared.items() if each.default is not inspect.Parameter.empty}
    given = {name: value for name, value in defaults.items() if value is not None and name not in options}
    assert len(given) > 15
    assert kind(**options, **given).config == cls.from_options(**options)
    assert kind(**(defaults | options)).config == cls.from_options(**options)


@each_side
def test_help_has_every_key(kind: Any, cls: type, others: list[type], options: dict[str, Any]) -> None:
    text = inspect.getdoc(kind.__init__)
    assert text
    assert [name for name in inspect.signature(kind).parameters if f"\n    {name}: " not in text] == []


@each_side
def test_keys_that_are_missing_or_unknown_are_reported_together(
    kind: Any, cls: type, others: list[type], options: dict[str, Any]
) -> None:
    given = {name: value for name, value in options.items() if name != "server"}
    with pytest.raises(ConfigErrors) as caught:
        kind(**given, time_out="8s", heart_beat=None)
    assert sorted(str(each.key) for each in caught.value.errors) == ["server", "time_out"]


@each_side
def test_callables_are_attributes_that_can_be_called(
    kind: Any, cls: type, others: list[type], options: dict[str, Any]
) -> None:
    made = kind(**options, on_ready=print, on_connect=None)
    assert [getattr(made, name) for name in CALLABLES] == [None, print, None]
    assert made.config == cls.from_options(**options)  # type: ignore[attr-defined]
    with pytest.raises(ConfigErrors, match="expected a callable, found int") as caught:
        kind(**options, on_connect=1, on_disconnect="x")
    assert [each.key for each in caught.value.errors] == ["on_connect", "on_disconnect"]
