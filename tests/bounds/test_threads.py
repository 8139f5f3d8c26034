"""A process that gets no more threads: a start that fails leaves nothing, and a running client goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.certificates import Certificate
from tests.support.process import REPOSITORY
from tests.support.services import TcpEcho

# A stack so large that no thread can be had any more.
SCRIPT = """
import contextlib, sys, threading
from pathlib import Path
from asport_sync import Client, Server
from asport_sync.errors import LifecycleError
from tests.bounds.old_work import answers, old_work
from tests.e2e.tunnels import client_options, counter, server_options, tunnel
from tests.support.certificates import Certificate
from tests.support.leaks import belongings, check_nothing_left
from tests.support.traffic import expect_reset
from tests.support.waiting import wait_until
from asport_sync.client import local_tcp
certificate = Certificate(*map(Path, sys.argv[1:4]))

@contextlib.contextmanager
def no_threads():
    threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(0)
"""

START = """
before = belongings()
server = Server(**server_options(certificate))
client = Client(**client_options(certificate, ("127.0.0.1", 9), ("127.0.0.1", 9)))
for end in (server, client):
    with no_threads():
        try:
            end.start()
        except LifecycleError as problem:
            print(problem)
        else:
            raise SystemExit("it started without threads")
    assert not end.running
check_nothing_left(before)
with server:
    assert server.running
check_nothing_left(before)
"""

RUNNING = """
# A name is looked up by a worker for every connection, and every worker needs a thread.
assert local_tcp._CHOICE_LASTS
local_tcp._CHOICE_LASTS = 0.0
with tunnel(certificate, ("localhost", int(sys.argv[4]))) as made:
    workers = made.client._running().host.workers
    workers._idle_time = 0.05
    with old_work(made.public, udp=False) as old:
        wait_until(lambda: workers.threads == 0, 20, "no worker is left")
        with no_threads():
            expect_reset(made.public)
            old.goes_on()
        assert counter(made.client, "streams_refused_no_thread") == 1
        wait_until(lambda: answers(made.public), 20, "new connections are served again")
        old.goes_on()
"""


@pytest.mark.parametrize("body", [pytest.param(START, id="start"), pytest.param(RUNNING, id="running")])
def test_without_threads(certificate: Certificate, body: str) -> None:
    files = [certificate.certificate, certificate.private_key, certificate.trusted]
    with TcpEcho() as service:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT + body, *files, str(service.address[1])],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
