"""The file of the access log; its lines are in tests/e2e/test_access_log.py."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import cast

from asport_sync.engine import Connection, StreamEnd, StreamResult
from asport_sync.host.visits import Served, Visits
from tests.host.fake_engine import FakeEngine


def test_what_is_closed_is_neither_closed_nor_opened_again(tmp_path: Path) -> None:
    """Its descriptor may be that of another file by then: a late SIGUSR1 must not replace that."""
    visits = Visits(tmp_path / "log", "text", "server")
    descriptor = visits._descriptor
    with (tmp_path / "other").open("wb") as file:
        visits.close()
        other = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, descriptor)
    assert other == descriptor
    visits.reopen()
    visits.close()
    os.write(other, b"still this file")
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b"still this file"


def test_connections_are_known_until_they_are_forgotten(tmp_path: Path) -> None:
    visits = Visits(tmp_path / "log", "text", "server")
    connection, refused = (cast(Connection, FakeEngine().new_connection()) for _ in range(2))
    visits.serve(connection, Served("", None, 1))
    assert (visits.serves(connection), visits.serves(refused)) == (True, False)
    visits.forget(connection)
    assert not visits.serves(connection)
    visits.close()


def test_a_line_has_the_name_of_the_user(tmp_path: Path) -> None:
    connection = cast(Connection, FakeEngine().new_connection())
    result = StreamResult(1, 2, StreamEnd.FINISHED)
    for form in ("text", "json"):
        visits = Visits(tmp_path / form, form, "server")
        visits.serve(connection, Served("", "UUID", 1, "alice"))
        visits.stream_ended(connection, ("192.0.2.7", 9), 1.0, result)
        visits.close()
    assert " port 1 user alice (UUID): " in (tmp_path / "text").read_text()
    found = json.loads((tmp_path / "json").read_text())
    assert (found["port"], found["user"], found["user_name"]) == (1, "UUID", "alice")
