"""Connections and UDP sources that exist before something runs short, and have to go on through it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support.services import Address
from tests.support.traffic import connect, receive_exactly
from tests.support.waiting import wait_until

# Seconds for an answer that must come. Only a failure waits so long.
GRACE_PERIOD = 20.0
# Seconds after which a datagram counts as lost.
RESEND_AFTER = 1.0
ROUNDS = 5
SIZE = 100_000


class OldWork:
    """A TCP connection and a UDP source behind which echo services are. One thread."""

    def __init__(self, tcp: socket.socket, udp: socket.socket | None) -> None:
        self._tcp = tcp
        self._udp = udp

    def goes_on(self) -> None:
        """What is sent comes back as it was."""
        for _ in range(ROUNDS):
            data = os.urandom(SIZE)
            self._tcp.sendall(data)
            assert receive_exactly(self._tcp, SIZE) == data
            if self._udp is not None:
                self._exchange(self._udp, os.urandom(1000))

    @staticmethod
    def _exchange(udp: socket.socket, data: bytes) -> None:
        def answered() -> bool:
            udp.send(data)
            with contextlib.suppress(TimeoutError):
                while udp.recv(65536) != data:
                    pass  # an answer that came late
                return True
            return False

        wait_until(answered, GRACE_PERIOD, "a datagram comes back")


@contextlib.contextmanager
def old_work(public: Address, *, udp: bool = True) -> Iterator[OldWork]:
    """A TCP connection and a UDP source that have exchanged bytes already."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(connect(public))
        source: socket.socket | None = None
        if udp:
            source = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            source.connect(public)
            source.settimeout(RESEND_AFTER)
        work = OldWork(tcp, source)
        work.goes_on()
        yield work


def answers(public: Address) -> bool:
    """Whether an echo comes back over a new connection."""
    try:
        with socket.create_connection(public, timeout=2) as connection:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except OSError:
        return False


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def descriptors_of(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
