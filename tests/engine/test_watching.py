"""A socket that epoll does not take is not forgotten: who opened it hears of it, and one that rested is tried again.

A kernel that refuses would disturb others, so these run in a process with a library in front of the kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certificates import Certificate
from tests.support.compiling import compiler_or_skip
from tests.support.process import REPOSITORY
from tests.support.sanitized import preloaded

SOURCE = Path(__file__).with_name("refuse_watching.c")

SCRIPT = """
import ctypes, errno, os, socket, sys
from pathlib import Path
import pytest
from asport_sync.engine import Carrier, SourceUnknown, StreamOpened, error_number
from asport_sync.errors import EngineError, GoneError
from tests.engine.pair import EVENT_TIMEOUT, connected, expect_reset
from tests.engine.test_traffic import expect_count, expect_source, open_association, udp_socket
from tests.engine.test_sockets import listening, no_descriptors_left, user_of
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until
library = ctypes.CDLL(None)
refuse = library.refuse_watching
certificate = Certificate(*map(Path, sys.argv[1:4]))

def expect_refused(call):
    refuse(1)
    with pytest.raises(EngineError) as caught:
        call()
    assert not isinstance(caught.value, GoneError)
    assert error_number(caught.value) == errno.ENOSPC

with connected(certificate) as pair:
    pair.set_joined(Carrier.DATAGRAM)
"""

OPEN = """
    with udp_socket() as sock, udp_socket() as user:
        descriptors = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            expect_refused(lambda: pair.server_connection.open_udp(sock, public=True))
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        udp = pair.server_connection.open_udp(sock, public=True)
        user.sendto(b"hello", sock.getsockname())
        expect_source(pair, udp, user)
        udp.close()
"""

GIVE_BACK = """
    with open_association(pair) as assoc:
        # As if the engine had left the socket to the pump; there it would have been taken out.
        expect_refused(assoc.public.give_back)
        assoc.public.give_back()
        assoc.to_service(b"goes on")
        assert assoc.service.recv(100) == b"goes on"
"""

UDP_BACK_OFF = """
    with open_association(pair) as assoc:
        refuse(3)
        library.fail_reading(assoc.public_socket.getsockname()[1])
        assoc.visitor.send(b"waits")
        expect_count(pair.server, "watch_failures", 3)
        assert pair.server.counter("udp_receive_errors") == 1
        assert assoc.service.recv(100) == b"waits"
"""

LISTENER_BACK_OFF = """
    with listening() as listener, socket.socket() as user:
        accepts = pair.server_connection.accept(listener)
        user.settimeout(EVENT_TIMEOUT)
        with no_descriptors_left():
            refuse(3)
            user.connect(listener.getsockname())
            expect_count(pair.server, "watch_failures", 3)
        pair.client.expect(StreamOpened).stream.refuse()
        expect_reset(user)
        accepts.close()
"""

LISTENER = """
    with listening() as listener:
        expect_refused(lambda: pair.server_connection.accept(listener))
        accepts = pair.server_connection.accept(listener)
        with user_of(listener):
            pair.client.expect(StreamOpened).stream.refuse()
        accepts.close()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if preloaded():
        pytest.skip(f"{Path(preloaded()).name} is preloaded, and wants to be the only one")
    compiler = compiler_or_skip()
    made = tmp_path_factory.mktemp("preloaded") / "refuse_watching.so"
    subprocess.run([*compiler, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(made)], check=True, timeout=60)
    return made


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(OPEN, id="UDP socket opened"),
        pytest.param(GIVE_BACK, id="UDP socket given back"),
        pytest.param(UDP_BACK_OFF, id="UDP socket rested"),
        pytest.param(LISTENER, id="listener opened"),
        pytest.param(LISTENER_BACK_OFF, id="listener rested"),
    ],
)
def test_what_cannot_be_watched(certificate: Certificate, library: Path, body: str) -> None:
    files = [certificate.certificate, certificate.private_key, certificate.trusted]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body, *files],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, "LD_PRELOAD": str(library)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
