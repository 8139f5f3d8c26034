"""What peers have sent is held within one budget for a whole process, and given back once they have left."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from tests.bounds.old_work import memory_of
from tests.bounds.stalling import DEAF, ECHO, FLOOD, SMALL_BUFFER, Moods, ask
from tests.bounds.test_stalled import wait_until_still
from tests.e2e.tunnels import client_process, public_port, server_address, server_process, tunnel
from tests.support.certificates import Certificate
from tests.support.traffic import receive_exactly
from tests.support.waiting import wait_until

TIMEOUT = 60.0
MIB = 1 << 20
BUDGET = 64 * MIB
# Their first windows alone, 256 KiB each, are more than twice the budget.
STALLED = 600
# Their first windows have room beside half of the budget, which is there for windows that grow.
SLOW = 80
# Bytes that each of them reads at first: enough for its window to grow several times.
READ_AT_FIRST = 2 * MIB
# What a process may take besides: the streams themselves, 7 KiB each, segments kept for reuse, sends that wait for
# acknowledgements, and the allocator's part.
BESIDES = 128 * MIB
# And at the end, when nobody is there.
LEFT_OVER = 24 * MIB


def has_ended(user: socket.socket) -> bool:
    """Whether the tunnel has reset this connection."""
    try:
        return user.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("way", ["to the user", "to the service"])
def test_who_does_not_read_uses_up_his_own_part(certificate: Certificate, tmp_path: Path, way: str) -> None:
    """The budget of the receiving end is used up by one client's streams; another client's go on."""
    data = os.urandom(4 * MIB)
    other = tmp_path / "other"
    other.mkdir()
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(Moods())
        stack.callback(local.over.set)
        server = stack.enter_context(server_process(tmp_path, certificate, receive_memory=BUDGET))
        address = server_address(server)
        options = {"receive_memory": BUDGET, "network": "tcp"}
        greedy = stack.enter_context(client_process(tmp_path, certificate, address, local.address, **options))
        modest = stack.enter_context(client_process(other, certificate, address, local.address, **options))
        ports = [("127.0.0.1", public_port(client)) for client in (greedy, modest)]
        receiver = server if way == "to the user" else greedy
        before = memory_of(receiver.pid)

        old = stack.enter_context(ask(ports[1], ECHO))
        with contextlib.ExitStack() as crowd:
            mood = FLOOD if way == "to the user" else DEAF
            users = [crowd.enter_context(ask(ports[0], mood, receive_buffer=SMALL_BUFFER)) for _ in range(STALLED)]
            for user in users:
                user.setblocking(False)
            sent = 0

            def send() -> int:
                nonlocal sent
                for user in users:
                    with contextlib.suppress(BlockingIOError, OSError):
                        sent += user.send(bytes(65536))
                return sent

            wait_until_still((lambda: local.sent) if mood == FLOOD else send)
            receiver.wait_for("WARNING engine: receive_memory is used up")
            assert memory_of(receiver.pid) - before < BUDGET + BESIDES
            for port in ports:
                with ask(port, ECHO) as fresh:
                    fresh.sendall(data[:MIB])
                    assert receive_exactly(fresh, MIB) == data[:MIB]
            old.sendall(data[:MIB])
            assert receive_exactly(old, MIB) == data[:MIB]
            # Some were reset for the others; those that began first were not.
            if mood == FLOOD:
                assert not has_ended(users[0])
        old.close()
        local.over.set()  # what users have sent waits for the service as long as that is there
        wait_until(
            lambda: memory_of(receiver.pid) - before < LEFT_OVER,
            TIMEOUT,
            "memory goes back to the system",
            detail=lambda: f"{(memory_of(receiver.pid) - before) // MIB} MiB more than before",
        )


def test_readers_that_keep_up_and_stop_all_at_once_have_room(certificate: Certificate) -> None:
    """Windows grow no further than what they may bring fits into the budget; nobody is reset for having stopped."""
    options = {"receive_memory": BUDGET, "network": "tcp"}
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(Moods())
        stack.callback(local.over.set)
        made = stack.enter_context(
            tunnel(certificate, local.address, server={"receive_memory": BUDGET}, client=options)
        )
        users = [stack.enter_context(ask(made.public, FLOOD, receive_buffer=SMALL_BUFFER)) for _ in range(SLOW)]
        for user in users:
            receive_exactly(user, READ_AT_FIRST)
        wait_until_still(lambda: local.sent)
        assert made.engine_counter("server", "streams_shed") == 0
        assert made.engine_counter("server", "connections_shed") == 0
        # They go on where they were.
        for user in users:
            receive_exactly(user, MIB)
