"""The machine that is measured on, and whether it was quiet enough."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.rows.row import MIB

RULER_SIZE = 512 * MIB
# Quickest by slowest direct transfer; on a quiet machine it is 1.1 to 1.3.
WIDE_SPREAD = 1.5
# Shares of the CPU time of all cores.
MUCH_STOLEN = 0.02
BUSY_BEFORE = 0.1
WATCHED = 1.0  # seconds that the machine is watched before anything is started


def describe() -> dict[str, str]:
    """Return what the results depend on."""
    return {
        "processor": _first(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "congestion control of TCP": _text(Path("/proc/sys/net/ipv4/tcp_congestion_control")),
        "Python": platform.python_version(),
    }


def _first(file: Path, name: str) -> str:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return "unknown"


@dataclass(frozen=True)
class Look:
    """The machine at one moment.

    Attributes:
        after: What had just been measured.
        at: Seconds of the monotonic clock.
        gigabits_per_second: Of a transfer without a tunnel.
        stolen: Seconds that the hypervisor has given to others so far, all cores.
    """

    after: str
    at: float
    gigabits_per_second: float
    stolen: float


class Noise:
    """Looks at the machine again and again, and tells whether it was quiet.

    Watches the machine for a moment when it is made, before anything is measured.

    Args:
        service: The local service.
    """

    def __init__(self, service: load.Service) -> None:
        self._service = service
        began, busy = time.monotonic(), busy_seconds()
        time.sleep(WATCHED)
        elapsed = (time.monotonic() - began) * (os.cpu_count() or 1)
        self.busy_before = min(1.0, (busy_seconds() - busy) / elapsed)
        self.looks: list[Look] = []

    def look(self, after: str) -> None:
        """Look once, in a fraction of a second: the faster of two transfers, as tunnels may still be ending."""
        transfers = [load.bulk(self._service.address, direction="down", total=RULER_SIZE) for _ in range(2)]
        speed = max(done.gigabits_per_second for done in transfers)
        self.looks.append(Look(after, time.monotonic(), speed, stolen_seconds()))

    def median(self) -> float:
        """Return Gbit/s of the transfers without a tunnel."""
        return statistics.median(look.gigabits_per_second for look in self.looks)

    def spread(self) -> float:
        """Return the quickest by the slowest transfer without a tunnel."""
        speeds = [look.gigabits_per_second for look in self.looks]
        return max(speeds) / min(speeds)

    def stolen(self) -> float:
        """Return the share of all CPU time that the hypervisor gave to others."""
        first, last = self.looks[0], self.looks[-1]
        elapsed = (last.at - first.at) * (os.cpu_count() or 1)
        return (last.stolen - first.stolen) / elapsed if elapsed > 0 else 0.0

    def flags(self) -> list[str]:
        """Return why the machine was noisy; nothing where it was quiet."""
        found = []
        if self.spread() > WIDE_SPREAD:
            slowest = min(self.looks, key=lambda look: look.gigabits_per_second)
            found.append(
                f"transfers without a tunnel differ by a factor of {self.spread():.2f}; the slowest came after "
                f"{slowest.after}"
            )
        if self.stolen() > MUCH_STOLEN:
            found.append(f"the hypervisor gave {self.stolen():.1%} of the CPU time to others")
        if self.busy_before > BUSY_BEFORE:
            found.append(f"{self.busy_before:.0%} of the CPU time was used before anything was measured")
        return found


def stolen_seconds() -> float:
    """Return the CPU time that was stolen from all cores since the machine started."""
    return _cpu_seconds()[7]


def busy_seconds() -> float:
    """Return the CPU time that all cores have worked since the machine started."""
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, _stolen = _cpu_seconds()
    return user + nice + system + interrupts + soft_interrupts


def _cpu_seconds() -> list[float]:
    # "cpu", eight times by kind, and the time of guests, which the first kind holds already.
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
