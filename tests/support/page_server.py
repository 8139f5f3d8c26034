"""The status page of a client or server that is played; as a program, its pictures in docs/.

``python -m tests.support.page_server`` writes docs/status-light.png, status-dark.png and status-phone.png.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from asport_sync import __version__
from asport_sync.control.application import Application
from asport_sync.control.operations import Operations
from asport_sync.control.status import Row, Status
from asport_sync.control.wsgi_server import WsgiServer
from asport_sync.host.stats import Stats
from tests.control.fake import ROW, USERS, FakeOperations
from tests.support.browser import browser

DOCS = Path(__file__).resolve().parents[2] / "docs"
ANSWERS = 140
"""Answers that the charts of the pictures show."""


@contextlib.contextmanager
def shown(operations: Operations, token: str | None = None) -> Iterator[str]:
    """Serve the page; its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    host, port = sock.getsockname()
    environ = {"SERVER_NAME": host, "SERVER_PORT": str(port)}
    server = WsgiServer(Application(operations, token), sock, name="asport-test", environ=environ)
    server.start()
    try:
        yield f"http://{host}:{port}/"
    finally:
        server.stop(10.0)


class Moving(FakeOperations):
    """Three tunnels with traffic that goes up and down; each look at them is two seconds later."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = {"packet_drop_queue_full": 12, "connections_dropped_local_service": 3}
        self.looks = 0

    def snapshot(self) -> tuple[Status, Stats]:
        status, stats = super().snapshot()
        summary = "3 of 3 tunnels public: web on 203.0.113.9:30001, ssh on 203.0.113.9:30002, game on 203.0.113.9:30003"
        return dataclasses.replace(status, version=__version__, pid=4711, uptime=3 * 86400.0, summary=summary), stats

    def step(self) -> None:
        """Lets two seconds pass."""
        self.looks += 1
        self.time += 2
        self.tunnels = tuple(self._row(number, name) for number, name in enumerate(("web", "ssh", "game")))

    def _row(self, number: int, name: str) -> Row:
        wave = 1 + math.sin(self.looks / (4 + 3 * number))
        before = next((row for row in self.tunnels if row.name == name), None)
        received = (0 if before is None else before.payload_received or 0) + int(wave * 400_000 / (number + 1))
        sent = (0 if before is None else before.payload_sent or 0) + int(wave * 3_000_000 / (number + 1))
        return dataclasses.replace(
            ROW,
            id=f"tunnel {name}",
            name=name,
            user=USERS[0],
            public=f"203.0.113.9:{30001 + number}",
            local=("127.0.0.1:8080", "127.0.0.1:22", "127.0.0.1:27015")[number],
            since=time.time() - 86400 * (number + 1),
            error=None,
            connections=int(6 * wave) + number,
            associations=40 if name == "game" else 0,
            payload_received=received,
            payload_sent=sent,
            rtt=0.018 + 0.002 * number + 0.001 * wave,
        )


def main() -> None:
    """Write the pictures."""
    for name, width, dark in (("light", 1440, False), ("dark", 1440, True), ("phone", 390, False)):
        operations = Moving()
        operations.step()
        with shown(operations) as address, browser() as page:
            page.look(width, 720, dark=dark)
            page.open(address)
            while page.value_of("typeof show") != "function":
                time.sleep(0.05)
            for _ in range(ANSWERS):  # faster than the page itself asks
                operations.step()
                page.value_of("fetch('v1/status').then(answer => answer.json()).then(show)")
            page.screenshot(DOCS / f"status-{name}.png")


if __name__ == "__main__":
    main()
