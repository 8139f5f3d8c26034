"""What looks for secrets finds them."""

from __future__ import annotations

import threading

import pytest

from asport_sync.config import Credential, durations, paths
from asport_sync.errors import ConfigError
from asport_sync.runtime.threads import StopSignal
from tests.support.exposure import exposed, objects, threads, told


@pytest.mark.parametrize("secret", ["hunter2", b"\x00\xff\x10hunter2"])
def test_every_form_is_found(secret: str | bytes) -> None:
    raw = secret.encode() if isinstance(secret, str) else secret
    for text in (f"-{raw!r}-", raw.hex(), "aHVudGVyMg==" if isinstance(secret, str) else "AP8QaHVudGVyMg=="):
        assert len(exposed(text, secret)) >= 1
    assert exposed("nothing", secret) == []


def test_variables_on_the_way_of_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        durations.duration("hunter2")
    assert exposed(told(caught.value), "hunter2")
    assert exposed(told(caught.value), "caught by this test") == []  # variables of the test are left out


def test_an_error_behind_an_error() -> None:
    def hide() -> None:
        try:
            durations.duration("hunter2")
        except ConfigError:
            raise KeyError from None

    with pytest.raises(KeyError) as caught:
        hide()
    assert exposed(told(caught.value), "hunter2")


def test_variables_of_a_thread() -> None:
    stop = StopSignal()
    waiting = threading.Thread(target=stop.wait, args=(20.0,))
    waiting.start()
    try:
        assert any("timeout=20.0" in line for line in threads())
    finally:
        stop.set()
        waiting.join()
        stop.close()


def test_objects_of_our_classes() -> None:
    kept = Credential(path=paths.file_path("hunter2", None))
    assert kept.path is not None
    assert exposed("\n".join(objects()), "hunter2")
