"""What one slow reader costs the 63 others, and which part of that is the tunnel's."""

from __future__ import annotations

import contextlib
import itertools
import math
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.bounds.stalling import SMALL_BUFFER, STREAM, Ends, ask
from tests.support.services import Address
from tests.support.traffic import receive_exactly

OTHERS = 63
# The machine itself varies by a quarter, and who goes first matters: seven times each order of the three cases.
RUNS = 7 * math.factorial(3)
WARM_UP = 1.0  # seconds until the windows have grown
MEASURED = 2.0  # seconds
SLOWNESS = 10240  # bytes a second
BEHIND = 2.0  # seconds after which a slow reader's windows and buffers are full; alone they are within a tenth of that
# Standard errors: what lies farther from 1 than so many is no chance, but for one measurement of 700.
CHANCE = 3.0


@dataclass
class Comparison:
    """Bytes a second that the others got together; the runs of all three lists belong together one by one.

    A slow reader costs something without any tunnel, for it and its service take their part of the processors. What
    the tunnel adds is seen beside one that asks the service directly.
    """

    alone: list[float] = field(default_factory=list)
    through: list[float] = field(default_factory=list)
    past: list[float] = field(default_factory=list)

    def cost(self) -> str | None:
        """What to say where the others get less because of the tunnel, and it is no chance."""
        part, error = _ratio(self.through, self.past)
        if part + CHANCE * error >= 1:
            return None
        return f"one slow reader: expected that the tunnel costs {OTHERS} others nothing, but it leaves them {part:.3f}"

    def lines(self) -> list[str]:
        """Lines of the table."""
        rate = f"{SLOWNESS // 1024} KiB/s"
        lines = [
            f"| {OTHERS} readers{where} | {_gigabits(values)} |"
            for where, values in (
                (", alone", self.alone),
                (f" beside one of {rate} through the tunnel", self.through),
                (f" beside one of {rate} past the tunnel", self.past),
            )
        ]
        for what, over, under in (
            (f"past the tunnel to alone: mean of {len(self.past)} runs, standard error", self.past, self.alone),
            ("through the tunnel to alone", self.through, self.alone),
            ("through the tunnel to past it, which is the tunnel's part", self.through, self.past),
        ):
            mean, error = _ratio(over, under)
            lines.append(f"| {what} | {mean:.3f} ± {error:.3f} |")
        return lines


def _ratio(over: list[float], under: list[float]) -> tuple[float, float]:
    """The geometric mean of the ratios, run by run, and its standard error."""
    logarithms = [math.log(one / other) for one, other in zip(over, under, strict=True)]
    mean = math.exp(statistics.mean(logarithms))
    return mean, mean * statistics.stdev(logarithms) / math.sqrt(len(logarithms))


def _gigabits(values: list[float]) -> str:
    shown = [value * 8 / 1e9 for value in values]
    return f"{statistics.median(shown):.2f} ({min(shown):.2f} to {max(shown):.2f}) Gbit/s"


def throughput(public: Address) -> float:
    """Bytes a second that so many readers get together who read all they can."""
    buffer = memoryview(bytearray(256 * 1024))
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(OTHERS):
            user = stack.enter_context(ask(public, STREAM))
            user.setblocking(False)
            selector.register(user, selectors.EVENT_READ)
        received, begins = 0, time.monotonic() + WARM_UP
        counts = False
        while time.monotonic() < begins + MEASURED:
            if not counts and time.monotonic() >= begins:
                received, counts = 0, True
            for key, _ in selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                received += key.fileobj.recv_into(buffer)
    return received / MEASURED


@contextlib.contextmanager
def slow_reader(address: Address) -> Iterator[None]:
    """A connection through which a little is read each time."""
    over = threading.Event()
    with ask(address, STREAM, receive_buffer=SMALL_BUFFER) as user:

        def read() -> None:
            while not over.wait(0.1):
                receive_exactly(user, SLOWNESS // 10)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            time.sleep(BEHIND)
            yield
        finally:
            over.set()
            thread.join()


def compare(made: Ends, local: Address) -> Comparison:
    """Measures the three cases in turns, each order of them as often as any other."""
    comparison = Comparison()
    cases = (
        (comparison.alone, None),
        (comparison.through, made.public),
        (comparison.past, local),
    )
    for order in itertools.islice(itertools.cycle(itertools.permutations(cases)), RUNS):
        for values, address in order:
            with contextlib.nullcontext() if address is None else slow_reader(address):
                values.append(throughput(made.public))
    return comparison
