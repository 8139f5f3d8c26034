"""Pins of a server's key: every form, and what is said about others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import ClientConfig, load_client, written_pin
from asport_sync.errors import ConfigError

from .samples import PEM, WRITERS, client, write

PIN = bytes(range(0xA0, 0xC0))
BASE64 = "sha256//oKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr8="
HEX = "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
COLONS = ":".join(HEX[at : at + 2] for at in range(0, 64, 2))


def pins_of(value: Any) -> tuple[bytes, ...]:
    return ClientConfig.from_options(**client(certificates={"pins": value})).tunnels[""].tls.certificates.pins


@pytest.mark.parametrize("form", [BASE64, HEX, HEX.upper(), COLONS, COLONS.upper(), f" {BASE64}\n"])
def test_every_form(form: str) -> None:
    assert pins_of([form]) == (PIN,)
    assert pins_of((form, "00" * 32)) == (PIN, bytes(32))


def test_none_by_default() -> None:
    assert ClientConfig.from_options(**client()).tunnels[""].tls.certificates.pins == ()


def test_a_pin_is_written_as_it_is_read() -> None:
    assert written_pin(PIN) == BASE64


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("sha1//AAAA", "expected sha256// and base64, or the 64 hexadecimal digits"),
        (HEX[:40], "expected sha256// and base64, or the 64 hexadecimal digits"),
        (HEX + "00", "expected sha256// and base64, or the 64 hexadecimal digits"),
        (COLONS[:-1], "expected sha256// and base64, or the 64 hexadecimal digits"),
        (COLONS.replace(":", "-"), "expected sha256// and base64, or the 64 hexadecimal digits"),
        (BASE64.removeprefix("sha256//"), "expected sha256// and base64, or the 64 hexadecimal digits"),
        (BASE64[:-1], "expected 44 characters of base64"),
        (BASE64 + "=", "expected 44 characters of base64"),
        (BASE64.replace("o", "_"), "expected 44 characters of base64"),
        (f"{BASE64};{BASE64}", "expected 44 characters of base64"),
        ("sha256//", "expected 44 characters of base64"),
        ("", "expected sha256// and base64, or the 64 hexadecimal digits"),
        (1.5, "expected text, not a number with a fraction"),
        ([], "expected text, not a list"),
    ],
)
@pytest.mark.parametrize("suffix", list(WRITERS))
def test_refused_pins(tmp_path: Path, suffix: str, value: Any, problem: str) -> None:
    options = client(certificates={"pem": PEM, "pins": [BASE64, value]})
    path = write(tmp_path, "client" + suffix, WRITERS[suffix](options))
    with pytest.raises(ConfigError) as caught:
        load_client(path)
    assert caught.value.key == "certificates.pins[1]"
    assert caught.value.line is not None
    place = f"{path}:{caught.value.line}:{caught.value.column}"
    assert str(caught.value).startswith(f"{place}: certificates.pins[1]: {problem}")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (BASE64, "expected a list, such as"),
        ({}, "expected a list, such as"),
        ([], "to use none, omit the key"),
    ],
)
def test_what_is_no_list_of_pins(value: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        pins_of(value)
    assert caught.value.key == "certificates.pins"


def test_what_was_pasted_by_mistake_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        pins_of(["MC4CAQAwBQYDK2VwBCIEIHNlY3JldHNlY3JldA=="])
    assert "Y3JldHN" not in str(caught.value)


def test_a_pin_does_not_replace_trust() -> None:
    with pytest.raises(ConfigError, match="no certificate would be trusted"):
        ClientConfig.from_options(**client(certificates={"pins": [BASE64], "disable_native": True}))
