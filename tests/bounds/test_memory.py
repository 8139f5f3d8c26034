"""Where memory runs out, what is new is refused and what is there goes on; nothing crashes or waits for ever.

An allocator that fails would disturb others, so these run in a process with one of their own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bounds.old_work import answers, old_work
from tests.e2e.tunnels import both_echoes, client_process, public_port, server_address, server_process
from tests.support.certificates import Certificate
from tests.support.compiling import compiler_or_skip
from tests.support.process import REPOSITORY
from tests.support.waiting import wait_until

SOURCE = Path(__file__).with_name("fail_memory.c")
TIMEOUT = 20.0
CROWD = 500

SCRIPT = """
import contextlib, ctypes, os, re, socket, sys, time
from pathlib import Path
from asport_sync import Client
from asport_sync.errors import AsportError
from tests.bounds.old_work import answers, old_work
from tests.e2e.tunnels import both_echoes, client_options, tunnel
from tests.support.certificates import Certificate
from tests.support.traffic import connect
from tests.support.waiting import wait_until
allocator = ctypes.CDLL(None)
certificate = Certificate(*map(Path, sys.argv[1:4]))
carrier = sys.argv[4]
ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if "/_aq." in line]
first, end = int(ranges[0][0], 16), int(ranges[-1][1], 16)
allocator.watch_library(ctypes.c_size_t(first), ctypes.c_size_t(end))

with contextlib.ExitStack() as stack:
    service, _ = stack.enter_context(both_echoes())
    made = stack.enter_context(
        tunnel(certificate, service.address, client={"network": "both", "udp_forward_mode": carrier})
    )
    public = made.public
    old = stack.enter_context(old_work(public))
    def grown(name):
        return sum(made.engine_counter(side, name) for side in ("server", "client"))
"""

EVERYTHING = """
    allocator.fail_all(1)
    refused = 0
    for _ in range(20):
        with contextlib.suppress(OSError), socket.create_connection(public, timeout=10) as user:
            user.sendall(b"x")
            refused += user.recv(1) == b""
            continue
        refused += 1
    assert refused == 20, refused
    late = Client(**client_options(certificate, made.server.address, service.address, timeout=2))
    try:
        with late:
            late.wait_ready(3)
            raise SystemExit("it joined without memory")
    except AsportError as problem:
        print(f"as it should be: {problem}")
    old.goes_on()
    allocator.fail_all(0)
    assert allocator.failures() > 20
    assert grown("memory_failures") >= 20, grown("memory_failures")
    assert carrier == "native" or grown("memory_reserve_used") > 0
    assert made.client.port == public[1]
    wait_until(lambda: answers(public), 20, "new connections are served again")
    old.goes_on()
"""

# The bytes of stalled readers take all that is left. They began later, and have to go.
STALLED = """
    with contextlib.ExitStack() as crowd:
        users = [crowd.enter_context(connect(public)) for _ in range(40)]
        for user in users:
            user.sendall(b"x")
            assert user.recv(1) == b"x"
            user.setblocking(False)
        # Far more than the reserve: what the tunnel does not take stays with the users.
        allocator.fail_all(1)
        before = grown("memory_failures")
        for _ in range(20):
            for user in users:
                with contextlib.suppress(OSError):
                    while user.send(bytes(65536)):
                        pass
            old.goes_on()
        assert grown("memory_reserve_used") > 100
        assert grown("memory_failures") > before
        allocator.fail_all(0)
    assert made.client.port == public[1]
    wait_until(lambda: answers(public), 20, "new connections are served again")
    old.goes_on()
"""

EACH = """
    reached = True
    count = 0
    while reached:
        allocator.failures()
        allocator.fail_one_after(count)
        with contextlib.suppress(ConnectionError), socket.create_connection(public, timeout=20) as user:
            user.sendall(b"x" * 3000)
            got = 0
            while got < 3000 and (chunk := user.recv(3000)):
                assert chunk.strip(b"x") == b""
                got += len(chunk)
        time.sleep(0.02)  # what follows its end allocates, too
        allocator.fail_one_after(-1)
        reached = allocator.failures() > 0
        count += 1
        assert made.client.port == public[1]
        assert answers(public)
    assert count > 2, count
    print(f"{count - 1} allocations")
    old.goes_on()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = compiler_or_skip()
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the failing allocator is written for glibc")
    made = tmp_path_factory.mktemp("preloaded") / "fail_memory.so"
    # Without built-in knowledge of malloc the compiler does not optimise the calls.
    flags = ["-shared", "-fPIC", "-O1", "-fno-builtin"]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(made)], check=True, timeout=60)
    return made


@pytest.mark.parametrize("carrier", ["native", "quic"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(EVERYTHING, id="all fail"),
        pytest.param(STALLED, id="all fail, with stalled readers"),
        pytest.param(EACH, id="each fails once"),
    ],
)
def test_the_engine_without_memory(certificate: Certificate, library: Path, body: str, carrier: str) -> None:
    files = [certificate.certificate, certificate.private_key, certificate.trusted]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body, *files, carrier],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=REPOSITORY,
        env={**os.environ, "LD_PRELOAD": str(library)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_process_that_may_have_no_more_memory(certificate: Certificate, tmp_path: Path, side: str) -> None:
    """The kernel's own limit, which also meets Python, GnuTLS and the stacks of threads."""
    with (
        both_echoes() as (service, _),
        server_process(tmp_path, certificate) as server,
        client_process(tmp_path, certificate, server_address(server), service.address, network="both") as client,
        contextlib.ExitStack() as stack,
    ):
        public = ("127.0.0.1", public_port(client))
        short = server if side == "server" else client
        old = stack.enter_context(old_work(public))
        size = int(Path(f"/proc/{short.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.prlimit(short.pid, resource.RLIMIT_AS)
        resource.prlimit(short.pid, resource.RLIMIT_AS, (size, before[1]))
        with contextlib.ExitStack() as crowd:
            for _ in range(CROWD):
                with contextlib.suppress(OSError):  # reset, or there is no more room
                    user = crowd.enter_context(socket.create_connection(public, timeout=TIMEOUT))
                    user.setblocking(False)
                    while user.send(bytes(65536)):
                        pass
            old.goes_on()
            short.check_running()
        resource.prlimit(short.pid, resource.RLIMIT_AS, before)
        wait_until(lambda: answers(public), TIMEOUT, "new connections are served again", detail=short.description)
        old.goes_on()
