"""Twenty minutes of mixed traffic through two tunnels that lose their connection again and again.

One pair of processes lives as long as the run, and a relay between them falls silent now and then; the processes of the
other are killed and ended and started again. In the end nothing may have been lost or falsified, and the processes that
lived long may not have grown: descriptors and threads are again what they were before the traffic, and the memory of
the last third of the run is that of the middle third (see ``sampling.SLACK``). Exit status 0: all that is so.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.pair import Pair
from tests.soak.sampling import Growth, Sample, growth, sample
from tests.soak.users import Users
from tests.support.certificates import self_signed
from tests.support.process import ProcessError
from tests.support.program import run_program
from tests.support.waiting import NeverHappened, wait_until

PERIOD = 10.0  # seconds between samples; a tenth of a short run
QUIET = 2.0  # seconds until what starting took is gone
SETTLE = 60.0  # seconds after the traffic until threads and sockets without work are gone
BETWEEN_DISTURBANCES = (15.0, 40.0)  # seconds

# Counters that stay 0 where the machine has enough of everything, whatever the users do.
NEVER = ("memory_failures", "memory_reserve_used", "events_lost", "events_failed", "tcp_accept_errors", "violations")


@dataclass
class Series:
    """The samples of one process, from its start to its end.

    Attributes:
        first: When it was seen first.
        after: Once the traffic was over and had left nothing behind; None: it did leave something, or the process did
            not live so long.
    """

    name: str
    pid: int
    first: Sample
    during: list[Sample] = field(default_factory=list)
    after: Sample | None = None
    counters: dict[str, int] = field(default_factory=dict)


class Soak:
    """A run."""

    def __init__(self, pairs: list[Pair], minutes: float, seed: int) -> None:
        self.pairs = pairs
        self.seconds = minutes * 60
        self.seed = seed
        self.series: dict[int, Series] = {}  # by pid; the main thread
        self.before: dict[str, Sample] = {}  # of each end, joined and without any traffic; by its name
        self.problems: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Everything, from the first sample to the last."""
        time.sleep(QUIET)
        self._sample()
        self.before = {series.name: series.first for series in self.series.values()}
        users = [Users(pair, self.seed) for pair in self.pairs]
        disturbers = [
            threading.Thread(target=self._disturb, args=(pair,), name=f"disturbs {pair.name}") for pair in self.pairs
        ]
        for user in users:
            user.start()
        for thread in disturbers:
            thread.start()
        end = time.monotonic() + self.seconds
        try:
            while time.monotonic() < end and not self.problems:
                time.sleep(min(PERIOD, self.seconds / 30))
                self._sample()
                self._say(end, users)
        finally:
            self._over.set()
            for thread in disturbers:
                thread.join()
            for user in users:
                user.stop()
        for user in users:
            self.problems += user.faults
            print(f"{user.pair.name}: " + ", ".join(f"{count:,} {name}" for name, count in sorted(user.counts.items())))
            print(f"{user.pair.name}: {len(user.pair.disturbances)} times cut off: {', '.join(user.pair.disturbances)}")
        self._settle()

    def _disturb(self, pair: Pair) -> None:
        chance = random.Random(f"{self.seed} {pair.name} disturbances")
        # The first and the last eighth of the run are quiet, so that each third has what it can be compared by.
        first, last = self.seconds / 8, self.seconds * 7 / 8
        began = time.monotonic()
        if self._over.wait(first):
            return
        try:
            while time.monotonic() - began < last:
                pair.disturb(chance)
                if self._over.wait(chance.uniform(*BETWEEN_DISTURBANCES)):
                    return
        except (ProcessError, NeverHappened, OSError) as problem:
            self.problems.append(f"{pair.name}: {problem}")

    def _sample(self) -> None:
        for pair in self.pairs:
            for side, process in pair.processes.items():
                with contextlib.suppress(OSError, AssertionError):  # being started again at this moment
                    pid = process.pid
                    now = sample(pid)
                    series = self.series.setdefault(pid, Series(f"{pair.name} {side}", pid, now))
                    series.during.append(now)
                    figures = pair.figures(side)
                    series.counters = {**figures.get("engine", {}), **figures.get("counters", {})}

    def _say(self, end: float, users: list[Users]) -> None:
        living = [series for series in self.series.values() if series.during[-1].moment > time.monotonic() - 1]
        parts = [
            f"{series.name} {series.during[-1].memory / 2**20:.0f} MiB {series.during[-1].descriptors} fd"
            for series in living
        ]
        faults = sum(user.counts["faults"] for user in users)
        print(f"{max(0.0, end - time.monotonic()):5.0f} s left: {'; '.join(parts)}; {faults} faults", flush=True)

    def _settle(self) -> None:
        """Waits until all ends hold what they held before, also those that were started in between."""
        for pair in self.pairs:
            for side, process in pair.processes.items():
                series = self.series.get(process.pid)
                if series is None:
                    continue
                before = self.before[series.name]

                def as_before(series: Series = series, before: Sample = before) -> bool:
                    now = sample(series.pid)
                    series.during.append(now)
                    return now.descriptors <= before.descriptors and now.threads <= before.threads

                try:
                    wait_until(as_before, SETTLE, f"{pair.name} {side} holds what it held before")
                except NeverHappened:
                    now = series.during[-1]
                    self.problems.append(
                        f"{series.name}: {now.descriptors} descriptors and {now.threads} threads are left, "
                        f"before the traffic {before.descriptors} and {before.threads}"
                    )
                else:
                    series.after = series.during[-1]

    def verdict(self) -> bool:
        """Prints the table and what is wrong; returns whether nothing is."""
        print(
            f"\n{'process':16}{'lived':>8}{'first':>9}{'middle':>9}{'last':>9}{'after':>9}{'grown':>9}{'allowed':>9}"
            f"{'fds':>10}{'threads':>9}   (MiB of memory)"
        )
        for series in self.series.values():
            lived = series.during[-1].moment - series.first.moment
            compared = growth([each for each in series.during if each.moment <= series.first.moment + self.seconds])
            print(self._row(series, lived, compared))
            # Younger processes are still growing into their work.
            if lived > self.seconds / 2 and not compared.flat:
                grown = (compared.last - compared.middle) / 2**20
                self.problems.append(f"{series.name}: the last third has {grown:.1f} MiB more than the middle one")
            self.problems += [
                f"{series.name}: {name} is {series.counters[name]}" for name in NEVER if series.counters.get(name)
            ]
        for problem in self.problems:
            print(f"FAULT: {problem}")
        print("flat, and every byte was right" if not self.problems else f"{len(self.problems)} faults")
        return not self.problems

    def _row(self, series: Series, lived: float, compared: Growth) -> str:
        after = series.after
        cells = [
            f"{series.first.memory / 2**20:.1f}",
            f"{compared.middle / 2**20:.1f}",
            f"{compared.last / 2**20:.1f}",
            f"{after.memory / 2**20:.1f}" if after else "-",
            f"{(compared.last - compared.middle) / 2**20:+.1f}",
            f"{compared.allowed / 2**20:.1f}",
        ]
        held, before = after or series.during[-1], self.before[series.name]
        return (
            f"{series.name:16}{lived:>6.0f} s"
            + "".join(f"{cell:>9}" for cell in cells)
            + f"{before.descriptors:>5} {held.descriptors:>4}{before.threads:>5} {held.threads:>3}"
        )


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long there is traffic (20)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="repeats a run")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be above 0")
    print(f"python -m tests.soak --minutes {arguments.minutes:g} --seed {arguments.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asport-soak-")))
        certificate = self_signed(directory / "certificate")
        pairs = [
            stack.enter_context(Pair("steady", directory, certificate, steady=True, carrier="native")),
            stack.enter_context(Pair("restarted", directory, certificate, steady=False, carrier="quic")),
        ]
        soak = Soak(pairs, arguments.minutes, arguments.seed)
        soak.run()
        return 0 if soak.verdict() else 1


if __name__ == "__main__":
    run_program(main)
