"""Files that are FIFOs: a program writes the secret when it is asked for, or nobody ever does."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from asport_sync.config import Credential, credentials, load_client
from asport_sync.errors import ConfigError


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "client.yaml"
    os.mkfifo(path, 0o600)
    return path


def test_a_fifo_without_a_writer_is_an_error(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_FIFO_TIMEOUT", 0.1)
    nothing = r"client.yaml: .*nothing was written to the FIFO within 0.1 s"
    with pytest.raises(ConfigError, match=nothing):
        Credential(path=fifo).read("certificate")
    with pytest.raises(ConfigError, match=nothing):
        load_client(fifo)


def test_a_writer_may_come_later(fifo: Path) -> None:
    begun = threading.Event()

    def write() -> None:
        assert begun.wait(10)
        fifo.write_bytes(b"certificate")

    writer = threading.Thread(target=write)
    writer.start()
    threading.Timer(0.2, begun.set).start()  # the reader waits by then, in most runs; the result is the same in all
    assert Credential(path=fifo).read("certificate") == b"certificate"
    writer.join(10)


def test_a_writer_without_a_word_is_an_empty_file(fifo: Path) -> None:
    writer = threading.Thread(target=lambda: fifo.open("wb").close())
    writer.start()
    with pytest.raises(ConfigError, match="the file is empty"):
        Credential(path=fifo).read("certificate")
    writer.join(10)
