"""System calls that the kernel refuses, as the filter of a container does with those that are newer than it.

Such a filter says EPERM (old runc, libseccomp and podman) or ENOSYS. What can be done without goes on; what can't be
says what is missing; and nobody loops.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    both_echoes,
    client_process,
    command,
    public_port,
    server_address,
    server_process,
    write_config,
)
from tests.support.certificates import Certificate
from tests.support.data import seeded_bytes
from tests.support.process import Process
from tests.support.refusing import numbers, refused
from tests.support.sanitized import preloaded
from tests.support.services import TcpEcho
from tests.support.traffic import UdpPeer, connect, echo

# Without these there is no program: they fail before the first line of ours, or at the first socket.
INDISPENSABLE = {"epoll_create1", "eventfd2", "pipe2", "recvmsg", "sendmsg"}
TOGETHER = {
    "every way to wait but the oldest": ("epoll_pwait2", "epoll_pwait"),
    "limits of the process": ("prlimit64", "getrlimit", "setrlimit"),
}
# A glibc that is refused clone3 with another word than ENOSYS starts no threads.
ONLY_ENOSYS = {"clone3"}
WATCHED = 0.5  # seconds of an idle tunnel in which its processor time is taken
# Seconds of processor time in these: an idle program takes 0.01, one that loops all of them.
IDLE = 0.25

pytestmark = [
    pytest.mark.skipif(not numbers(), reason="the numbers of the system calls of this machine are not known here"),
    pytest.mark.skipif(bool(preloaded()), reason="a sanitizer makes system calls of its own"),
]


def without(process: Process, calls: Sequence[str], error: int) -> Process:
    known = [call for call in calls if call in numbers()]
    process.argv = refused(known, error, process.argv)
    return process


def processor_time(process: Process) -> float:
    """Seconds that it has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def single() -> list[tuple[str, ...]]:
    return [(call,) for call in sorted(set(numbers()) - INDISPENSABLE)]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("calls", [*single(), *TOGETHER.values()], ids=lambda calls: " ".join(calls))
def test_what_can_be_done_without_goes_on(
    certificate: Certificate, tmp_path: Path, calls: tuple[str, ...], error: int
) -> None:
    if error != errno.ENOSYS and ONLY_ENOSYS & set(calls):
        pytest.skip(f"the C library starts no thread where {calls[0]} is refused with anything but ENOSYS")
    with (
        both_echoes() as (service, _),
        without(server_process(tmp_path, certificate), calls, error) as server,
        without(client_process(tmp_path, certificate, server_address(server), service.address), calls, error) as client,
    ):
        public = ("127.0.0.1", public_port(client))
        data = seeded_bytes(1, 300_000)
        assert echo(public, data) == data
        with UdpPeer(public) as user:
            user.ask(b"question", b"question")
        before = processor_time(server) + processor_time(client)
        time.sleep(WATCHED)
        assert processor_time(server) + processor_time(client) - before < IDLE
        for process in (client, server):
            process.send_signal(signal.SIGTERM)
            assert process.wait(READY_TIMEOUT) == 0, process.description()
            assert "Traceback" not in process.output()


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    ("calls", "missing"),
    [
        (("epoll_create1",), r"it needs epoll and eventfd"),
        (("eventfd2",), r"it needs epoll and eventfd"),
        (("pipe2",), r"refused by the system: .*pipe2?\("),
    ],
    ids=["epoll_create1", "eventfd2", "pipe2"],
)
def test_what_is_missing_is_said(
    certificate: Certificate, tmp_path: Path, calls: tuple[str, ...], missing: str, error: int
) -> None:
    with without(server_process(tmp_path, certificate, control_socket="off"), calls, error) as server:
        assert server.wait(READY_TIMEOUT) == 1, server.description()
        assert re.search(missing, server.output()), server.description()
        assert server.output().count("\n") == 1


def test_a_c_library_that_starts_no_threads_is_said(certificate: Certificate, tmp_path: Path) -> None:
    with without(server_process(tmp_path, certificate, control_socket="off"), ("clone3",), errno.EPERM) as server:
        if server.wait(READY_TIMEOUT) != 1:
            pytest.skip("this C library starts threads without clone3")
        assert server.output().startswith("asport-sync: can't start new thread")
        assert "clone3" in server.output()


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (("epoll_pwait2", "epoll_pwait", "epoll_wait"), "the engine cannot wait for its sockets"),
        (("recvmmsg", "recvmsg"), "the system refuses to receive QUIC packets"),
        (("sendmsg",), "the system refuses to send QUIC packets"),
    ],
    ids=["wait", "receive", "send"],
)
def test_an_engine_that_can_do_nothing_says_so_and_sleeps(
    certificate: Certificate, tmp_path: Path, calls: tuple[str, ...], line: str, error: int
) -> None:
    with (
        TcpEcho() as service,
        without(server_process(tmp_path, certificate, control_socket="off"), calls, error) as server,
        client_process(tmp_path, certificate, server_address(server), service.address),
    ):
        server.wait_for(f"WARNING engine: {line}", READY_TIMEOUT)
        before = processor_time(server)
        time.sleep(WATCHED)
        assert processor_time(server) - before < IDLE
        server.send_signal(signal.SIGTERM)
        assert server.wait(READY_TIMEOUT) == 0, server.description()


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
def test_a_port_that_can_accept_nothing_says_so_and_sleeps(
    certificate: Certificate, tmp_path: Path, error: int
) -> None:
    with (
        TcpEcho() as service,
        without(server_process(tmp_path, certificate, control_socket="off"), ("accept4", "accept"), error) as server,
        client_process(tmp_path, certificate, server_address(server), service.address) as client,
        connect(("127.0.0.1", public_port(client))),
    ):
        server.wait_for(f"WARNING server: .*{os.strerror(error)}", READY_TIMEOUT)
        before = processor_time(server)
        time.sleep(WATCHED)
        assert processor_time(server) - before < IDLE


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
def test_check(tmp_path: Path, error: int) -> None:
    options = {"server": "localhost:443", "local": "localhost:80", "uuid": "0" * 8 + "-0000-4000-8000-" + "0" * 12}
    path = write_config(tmp_path, "client", {**options, "password": "open sesame"})
    calls = ("sched_getaffinity", "prlimit64")
    with without(Process(command("client", "check", "-c", str(path))), calls, error) as check:
        assert check.wait(READY_TIMEOUT) == 0, check.description()
        assert check.output() == "ok\n"
