"""From process start to ready, and what an idle tunnel costs."""

from __future__ import annotations

import sys
import time

from bench.rows.row import Cells, FreshRow, Line, SharedRow, Table
from bench.tunnels import Running

SIDES = ("server", "client")
READY = Table("start", "Process start to ready", "s", SIDES, lower_is_better=True, decimals=3)
IDLE = Table("idle", "CPU time of an idle tunnel", "% of a core", SIDES, lower_is_better=True)

SETTLING = 1.0  # seconds after its start that a tunnel is not yet called idle


class StartRow(FreshRow):
    """Server: until its port is bound. Client: until a byte has come back through the public port."""

    name = "start"
    tables = (READY,)

    def measure(self, running: Running, line: Line) -> Cells:
        return dict(zip(READY.keys, running.ready_seconds, strict=True))


class IdleRow(SharedRow):
    """All tunnels at once: that is what idle means."""

    name = "idle"
    tables = (IDLE,)
    at_a_time = sys.maxsize

    def warm_up(self, running: Running) -> None:
        time.sleep(SETTLING)

    def measure(self, running: Running, line: Line) -> Cells:
        seconds = self.setting.pick(3.0, 2.0)
        before = running.cpu_seconds()
        time.sleep(seconds)
        used = (after - earlier for earlier, after in zip(before, running.cpu_seconds(), strict=True))
        return {key: 100 * share / seconds for key, share in zip(IDLE.keys, used, strict=True)}
