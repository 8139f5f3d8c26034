"""Connections that stay open: how many, their memory, and closing them all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from bench import load
from bench.rows.row import MIB, Cells, Failure, FreshRow, Line, MeasurementFailed, Setting, Table, attempt, line_of
from bench.tunnels import Running, Tunnel

SIDES = ("server", "client")
REST = Table("memory", "Resident memory of each process at rest", "MiB", SIDES, lower_is_better=True, decimals=1)
EACH = Table(
    "connection memory", "Memory of an idle open connection, by process", "KiB", SIDES, lower_is_better=True, decimals=1
)
CLOSED = Table("closing", "Closing all at once, until the service has seen it", "s", ("all",), lower_is_better=True)
HELD = Table("held", "Connections held open that answer", "of those tried", ("many", "crowd"), decimals=0)
BESIDE = Table(
    "beside closing", "Bulk download, 1 stream: begun as connections are closed, against before", "x", ("speed",)
)

DESCRIPTORS = 20_000  # limit of both sides
LIMITED = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
# With fewer connections than this, memory is not a matter of connections.
ENOUGH = 500
SETTLING = 0.3  # seconds until memory is looked at
PATIENCE = 3.0  # seconds without progress after which no more connections are expected


class HoldRow(FreshRow):
    """Memory at rest and with many idle connections, which are then closed."""

    name = "hold"
    tables = (REST, EACH, HELD, CLOSED)
    prefix = LIMITED

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._idle = int(setting.pick(4_000, 1_000))
        self._all = int(setting.pick(5_000, 1_500))
        self._crowd = 9_000
        self.notes = (
            f"memory at {self._idle} connections; {self._all} held and closed; crowd: {self._crowd} tried, "
            f"with a limit of {DESCRIPTORS} descriptors, for asport-sync only",
        )

    def cells(self, line: Line) -> Cells:
        cells = super().cells(line)
        if line.name == "asport-sync":
            cells.update(attempt([HELD.key("crowd")], self._crowded, line))
        return cells

    def measure(self, running: Running, line: Line) -> Cells:
        time.sleep(SETTLING)
        rest = running.memory_kib()
        cells: Cells = {key: kib / 1024 for key, kib in zip(REST.keys, rest, strict=True)}
        keys = (*EACH.keys, HELD.key("many"), *CLOSED.keys)
        return {**cells, **attempt(keys, self._many, running, rest)}

    def _many(self, running: Running, rest: tuple[int, int]) -> Cells:
        service = self.setting.service.address
        with load.hold(running.tcp, service=service, count=self._idle, timeout=PATIENCE) as held:
            if held.answered < ENOUGH:
                reason = Failure(f"holds {held.answered} connections")
                return {**dict.fromkeys((*EACH.keys, *CLOSED.keys), reason), HELD.key("many"): float(held.answered)}
            time.sleep(SETTLING)
            growth = (now - before for before, now in zip(rest, running.memory_kib(), strict=True))
            cells: Cells = {key: kib / held.answered for key, kib in zip(EACH.keys, growth, strict=True)}
            more = self._all - self._idle
            with load.hold(running.tcp, service=service, count=more, timeout=PATIENCE) as others:
                cells[HELD.key("many")] = float(held.check().answered + others.check().answered)
                cells.update(attempt(CLOSED.keys, self._closed, held, others))
        return cells

    def _closed(self, held: load.Hold, others: load.Hold) -> Cells:
        seconds = []
        helper = threading.Thread(target=lambda: seconds.append(others.close()))
        helper.start()
        # These came first, so the service is back at the number before them when all have ended.
        closed = held.close()
        helper.join()
        if closed.left:
            raise MeasurementFailed(f"{closed.left} were open still after {closed.seconds:.0f} s")
        return {CLOSED.key("all"): closed.seconds}

    def _crowded(self, line: Line) -> Cells:
        place = self.setting.place(server_prefix=LIMITED, client_prefix=LIMITED)
        service = self.setting.service.address
        with line.open(place) as running:
            with load.hold(running.tcp, service=service, count=self._crowd, timeout=PATIENCE) as held:
                return {HELD.key("crowd"): float(held.check().answered)}


class ClosingRow(FreshRow):
    """A bulk transfer that starts in the moment in which thousands of connections are closed."""

    name = "closing"
    tables = (BESIDE,)
    prefix = LIMITED
    # The others take long to open so many connections, or can't.
    measured = ("asport-sync", "frp TLS")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._count = int(setting.pick(5_000, 1_500))
        self._size = int(setting.pick(256, 128)) * MIB
        self.notes = (f"{self._count} connections; only tunnels that open so many fast",)

    def lines(self, tunnels: Sequence[Tunnel]) -> list[Line]:
        return [line_of(tunnel) for tunnel in tunnels if tunnel.name in self.measured]

    def measure(self, running: Running, line: Line) -> Cells:
        return attempt(BESIDE.keys, self._ratio, running)

    def _ratio(self, running: Running) -> Cells:
        self._speed(running)  # warms up
        with load.hold(running.tcp, service=self.setting.service.address, count=self._count, timeout=PATIENCE) as held:
            before = self._speed(running)
            closing = threading.Thread(target=held.close)
            closing.start()
            try:
                during = self._speed(running)
            finally:
                closing.join()
        return {BESIDE.key("speed"): during / before}

    def _speed(self, running: Running) -> float:
        done = load.bulk(running.tcp, direction="down", total=self._size, timeout=10.0)
        if not done.ok:
            raise MeasurementFailed("; ".join(done.errors[:2]) or "not all bytes arrived")
        return done.gigabits_per_second
