"""Making a fault several times, and what came of it as a line of a table."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.recovery.faults import FULL, Fault, Scale

# What a promise may be missed by in tests: the machine may be busy with something else. The table shows the figures.
GRACE_PERIOD = 3.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds from the end of a fault to the first byte, of every repetition."""

    fault: type[Fault]
    seconds: list[float]

    @property
    def worst(self) -> float:
        """The longest."""
        return max(self.seconds)

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.seconds)

    @property
    def row(self) -> str:
        """The line of the table."""
        fault = self.fault
        promise = "" if fault.promise is None else f"{fault.promise:g} s"
        count = str(len(self.seconds))
        if fault.why_fewer and len(self.seconds) <= fault.repetitions:
            count += f" ({fault.why_fewer})"
        return f"| {fault.title} | {fault.how} | {promise} | {self.median:.2f} s | {self.worst:.2f} s | {count} |"


HEAD = (
    "| fault | how it is made, and when it ends | promise | median | worst | of |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def measure(
    fault: type[Fault],
    repetitions: int | None = None,
    scale: Scale = FULL,
    tell: Callable[[float], object] = lambda seconds: None,
) -> Measured:
    """Make a fault so often, or as often as it says itself. What the programs say where a promise is missed is printed.

    Args:
        fault: Which.
        repetitions: How often.
        scale: How long things last.
        tell: Told of each result.
    """
    seconds = []
    with tempfile.TemporaryDirectory(prefix="asport-recovery-") as directory, fault(Path(directory), scale) as made:
        for _ in range(repetitions or fault.repetitions):
            seconds.append(made.once())
            tell(seconds[-1])
            if fault.promise is not None and seconds[-1] > fault.promise:
                print(f"\nmissed: {seconds[-1]:.2f} s, until {time.ctime()}\n{made.description()}", file=sys.stderr)
    return Measured(fault, seconds)
