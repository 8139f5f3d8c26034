"""What a client and a server say at their start about settings that weaken them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import ClientConfig
from asport_sync.tunnel.run import keylog_file, say_what_is_not_verified

log = logging.getLogger("asport_sync.test")


def config(**options: Any) -> ClientConfig:
    keys = {"server": "192.0.2.1:443", "local": "127.0.0.1:9", "uuid": "0" * 32, "password": "x"}
    return ClientConfig.from_options(**keys, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"certificates": {"pins": ["00" * 32]}}, ""),
        ({"skip_certificate_verification": True}, "anybody on the path can be the server"),
        (
            {"skip_certificate_verification": True, "certificates": {"pins": ["00" * 32]}},
            "only its pinned key is verified: no name, no dates, no issuer",
        ),
    ],
)
def test_what_is_not_verified(options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture) -> None:
    say_what_is_not_verified(config(**options).tls, log)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if said else [])
    assert said in caplog.text


def test_no_key_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    assert keylog_file(None, log) is None
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    assert keylog_file(None, log) is None
    assert caplog.text == ""


def test_a_key_log_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "environment"))
    assert keylog_file(None, log) == str(tmp_path / "environment")
    assert keylog_file(tmp_path / "keys", log) == str(tmp_path / "keys")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"written to {tmp_path / 'environment'}: whoever can read that file" in caplog.text
    assert f"written to {tmp_path / 'keys'}: whoever can read that file" in caplog.text
    (tmp_path / "keys").touch()
    (tmp_path / "keys").chmod(0o644)
    caplog.clear()
    keylog_file(tmp_path / "keys", log)
    assert f"{tmp_path / 'keys'} holds a secret and can be read by everybody (mode 0644)" in caplog.text
