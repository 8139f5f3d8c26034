"""What a client and a server say at their start about settings that weaken them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from asport_sync.client.session import log_verification
from asport_sync.config import ClientConfig, TunnelConfig
from asport_sync.errors import ConfigError, EngineError
from asport_sync.host.certificates import make_credentials

log = logging.getLogger("asport_sync.test")


def config(**options: Any) -> TunnelConfig:
    keys = {"server": "192.0.2.1:443", "local": "127.0.0.1:9", "uuid": "0" * 32, "password": "x"}
    return ClientConfig.from_options(**keys, **options).tunnels[""]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"certificates": {"pins": ["00" * 32]}}, ""),
        ({"skip_certificate_verification": True}, "anyone on the path can impersonate the server"),
        (
            {"skip_certificate_verification": True, "certificates": {"pins": ["00" * 32]}},
            "verifying only the pinned key; name, validity and issuer are not checked",
        ),
    ],
)
def test_what_is_not_verified(options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture) -> None:
    log_verification(config(**options).tls, log)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if said else [])
    assert said in caplog.text


def making(keylog: str | None) -> Any:
    """In the place of an engine's method: what it was told to log to."""
    if keylog is not None and keylog.endswith("no"):
        raise EngineError(-1, f"key log {keylog}: Permission denied")
    return keylog


def test_no_key_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    assert make_credentials(making, None, log) is None
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    assert make_credentials(making, None, log) is None
    assert caplog.text == ""


def test_a_key_log_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys: Any = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "environment"))
    made: list[Any] = [make_credentials(making, None, log), make_credentials(making, keys, log)]
    assert made == [str(tmp_path / "environment"), str(keys)]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"written to {tmp_path / 'environment'}: anyone who can read it" in caplog.text
    assert f"written to {keys}: anyone who can read it" in caplog.text
    keys.touch()
    keys.chmod(0o644)
    caplog.clear()
    make_credentials(making, keys, log)
    assert f"{keys} holds a secret and can be read by everyone (mode 0644)" in caplog.text


def test_a_key_log_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Fatal only where the configuration asks for it."""
    monkeypatch.setenv("SSLKEYLOGFILE", "/no")
    assert make_credentials(making, None, log) is None
    assert [record.getMessage() for record in caplog.records] == [
        "SSLKEYLOGFILE is ignored: key log /no: Permission denied"
    ]
    with pytest.raises(ConfigError, match=r"^keylog: key log /other/no: Permission denied$"):
        make_credentials(making, Path("/other/no"), log)
    assert len(caplog.records) == 1


def test_what_else_is_wrong_with_credentials(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(keylog: str | None) -> Any:
        raise EngineError(-1, "no certificate in PEM text")

    monkeypatch.setenv("SSLKEYLOGFILE", "/no")
    for path in (None, Path("/other/no")):
        with pytest.raises(EngineError, match="no certificate in PEM text"):
            make_credentials(refuse, path, log)
    assert caplog.text == ""
