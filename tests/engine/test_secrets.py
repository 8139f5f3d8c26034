"""What the engine does with secrets beside TLS: comparing them, and making keys of them."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.engine import derive_key, equal


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
