"""What a process holds at one moment, and whether that has grown."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Memory may differ between two thirds of a run without anything having grown: the allocator keeps what it may need
# again, and in one third more of the traffic may be in memory than in another. Bytes, and a share of the middle third.
SLACK = 4 << 20
SLACK_SHARE = 0.05


@dataclass(frozen=True)
class Sample:
    """Figures of a process: seconds on the monotonic clock, resident bytes, threads, open descriptors."""

    moment: float
    memory: int
    threads: int
    descriptors: int


def sample(pid: int) -> Sample:
    """Look at a process.

    Raises:
        OSError: It is gone, or about to be: it has given up its memory already.
    """
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(("VmRSS", "Threads"))
    )
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has ended")
    memory = int(status["VmRSS"].split()[0]) * 1024
    return Sample(time.monotonic(), memory, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


@dataclass(frozen=True)
class Growth:
    """Resident bytes in the middle and the last third of a series, on average, and what they may differ by."""

    middle: float
    last: float

    @property
    def allowed(self) -> float:
        """How many bytes more the last third may have."""
        return max(SLACK, SLACK_SHARE * self.middle)

    @property
    def flat(self) -> bool:
        """Whether it stayed within that."""
        return self.last - self.middle <= self.allowed


def growth(samples: Sequence[Sample]) -> Growth:
    """Compare the last third of a series, by time, with the middle one."""
    begin, end = samples[0].moment, samples[-1].moment
    third = (end - begin) / 3
    middle = [each.memory for each in samples if begin + third <= each.moment < begin + 2 * third]
    last = [each.memory for each in samples if each.moment >= begin + 2 * third]
    return Growth(statistics.fmean(middle or [samples[0].memory]), statistics.fmean(last))
