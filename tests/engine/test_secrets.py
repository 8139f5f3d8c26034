"""What the engine does with secrets beside TLS: comparing them, making keys of them, and not showing them."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.engine import Carrier, CommandReceived, Connection, Engine, derive_key, equal
from asport_sync.errors import EngineClosedError
from asport_sync.hidden import HiddenBytes
from tests.engine.pair import connected
from tests.support.certificates import Certificate
from tests.support.exposure import exposed, told


def test_equal() -> None:
    first = bytes(range(32))
    assert equal(first, bytes(range(32)))
    for position in range(32):
        other = bytearray(first)
        other[position] ^= 0x80
        assert not equal(first, bytes(other))


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33)])
def test_what_is_of_another_length_is_not_equal(wrong: bytes) -> None:
    assert not equal(wrong, bytes(32))
    assert not equal(bytes(32), wrong)


def test_two_empty_secrets_are_not_equal() -> None:
    assert not equal(b"", b"")


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [
        (
            bytes([0x0B]) * 22,
            bytes(range(0x0D)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
        ),
        (bytes([0x0B]) * 22, b"", b"", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
    ],
    ids=["A.1", "A.2", "A.3"],
)
def test_rfc_5869(secret: bytes, salt: bytes, info: bytes, expected: str) -> None:
    """The first 32 bytes of the test cases in appendix A."""
    assert derive_key(secret, salt=salt, info=info).hex() == expected


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=100), st.binary(max_size=100))
def test_a_derived_key_is_hkdf_as_python_has_it(secret: bytes, salt: bytes, info: bytes) -> None:
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    assert derive_key(secret, salt=salt, info=info) == hmac.digest(extracted, info + b"\x01", hashlib.sha256)


# --- showing ----------------------------------------------------------------------------------------------------------

SECRET = b"hunter2 hunter2"


def test_a_derived_key_is_not_shown() -> None:
    key = derive_key(SECRET, salt=b"", info=b"")
    assert exposed(repr(key), bytes(key)) == []


def test_an_export_that_fails_shows_no_context() -> None:
    engine = Engine()
    engine.close()
    with pytest.raises(EngineClosedError) as caught:
        Connection(engine, 1).export(b"label", HiddenBytes(SECRET), 32)
    assert exposed(told(caught.value), SECRET) == []


def test_commands_are_not_shown(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        pair.client_connection.send(bytes(2) + SECRET * 3 + bytes(8))  # as long as a ClientHello
        command = pair.server.expect(CommandReceived)
        assert (command.carrier, command.data[2:-8]) == (Carrier.STREAM, SECRET * 3)
        assert exposed(repr(command), SECRET) == []
