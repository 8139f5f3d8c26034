"""The commands under the journal of systemd, as far as it can be told without one: tests/e2e/test_systemd.py has it."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_process,
    command,
    public_port,
    server_address,
    server_options,
    server_process,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.process import Process
from tests.support.traffic import connect

TIME = re.compile(r"^\d{4}-\d\d-\d\dT")
# systemd sets the variable to device and inode of what it connects stderr to; here that is the file of the test.
# Not a shell, which may crash under ThreadSanitizer.
_STARTER = """
import os, sys
stderr = os.fstat(2)
os.execve(sys.argv[1], sys.argv[1:], {**os.environ, "JOURNAL_STREAM": f"{stderr.st_dev}:{stderr.st_ino}"})
"""
UNDER_THE_JOURNAL = (sys.executable, "-c", _STARTER)


def under_the_journal(process: Process) -> Process:
    """A command, not started yet, whose stderr is what JOURNAL_STREAM says."""
    process.argv = [*UNDER_THE_JOURNAL, *process.argv]
    return process


def test_lines_have_a_priority_instead_of_a_time(tmp_path: Path, certificate: Certificate) -> None:
    path = write_config(tmp_path, "server", server_options(certificate, log_level="debug"))
    path.chmod(0o644)
    argv = command("server", "run", "-c", str(path))
    with under_the_journal(Process(argv, name="server")) as server:
        server.wait_for("accepting clients")
        path.write_text("{")
        server.send_signal(signal.SIGHUP)
        server.wait_for("previous configuration stays in use")
        server.stop()
        lines = server.output().splitlines()
    assert all(re.match("<[3467]>[A-Z]+ [a-z]+: ", line) for line in lines), lines
    starts = {re.split("[ :]", line)[0] for line in lines}
    assert starts == {"<3>ERROR", "<4>WARNING", "<6>INFO", "<7>DEBUG"}
    assert f"<4>WARNING cli: {path} holds a secret and can be read by everyone (mode 0644)" in "\n".join(lines)


def test_a_start_that_fails_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text('{"server": 1, "local": 0}')
    with under_the_journal(Process(command("client", "run", "-c", str(path)), name="client")) as client:
        assert client.wait(READY_TIMEOUT) == 1
        lines = client.output().splitlines()
    assert lines[0].startswith(f"<3>asport-sync: {path}:1:2: ")
    assert len(lines) > 1
    assert all(line.startswith("<3>") for line in lines)


def test_the_access_log_on_stderr(tmp_path: Path, certificate: Certificate) -> None:
    with (
        both_echoes() as (tcp, _),
        under_the_journal(server_process(tmp_path, certificate, access_log="-")) as server,
        client_process(tmp_path, certificate, server_address(server), tcp.address) as client,
    ):
        with connect(("127.0.0.1", public_port(client))) as visitor:
            visitor.sendall(b"hello")
            assert visitor.recv(5)
        server.wait_for(r"^<6>tcp 127\.0\.0\.1:\d+ port \d+ user \S+: .* 5 bytes from and 5 bytes to the visitor$")


@pytest.mark.parametrize("changes", [{}, {"log_format": "json"}], ids=["text", "json"])
def test_nothing_changes_elsewhere(tmp_path: Path, certificate: Certificate, changes: dict[str, Any]) -> None:
    """With stderr redirected, and in JSON, which the journal passes on as it is."""
    process = server_process(tmp_path, certificate, access_log="-", **changes)
    if changes:
        process = under_the_journal(process)
    else:
        process.argv = ["env", "JOURNAL_STREAM=1:1", *process.argv]
    with process as server:
        server.wait_for("accepting clients")
        server.stop()
        lines = server.output().splitlines()
    assert len(lines) > 1
    for line in lines:
        time = json.loads(line)["time"] if changes else line
        assert TIME.match(time), line
