"""Who does not read stalls his own stream and no other, and nobody keeps more for him than his windows."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bounds.stalling import DEAF, ECHO, FLOOD, GIVE, SMALL_BUFFER, Ends, Moods, ask, ends, is_given
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.services import Address, UdpEcho
from tests.support.traffic import receive_exactly, receive_to_end
from tests.support.waiting import wait_until

TIMEOUT = 60.0
MIB = 1 << 20
CHUNK = 65536
# Without any progress for so long nothing is on its way any more. Seconds.
STILL = 1.0
# Seconds of processor time in a second of waiting from which on a process counts as spinning.
SPINNING = 0.5
# What both processes may grow by for one stream: its windows, 16 and 8 MiB, and what the allocator needs beside them.
ONE_STREAM = 40 * MIB


@pytest.fixture
def local() -> Iterator[Moods]:
    """The service; a UDP echo has the same port."""
    port = free_port()
    with Moods(port) as service, UdpEcho(port=port):
        try:
            yield service
        finally:
            service.over.set()


def sender(user: socket.socket) -> Callable[[], int]:
    """A function that sends as much as a non-blocking socket takes now, and returns how much it has taken in all."""
    sent = 0

    def send() -> int:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += user.send(bytes(CHUNK))
        return sent

    return send


def wait_until_still(figure: Callable[[], int]) -> None:
    """Waits until a figure that grows grows no more."""
    last, since = figure(), time.monotonic()

    def still() -> bool:
        nonlocal last, since
        now = figure()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= STILL

    wait_until(still, TIMEOUT, "it stands still")


def echoes(ends: Ends, size: int) -> None:
    """A new connection carries so many bytes there and back."""
    data = os.urandom(size)
    with ask(ends.public, ECHO) as user:
        sender = threading.Thread(target=user.sendall, args=(data,))
        sender.start()
        assert receive_exactly(user, size) == data
        sender.join()


@pytest.mark.parametrize("carrier", ["native", "quic"])
def test_a_user_who_does_not_read(certificate: Certificate, tmp_path: Path, local: Moods, carrier: str) -> None:
    with (
        ends(tmp_path, certificate, local.address, network="both", udp_forward_mode=carrier) as made,
        ask(made.public, ECHO) as first,
        ask(made.public, FLOOD) as user,
    ):
        before = made.memory()
        wait_until_still(lambda: local.sent)
        stopped_at = local.sent
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(old_udp(made))
            echoes(made, 10 * MIB)
            old()
        first.sendall(b"!")
        assert first.recv(1) == b"!"
        assert local.sent == stopped_at  # the sender would still go on
        for now, then in zip(made.memory(), before, strict=True):
            assert now - then < ONE_STREAM
        # Once he reads, all of it comes, and more.
        received = receive_exactly(user, stopped_at + MIB)
        block = bytes(range(256))
        assert received == (block * (len(received) // 256 + 1))[: len(received)]


@contextlib.contextmanager
def old_udp(made: Ends) -> Iterator[Callable[[], None]]:
    """A UDP source; what is yielded exchanges some datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.connect(made.public)
        source.settimeout(1.0)

        def exchange() -> None:
            for size in (1, 1000, 30000):
                data = os.urandom(size)

                def answered(data: bytes = data) -> bool:
                    source.send(data)
                    with contextlib.suppress(TimeoutError):
                        while source.recv(65536) != data:
                            pass
                        return True
                    return False

                wait_until(answered, TIMEOUT, "a datagram comes back")

        exchange()
        yield exchange


@pytest.mark.parametrize("carrier", ["native", "quic"])
def test_a_service_that_does_not_read(certificate: Certificate, tmp_path: Path, local: Moods, carrier: str) -> None:
    with (
        ends(tmp_path, certificate, local.address, network="both", udp_forward_mode=carrier) as made,
        ask(made.public, DEAF) as user,
    ):
        before = made.memory()
        user.setblocking(False)
        sending = sender(user)
        wait_until_still(sending)
        stopped_at = sending()
        with old_udp(made) as exchange:
            echoes(made, 10 * MIB)
            exchange()
        assert sending() == stopped_at
        for now, then in zip(made.memory(), before, strict=True):
            assert now - then < ONE_STREAM


def test_one_slow_reader_among_64(certificate: Certificate, tmp_path: Path, local: Moods) -> None:
    with ends(tmp_path, certificate, local.address) as made, contextlib.ExitStack() as stack:
        slow = stack.enter_context(ask(made.public, FLOOD, receive_buffer=SMALL_BUFFER))
        over = threading.Event()

        def read_slowly() -> None:
            while not over.wait(0.1):  # 10 KiB a second
                receive_exactly(slow, 1024)

        reader = threading.Thread(target=read_slowly)
        reader.start()
        stack.callback(reader.join)
        stack.callback(over.set)
        others = [stack.enter_context(ask(made.public, GIVE)) for _ in range(63)]
        arrived = []
        threads = [
            threading.Thread(target=lambda user=user: arrived.append(is_given(receive_to_end(user)))) for user in others
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert arrived == [True] * 63
        assert reader.is_alive()  # the slow one is still served
        echoes(made, MIB)


# Sleeps in a second from which on a process is kept busy; heartbeats, probes and window updates are some ten.
BUSY = 200


def sleeps_of(pid: int) -> int:
    """How often the threads of a process have gone to sleep so far."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches")]
        total += int(line.split()[1])
    return total


def processor_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def test_who_is_held_back_keeps_nobody_busy(certificate: Certificate, tmp_path: Path, local: Moods) -> None:
    """What one costs is his memory: neither end looks after him again and again."""
    with ends(tmp_path, certificate, local.address) as made, ask(made.public, FLOOD, receive_buffer=SMALL_BUFFER):
        wait_until_still(lambda: local.sent)
        processes = made.server.pid, made.client.pid
        before = [(sleeps_of(pid), processor_of(pid)) for pid in processes]
        time.sleep(1.0)
        for pid, (sleeps, processor) in zip(processes, before, strict=True):
            assert sleeps_of(pid) - sleeps < BUSY
            assert processor_of(pid) - processor < SPINNING


# So many that first windows of 2 MiB would be more than the receiving end may hold; and no more, for each of them also
# takes 2.5 MiB of the memory that the kernel has for all TCP connections of the machine (net.ipv4.tcp_mem).
STALLED = 300
BUDGET = 512 * MIB
# What their windows may hold at the end that receives: the first ones, and what they grew by, which is half of the
# budget; and the allocator's part.
MANY_STREAMS = (STALLED * 256 * 1024 + BUDGET // 2) * 5 // 4
# What the kernel may hold for a socket that takes nothing: UNSENT_MAX of _native/tunnel/stream.c, what the far end had
# room for, and one write (READ_MAX) that went beyond the mark.
UNTAKEN = 1 * MIB


@pytest.mark.alone  # the buffers of its sockets are a good part of the memory that the kernel has for TCP
@pytest.mark.parametrize("way", ["to the user", "to the service"])
def test_many_stalled_readers_leave_the_connection_to_others(
    certificate: Certificate, tmp_path: Path, local: Moods, way: str
) -> None:
    budget = {"receive_memory": BUDGET}
    options = {"network": "both", "udp_forward_mode": "quic", **budget}
    with (
        ends(tmp_path, certificate, local.address, server=budget, **options) as made,
        contextlib.ExitStack() as stack,
    ):
        before = made.memory()
        mood = FLOOD if way == "to the user" else DEAF
        users = [stack.enter_context(ask(made.public, mood, receive_buffer=SMALL_BUFFER)) for _ in range(STALLED)]
        if mood == FLOOD:
            wait_until_still(lambda: local.sent)
        else:
            sent = 0
            for user in users:
                user.setblocking(False)

            def send() -> int:
                nonlocal sent
                for user in users:
                    with contextlib.suppress(BlockingIOError):
                        sent += user.send(bytes(CHUNK))
                return sent

            wait_until_still(send)
        for now, then in zip(made.memory(), before, strict=True):
            assert now - then < MANY_STREAMS
        with old_udp(made) as exchange:
            echoes(made, 10 * MIB)
            exchange()
        with ask(made.public, GIVE) as fresh:
            assert is_given(receive_to_end(fresh))
        assert "receive_memory is used up" not in made.server.output() + made.client.output()


def unacknowledged(local: Address, remote: Address) -> int:
    """Bytes that the kernel holds for a TCP connection of this machine, from one end to the other (proc_net_tcp)."""

    def text(address: Address) -> str:
        return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"

    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == [text(local), text(remote)]:
            return int(fields[4].partition(":")[0], 16)
    raise AssertionError(f"no connection from {local} to {remote}")


def test_the_kernel_holds_little_for_a_user_who_does_not_read(
    certificate: Certificate, tmp_path: Path, local: Moods
) -> None:
    """His connection is one that the engine has accepted."""
    with (
        ends(tmp_path, certificate, local.address) as made,
        ask(made.public, FLOOD, receive_buffer=SMALL_BUFFER) as user,
    ):
        receive_exactly(user, MIB)
        wait_until_still(lambda: local.sent)
        assert 0 < unacknowledged(made.public, user.getsockname()) < UNTAKEN


@pytest.mark.parametrize("options", [{}, {"proxy_protocol": "v1"}], ids=["engine", "worker"])
def test_the_kernel_holds_little_for_a_service_that_does_not_read(
    certificate: Certificate, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The engine has dialled it; or a worker has, as with a PROXY header."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ends(tmp_path, certificate, listener.getsockname(), **options) as made,
        socket.create_connection(made.public) as user,
    ):
        user.setblocking(False)
        listener.settimeout(TIMEOUT)
        service, dialled_from = listener.accept()
        sending = sender(user)
        with service:
            wait_until_still(sending)
            assert 0 < unacknowledged(dialled_from, service.getsockname()) < UNTAKEN
