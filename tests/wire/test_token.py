"""What goes into the exporter that makes the token."""

from __future__ import annotations

from uuid import UUID

import pytest

from asport_sync.errors import LocalProtocolError
from asport_sync.wire import token

from .exporter import tls_exporter
from .vectors import USER


@pytest.mark.parametrize(
    ("hash_name", "secret_length", "expected"),
    [
        ("sha256", 32, "619fc697f60201e765900e7f0b56c66c987f86bbd2246db61dc05554fef68794"),
        ("sha384", 48, "f6ac575b75ec8238f091cc5459306da2f4f700d40921bf0d367be159998001ed"),
    ],
)
def test_v10_token(hash_name: str, secret_length: int, expected: str) -> None:
    exporter_secret = bytes(range(secret_length))
    exported = tls_exporter(
        hash_name, exporter_secret, token.label(USER), token.context("password"), token.TOKEN_LENGTH
    )
    assert exported.hex() == expected


def test_label_is_the_uuid_in_text_order() -> None:
    assert token.label(UUID("00112233-4455-6677-8899-aabbccddeeff")).hex() == "00112233445566778899aabbccddeeff"


def test_context_is_utf_8() -> None:
    assert token.context("Schlüssel ☃") == b"Schl\xc3\xbcssel \xe2\x98\x83"


def test_empty_password_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="the password is empty"):
        token.context("")


def test_password_that_utf_8_cannot_hold_is_refused_without_being_told() -> None:
    with pytest.raises(LocalProtocolError, match="not valid Unicode") as failure:
        token.context("hunter2\ud800")
    assert "hunter2" not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__


def test_the_context_is_not_shown() -> None:
    assert "hunter2" not in repr(token.context("hunter2"))
