"""The fake engine has the signatures of the real one: a test that passes with it means something."""

from __future__ import annotations

import inspect

import pytest

from asport_sync import engine as real

from . import fake_engine as fake

PAIRS = [
    (fake.FakeEngine, real.Engine),
    (fake.FakeConnection, real.Connection),
    (fake.FakeCredentials, real.Credentials),
    (fake.FakeEndpoint, real.Endpoint),
    (fake.FakeStream, real.Stream),
    (fake.FakeListener, real.Listener),
    (fake.FakeGroup, real.Group),
    (fake.FakeUdpSocket, real.UdpSocket),
]
SHARED = [
    pytest.param(pretended, actual, name, id=f"{actual.__name__}.{name}")
    for pretended, actual in PAIRS
    for name, _ in inspect.getmembers(pretended, inspect.isfunction)
    if not name.startswith("_") and hasattr(actual, name)
]


def test_the_fake_shares_methods_with_the_real_one() -> None:
    assert len(SHARED) > 30


@pytest.mark.parametrize(("pretended", "actual", "name"), SHARED)
def test_a_method_takes_what_the_real_one_takes(pretended: type, actual: type, name: str) -> None:
    found, expected = (inspect.signature(getattr(cls, name)).parameters for cls in (pretended, actual))
    open_ended = [each.name for each in found.values() if each.kind is inspect.Parameter.VAR_KEYWORD]
    if open_ended:  # **options stands for the keyword-only parameters
        found_names = [each for each in found if each not in open_ended]
        keyword_only = [each.name for each in expected.values() if each.kind is inspect.Parameter.KEYWORD_ONLY]
        assert found_names == [each for each in expected if each not in keyword_only]
    else:
        assert [(each.name, each.kind, each.default) for each in found.values()] == [
            (each.name, each.kind, each.default) for each in expected.values()
        ]
