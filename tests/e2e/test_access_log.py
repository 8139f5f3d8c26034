"""The access log of both commands: who came, to which port, for how long, with how many bytes, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asport_sync import ConfigError, Server
from tests.e2e.tunnels import (
    READY_TIMEOUT,
    USER,
    both_echoes,
    client_process,
    public_port,
    server_address,
    server_options,
    server_process,
)
from tests.support.certificates import Certificate
from tests.support.process import Process
from tests.support.services import Address, host_and_port
from tests.support.traffic import connect, expect_reset
from tests.support.waiting import wait_until

END = 15.0
HELLO = b"hello, service"
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} (?P<network>tcp|udp) (?P<visitor>\S+) port (?P<port>\d+)"
    r"(?P<user> user \S+)?: (?P<outcome>.+) after (?P<seconds>\d+\.\d) s, (?P<sent>\d+) bytes from "
    r"and (?P<received>\d+) bytes to the visitor"
)


class Commands(NamedTuple):
    """Both commands, in front of an echo service."""

    server: Process
    client: Process
    public: Address
    logs: dict[str, Path]


@contextlib.contextmanager
def commands(
    certificate: Certificate,
    folder: Path,
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    local: Address | None = None,
) -> Iterator[Commands]:
    """Both commands with access logs, unless the options say otherwise."""
    logs = {side: folder / f"{side}.access" for side in ("server", "client")}
    with contextlib.ExitStack() as stack:
        if local is None:
            local = stack.enter_context(both_echoes())[0].address
        options: dict[str, Any] = {"access_log": str(logs["server"]), "udp_session_timeout": "1s", **(server or {})}
        running = stack.enter_context(server_process(folder, certificate, **options))
        address = server_address(running)
        options = {"access_log": str(logs["client"]), "udp_timeout": "1s", **(client or {})}
        joined = stack.enter_context(client_process(folder, certificate, address, local, **options))
        yield Commands(running, joined, (address[0], public_port(joined)), logs)


def exchange(visitor: socket.socket) -> None:
    """Sends something, and waits for the answer."""
    visitor.sendall(HELLO)
    received = b""
    while len(received) < len(HELLO):
        received += visitor.recv(len(HELLO))
    assert received == HELLO


def lines_of(path: Path, count: int) -> list[str]:
    """Waits for so many complete lines."""

    def look() -> list[str] | None:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return lines if len(lines) >= count else None

    found = wait_until(look, READY_TIMEOUT, f"{path.name} has {count} lines")
    assert found is not None
    assert len(found) == count
    return found


def parsed(line: str) -> dict[str, str]:
    """The parts of a line."""
    found = LINE.fullmatch(line)
    assert found is not None, line
    return found.groupdict()


@pytest.mark.parametrize("relay", ["engine", "workers"])
def test_a_finished_connection_has_a_line_on_both_sides(certificate: Certificate, tmp_path: Path, relay: str) -> None:
    with commands(certificate, tmp_path, server={"relay": relay}, client={"relay": relay}) as pair:
        with connect(pair.public) as visitor:
            name = host_and_port(visitor.getsockname())
            exchange(visitor)
        for side in ("server", "client"):
            (line,) = lines_of(pair.logs[side], 1)
            parts = parsed(line)
            assert parts.pop("user") == (f" user {USER}" if side == "server" else None)
            assert float(parts.pop("seconds")) < END
            length = str(len(HELLO))
            expected = {"network": "tcp", "visitor": name, "port": str(pair.public[1]), "outcome": "finished"}
            assert parts == {**expected, "sent": length, "received": length}
            assert pair.logs[side].stat().st_mode & 0o137 == 0


def test_who_reset_a_connection(certificate: Certificate, tmp_path: Path) -> None:
    with commands(certificate, tmp_path) as pair:
        with connect(pair.public) as visitor:
            exchange(visitor)
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for side in ("server", "client"):
            (line,) = lines_of(pair.logs[side], 1)
            assert parsed(line)["outcome"] == "reset by visitor"


def test_a_service_that_resets(certificate: Certificate, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as service,
        commands(certificate, tmp_path, local=service.getsockname()) as pair,
    ):
        with connect(pair.public) as visitor:
            visitor.sendall(HELLO)
            accepted, _ = service.accept()
            assert accepted.recv(100) == HELLO
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        for side in ("server", "client"):
            (line,) = lines_of(pair.logs[side], 1)
            assert parsed(line)["outcome"] == "reset by service"


def test_a_service_that_is_not_there(certificate: Certificate, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = service.getsockname()
    with commands(certificate, tmp_path, local=address) as pair:
        expect_reset(pair.public)
        (line,) = lines_of(pair.logs["server"], 1)
        assert parsed(line)["outcome"] == "refused by the client"


def test_connections_that_are_lost_with_the_client_still_name_their_user(
    certificate: Certificate, tmp_path: Path
) -> None:
    with commands(certificate, tmp_path) as pair, connect(pair.public) as visitor:
        exchange(visitor)
        pair.client.send_signal(signal.SIGTERM)
        assert pair.client.wait(END) == 0
        (line,) = lines_of(pair.logs["server"], 1)
        parts = parsed(line)
        assert (parts["outcome"], parts["user"], parts["sent"]) == ("connection lost", f" user {USER}", str(len(HELLO)))


@pytest.mark.parametrize("relay", ["engine", "workers"])
def test_udp_associations_have_a_line_when_they_have_been_idle(
    certificate: Certificate, tmp_path: Path, relay: str
) -> None:
    with commands(certificate, tmp_path, server={"relay": relay}, client={"relay": relay}) as pair:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.settimeout(READY_TIMEOUT)
            visitor.connect(pair.public)
            name = host_and_port(visitor.getsockname())
            for _ in range(3):
                visitor.send(HELLO)
                assert visitor.recv(100) == HELLO
        for side in ("server", "client"):
            (line,) = lines_of(pair.logs[side], 1)
            parts = parsed(line)
            assert 1 <= float(parts.pop("seconds")) < END
            assert parts.pop("user") == (f" user {USER}" if side == "server" else None)
            length = str(3 * len(HELLO))
            expected = {"network": "udp", "visitor": name, "port": str(pair.public[1]), "outcome": "finished"}
            assert parts == {**expected, "sent": length, "received": length}


@pytest.mark.parametrize("side", ["server", "client"])
def test_visitors_whom_a_rule_does_not_let_in_have_a_line(certificate: Certificate, tmp_path: Path, side: str) -> None:
    """Where the rule is: on the server, or on the client, which resets what the server has accepted."""
    rules: dict[str, Any] = {"deny_from": "127.0.0.1"}
    changes: dict[str, Any] = {"client": rules} if side == "client" else {"server": {"proxy": rules}}
    with commands(certificate, tmp_path, **changes) as pair:
        expect_reset(pair.public)
        (line,) = lines_of(pair.logs[side], 1)
        whose = f" user {USER}" if side == "server" else ""
        why = "refused, not permitted by allow_from and deny_from; the latest of 1"
        expected = rf"TIME tcp 127\.0\.0\.1:\d+ port {pair.public[1]}{whose}: {re.escape(why)}"
        assert re.fullmatch(expected.replace("TIME", r"\S+"), line), line
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.sendto(HELLO, pair.public)
            _, line = lines_of(pair.logs[side], 2)
        assert " udp 127.0.0.1:" in line
        assert why in line


def test_visitors_beyond_a_limit_have_a_line_a_second(certificate: Certificate, tmp_path: Path) -> None:
    options = {"log_format": "json", "proxy": {"max_connections": 1}}
    with commands(certificate, tmp_path, server=options) as pair:
        log = pair.logs["server"]
        with connect(pair.public) as visitor:
            exchange(visitor)

            def refused() -> int:
                expect_reset(pair.public)
                lines = [json.loads(line) for line in log.read_text().splitlines()]
                assert {line["outcome"] for line in lines} <= {"refused, max_connections are open"}
                return len(lines) >= 2 and sum(line["refused"] for line in lines)

            count = wait_until(refused, READY_TIMEOUT, "there are two lines")
        assert count is not None
        assert count > 2  # fewer lines than refusals
        record = json.loads(log.read_text().splitlines()[0])
        assert record.pop("time")
        assert record.pop("visitor_port")
        assert record == {
            "network": "tcp",
            "visitor": "127.0.0.1",
            "port": pair.public[1],
            "user": USER,
            "outcome": "refused, max_connections are open",
            "refused": 1,
        }


def test_json_lines(certificate: Certificate, tmp_path: Path) -> None:
    """``-`` is stderr, among the log lines."""
    with commands(certificate, tmp_path, server={"log_format": "json", "access_log": "-", "log_level": "off"}) as pair:
        with connect(pair.public) as visitor:
            host, port = visitor.getsockname()
            exchange(visitor)
        found = pair.server.wait_for(r'^.*"network": "tcp".*$', READY_TIMEOUT)
        record = json.loads(found[0])
        assert record.pop("time")
        assert 0 <= record.pop("seconds") < END
        assert record == {
            "network": "tcp",
            "visitor": host,
            "visitor_port": port,
            "port": pair.public[1],
            "user": USER,
            "outcome": "finished",
            "bytes_from_visitor": len(HELLO),
            "bytes_to_visitor": len(HELLO),
        }


def is_open_in(pid: int, path: Path) -> bool:
    """Whether a process has a descriptor of this file."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return str(path) in found


def test_sigusr1_opens_the_file_again(certificate: Certificate, tmp_path: Path) -> None:
    """As logrotate wants it: renamed, then signalled."""
    with commands(certificate, tmp_path) as pair:
        log = pair.logs["server"]
        with connect(pair.public) as visitor:
            exchange(visitor)
        lines_of(log, 1)
        old = log.rename(tmp_path / "server.access.1")
        with connect(pair.public) as visitor:
            exchange(visitor)
        lines_of(old, 2)
        assert not log.exists()
        pair.server.send_signal(signal.SIGUSR1)
        wait_until(lambda: not is_open_in(pair.server.pid, old), READY_TIMEOUT, "the old file is closed")
        with connect(pair.public) as visitor:
            exchange(visitor)
        lines_of(log, 1)
        lines_of(old, 2)


def test_a_pipe_without_a_reader_is_an_error_at_the_start(certificate: Certificate, tmp_path: Path) -> None:
    """An error, and no hang; the start leaves nothing behind, as the fixtures check."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    server = Server(**server_options(certificate, access_log=str(fifo)))
    with pytest.raises(ConfigError, match="a named pipe without a reader") as caught:
        server.start()
    assert (caught.value.path, caught.value.key) == (str(fifo), "access_log")
    assert not server.running


def test_a_file_that_accepts_nothing_blocks_no_connection(certificate: Certificate, tmp_path: Path) -> None:
    """A FIFO that is full, as a disk that hangs."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        filling = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filling, bytes(4096))
        os.close(filling)
        with commands(certificate, tmp_path, server={"access_log": str(fifo)}) as pair:
            for _ in range(20):
                with connect(pair.public) as visitor:
                    exchange(visitor)
            lines_of(pair.logs["client"], 20)
            pair.server.send_signal(signal.SIGTERM)
            assert pair.server.wait(END) == 0
    finally:
        os.close(reader)


def test_a_file_that_cannot_be_opened(certificate: Certificate, tmp_path: Path) -> None:
    with server_process(tmp_path, certificate, access_log=str(tmp_path / "missing/log")) as server:
        assert server.wait(END) == 1
        problem = f"asport-sync: {tmp_path}/missing/log: access_log: cannot be opened: No such file or directory"
        assert server.output().splitlines()[-1] == problem


def test_without_an_access_log_the_engine_reports_no_associations(certificate: Certificate, tmp_path: Path) -> None:
    with commands(certificate, tmp_path, server={"access_log": None}) as pair:
        with connect(pair.public) as visitor:
            exchange(visitor)
        lines_of(pair.logs["client"], 1)
        assert not pair.logs["server"].exists()
