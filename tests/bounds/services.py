"""What many tunnels in one client process cost, and how fast they join: ``python -m tests.bounds.services``.

The server and the client are the commands, each a process of its own. The client has 1, 10 and 100 tunnels; its
memory, threads and descriptors are read from /proc once all are public.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.e2e.tunnels import (
    CLIENT_READY,
    PASSWORD,
    SERVER_READY,
    USER,
    command,
    server_process,
    write_config,
)
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.waiting import wait_until

TUNNELS = (1, 10, 100)
SETTLED = 2.0  # seconds until what has just joined is measured: the engine has probed the path by then
TIMEOUT = 20.0
FIRST_PORT = 20000


class Found(NamedTuple):
    """What a client with some tunnels takes.

    Attributes:
        tunnels: Their number.
        memory: Resident set in bytes.
        threads: Threads.
        descriptors: Open descriptors.
        started: Seconds from the start of the process until the first tunnel is public.
        joined: Seconds from the first to the last.
    """

    tunnels: int
    memory: int
    threads: int
    descriptors: int
    started: float
    joined: float


def measure(number: int, folder: Path, certificate: Certificate) -> Found:
    """Run a server and a client with so many tunnels, and return what the client takes."""
    address = ("127.0.0.1", free_port())
    # Some may be in use, so each tunnel takes what is free.
    proxy = {"allow_ports": [{"start": FIRST_PORT, "end": FIRST_PORT + 2 * number + 100}], "max_clients": number}
    options = {
        "server": f"{address[0]}:{address[1]}",
        "uuid": USER,
        "password": PASSWORD,
        "certificates": {"paths": [str(certificate.trusted)], "disable_native": True},
        "network": "tcp",
        "tunnels": {f"service-{each}": {"local": "127.0.0.1:9"} for each in range(number)},
    }
    path = write_config(folder, "client", options)
    with server_process(folder, certificate, server=f"{address[0]}:{address[1]}", proxy=proxy) as server:
        server.wait_for(SERVER_READY, TIMEOUT)
        began = time.monotonic()
        with Process(command("client", "run", "-c", str(path), "-v"), name="client") as client:

            def public() -> int:
                return len(re.findall(CLIENT_READY, client.output(), re.MULTILINE))

            wait_until(lambda: public() > 0, TIMEOUT, "the first has joined", detail=client.output)
            first = time.monotonic()
            wait_until(lambda: public() == number, TIMEOUT, "all have joined", detail=client.output)
            last = time.monotonic()
            time.sleep(SETTLED)
            process = Path(f"/proc/{client.pid}")
            status = (process / "status").read_text(encoding="ascii")
            resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
            assert resident
            return Found(
                number,
                1024 * int(resident[1]),
                len(os.listdir(process / "task")),
                len(os.listdir(process / "fd")),
                first - began,
                last - first,
            )


def line(found: Found) -> str:
    """One row of the table."""
    return (
        f"| {found.tunnels} | {found.memory / (1 << 20):.1f} MiB | {found.threads} | {found.descriptors} "
        f"| {found.started:.2f} s | {found.joined:.2f} s |"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tunnels", type=int, nargs="*", default=TUNNELS)
    print("| tunnels | memory | threads | descriptors | first public after | all after that |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in parser.parse_args().tunnels:
        with tempfile.TemporaryDirectory() as folder:
            print(line(measure(number, Path(folder), self_signed(Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
