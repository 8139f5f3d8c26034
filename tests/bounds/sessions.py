"""What many client sessions on one host cost, and how fast they join: ``python -m tests.bounds.sessions``.

The server is a process of its own, and so is the program with the sessions, whose memory, threads and descriptors are
read from /proc before and after. Then the server is killed and started again on the same address. With ``--objects``
the same number of ``Client`` objects is measured, which have a host each.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from asport_sync.client.client import Client
from asport_sync.client.session import ClientSession
from asport_sync.config import ClientConfig
from asport_sync.engine import Engine
from asport_sync.host.host import Host
from asport_sync.runtime import descriptors
from tests.e2e.tunnels import SERVER_READY, client_options, server_process
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.waiting import wait_until

SETTLED = 2.0  # seconds until what has just joined is measured: the engine has probed the path by then
TIMEOUT = 20.0
FIRST_PORT = 20000


def memory() -> int:
    """Bytes of physical memory of this process that nothing else shares, after returning what is free."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    private = [int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))]
    return 1024 * sum(private)


def figures() -> dict[str, int]:
    """What this process holds now."""
    return {
        "memory": memory(),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def wait_for_line() -> None:
    """Wait until the program that started this one says that it may go on."""
    if not sys.stdin.readline():
        raise SystemExit("the measuring program has ended")


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Sessions:
    """Sessions on one host."""

    def __init__(self, configs: list[ClientConfig]) -> None:
        self._host = Host(Engine(), 0, 60.0, logging.getLogger("asport_sync.client"))
        self._host.start()
        for config in configs:
            self._host.add(ClientSession(config.tunnels[""], self._host))

    def joins(self) -> int:
        """How often a session has joined so far."""
        return self._host.counters.snapshot().get("joined", 0)

    def stop(self) -> None:
        """Stop all."""
        self._host.stop(TIMEOUT)


class Objects:
    """``Client`` objects, each with a host."""

    def __init__(self, configs: list[ClientConfig]) -> None:
        self._clients = [Client.from_config(config) for config in configs]
        for client in self._clients:
            client.start()

    def joins(self) -> int:
        """How often one has joined so far."""
        hosts = [client._host for client in self._clients]
        return sum(host.counters.snapshot().get("joined", 0) for host in hosts if host is not None)

    def stop(self) -> None:
        """Stop all."""
        for client in self._clients:
            client.stop()


def inside(options: list[dict[str, Any]], objects: bool) -> None:
    """The program with the sessions."""
    logging.getLogger("asport_sync").setLevel(logging.ERROR)
    descriptors.raise_limit()
    configs = [ClientConfig.from_options(**each) for each in options]
    number = len(configs)
    before = figures()
    began = time.monotonic()
    made = Objects(configs) if objects else Sessions(configs)
    wait_until(lambda: made.joins() == number, TIMEOUT, "all have joined")
    joined = time.monotonic() - began
    time.sleep(SETTLED)
    say(joined=joined, before=before, after=figures())
    wait_until(lambda: made.joins() == 2 * number, TIMEOUT, "all are back")  # the server is killed meanwhile
    say(back=time.monotonic())
    wait_for_line()
    made.stop()


@contextlib.contextmanager
def program_with_options(arguments: list[str], options: object) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Starts a program whose option ``--options`` names a file with these options as JSON; kills it in the end.

    The file has no name that others could open, because the options contain passwords.

    Yields:
        The program, and what it writes.
    """
    with tempfile.TemporaryFile() as configuration:
        configuration.write(json.dumps(options).encode())
        configuration.seek(0)
        with subprocess.Popen(
            [*arguments, f"--options=/dev/fd/{configuration.fileno()}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[configuration.fileno()],
        ) as program:
            try:
                assert program.stdout is not None
                yield program, program.stdout
            finally:
                program.kill()


def measure(number: int, objects: bool, folder: Path, certificate: Certificate) -> dict[str, Any]:
    """Run both programs and return the figures of one session.

    Returns:
        ``joined`` and ``back`` in seconds, from the start of the first session and of the second server;
        ``memory`` in bytes, ``threads`` and ``descriptors``, per session.
    """
    address = ("127.0.0.1", free_port())
    last_port = FIRST_PORT + 2 * number
    proxy = {"allow_ports": [{"start": FIRST_PORT, "end": last_port}], "max_clients": 2 * number}
    options = client_options(certificate, address, ("127.0.0.1", 9), network="tcp")
    changes: dict[str, Any] = {"server": f"{address[0]}:{address[1]}", "proxy": proxy}
    arguments = [sys.executable, "-m", "tests.bounds.sessions", "--inside", *(["--objects"] if objects else [])]
    with server_process(folder, certificate, **changes) as server:
        server.wait_for(SERVER_READY, TIMEOUT)
        with program_with_options(arguments, [options] * number) as (program, answers):
            first = json.loads(answers.readline())
            server.send_signal(signal.SIGKILL)
            server.wait(TIMEOUT)
            began = time.monotonic()
            with server_process(folder, certificate, **changes):
                back = json.loads(answers.readline())["back"] - began
                program.communicate("\n", TIMEOUT)
    each = {name: (first["after"][name] - first["before"][name]) / number for name in first["before"]}
    return {"joined": first["joined"], "back": back, **each}


def line(what: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"| {what} | {found['memory'] / 1024:.0f} KiB | {found['threads']:.2f} | {found['descriptors']:.2f} "
        f"| {found['joined']:.2f} s | {found['back']:.2f} s |"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--objects", action="store_true", help="measure Client objects instead, a host each")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(json.loads(Path(arguments.options).read_text(encoding="utf-8")), arguments.objects)
        return
    with tempfile.TemporaryDirectory() as folder:
        certificate = self_signed(Path(folder))
        found = measure(arguments.sessions, arguments.objects, Path(folder), certificate)
    what = "Client objects" if arguments.objects else "sessions on one host"
    print("| | memory each | threads each | descriptors each | all joined | all back |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(line(f"{arguments.sessions} {what}", found))


if __name__ == "__main__":
    main()
