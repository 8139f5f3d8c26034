"""What idle clients cost, in bytes a day and in processor time: ``python -m tests.bounds.idle``.

The server is a process of its own, and so is the program with the clients, all on one host. Once all have joined and
the paths have been probed, both are left alone for a while. Bytes are those of the IP packets, both ways, as the
clients' engine counts them. Processor time is that of the server, scaled to 10,000 clients; the more clients are
measured, the less it owes to what a server does anyway.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asport_sync.client.session import ClientSession
from asport_sync.client.shared import Shared
from asport_sync.config import ClientConfig
from asport_sync.engine import Engine
from asport_sync.host.host import Host
from asport_sync.runtime import descriptors
from tests.bounds.sessions import program_with_options, say, wait_for_line
from tests.e2e.tunnels import SERVER_READY, client_options, server_process
from tests.support.certificates import Certificate, self_signed
from tests.support.ports import free_port
from tests.support.waiting import wait_until

DAY = 86400
HEADERS = 28  # bytes of an IPv4 and a UDP header
SCALE = 10000  # clients
SETTLED = 10.0  # seconds until the paths have been probed and nothing of the beginning is under way
JOINED = 120.0  # seconds until some more have joined; only a failure waits so long
TOGETHER = 200  # clients that join at the same time: one process could not answer 10,000 handshakes in time
FIRST_PORT = 20000

KEEP_ALIVE = (("750ms", "10s"), ("15s", "60s"))  # and the server's max_idle_time

# What the page promises of clients with ``keep_alive: 15s`` at a server with ``max_idle_time: 60s``.
MAX_BYTES_PER_DAY = 1_000_000
MAX_SERVER_SHARE = 0.08  # of a core, for SCALE clients


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        bytes_per_day: Of one client, both ways, with all headers.
        server_share: Of a core, for ``SCALE`` clients.
        client_share: Of a core, for one client.
    """

    bytes_per_day: float
    server_share: float
    client_share: float


def processor_time(pid: int) -> float:
    """Seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def joined(host: Host) -> int:
    """How many clients have joined so far."""
    return host.counters.snapshot().get("joined", 0)


def inside(options: dict[str, Any], number: int) -> None:
    """The program with the clients: says when all have joined, then each time it is asked what was sent so far."""
    logging.getLogger("asport_sync").setLevel(logging.ERROR)
    descriptors.raise_limit()
    (tunnel,) = ClientConfig.from_options(**options).tunnels.values()
    host = Host(Engine(), 0, 60.0, logging.getLogger("asport_sync.client"))
    host.start()
    try:
        shared = Shared(host)
        for begin in range(0, number, TOGETHER):
            end = min(begin + TOGETHER, number)
            for _ in range(begin, end):
                host.add(ClientSession(tunnel, host, shared=shared))
            wait_until(lambda end=end: joined(host) >= end, JOINED, f"{end} have joined")  # type: ignore[misc]
        time.sleep(SETTLED)
        for _ in range(2):
            counted = host.engine.counters()
            datagrams = counted["quic_datagrams_sent"] + counted["quic_datagrams_received"]
            total = counted["quic_bytes_sent"] + counted["quic_bytes_received"] + HEADERS * datagrams
            say(bytes=total, joins=joined(host))
            wait_for_line()
    finally:
        host.stop(20.0)


def measure(
    number: int, seconds: float, keep_alive: str, max_idle_time: str, folder: Path, certificate: Certificate
) -> Cost:
    """Measure so many clients for so long.

    Raises:
        AssertionError: A client lost its connection meanwhile.
    """
    address = ("127.0.0.1", free_port())
    proxy = {"allow_ports": [{"start": FIRST_PORT, "end": FIRST_PORT + 2 * number}], "max_clients": 2 * number}
    options = client_options(certificate, address, ("127.0.0.1", 9), network="tcp", keep_alive=keep_alive)
    changes: dict[str, Any] = {
        "server": f"{address[0]}:{address[1]}",
        "proxy": proxy,
        "max_idle_time": max_idle_time,
        "max_clients_total": 2 * number,
    }
    arguments = [sys.executable, "-m", "tests.bounds.idle", "--inside", "--clients", str(number)]
    with server_process(folder, certificate, **changes) as server:
        server.wait_for(SERVER_READY, JOINED)
        with program_with_options(arguments, options) as (program, answers):
            assert program.stdin is not None
            first = json.loads(answers.readline())
            pids = (server.pid, program.pid)
            used = [processor_time(pid) for pid in pids]
            began = time.monotonic()
            time.sleep(seconds)
            used = [processor_time(pid) - before for pid, before in zip(pids, used, strict=True)]
            lasted = time.monotonic() - began
            program.stdin.write("\n")
            program.stdin.flush()
            second = json.loads(answers.readline())
            program.communicate("\n", 30.0)
    assert second["joins"] == first["joins"] == number, "a client lost its connection"
    return Cost(
        (second["bytes"] - first["bytes"]) / number / lasted * DAY,
        used[0] / lasted / number * SCALE,
        used[1] / lasted / number,
    )


def main() -> None:
    """Measure, print a table, and fail if quiet clients cost more than the documentation promises."""
    parser = argparse.ArgumentParser(prog="python -m tests.bounds.idle", description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--only-long", action="store_true", help="only the longer keep_alive, which more clients can have on one host"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(json.loads(Path(arguments.options).read_text(encoding="utf-8")), arguments.clients)
        return
    print(f"| keep_alive | max_idle_time | bytes per client and day | server, {SCALE:,} clients | a client |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        certificate = self_signed(Path(folder))
        for keep_alive, max_idle_time in KEEP_ALIVE[1:] if arguments.only_long else KEEP_ALIVE:
            cost = measure(arguments.clients, arguments.seconds, keep_alive, max_idle_time, Path(folder), certificate)
            print(
                f"| {keep_alive} | {max_idle_time} | {cost.bytes_per_day:,.0f} "
                f"| {100 * cost.server_share:.1f} % of a core | {100 * cost.client_share:.4f} % of a core |",
                flush=True,
            )
    if cost.bytes_per_day > MAX_BYTES_PER_DAY or cost.server_share > MAX_SERVER_SHARE:
        raise SystemExit("quiet clients cost more than docs/operations.md promises")


if __name__ == "__main__":
    main()
