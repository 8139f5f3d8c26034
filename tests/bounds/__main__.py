"""What readers that do not read cost the others, and in memory: ``python -m tests.bounds [--write-docs]``.

One slow reader among 64 against the other 63 alone, in turns; then many stalled and many idle connections. Takes about
three minutes, and wants a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bounds.stalling import ECHO, FLOOD, Ends, Moods, ask, ends
from tests.support.certificates import self_signed
from tests.support.page import Place
from tests.support.ports import free_port
from tests.support.program import run_program
from tests.support.services import Address
from tests.support.traffic import receive_exactly, wait_for_port

OTHERS = 63
RUNS = 12  # the machine itself varies by a quarter
WARM_UP = 1.0  # seconds until the windows have grown
MEASURED = 4.0  # seconds
SLOWNESS = 10240  # bytes a second
MANY = 500
# Long enough for everything to have stopped, or to have been acknowledged. Seconds.
STILL = 3.0
# Of a stalled user's socket: a small one, so that the bytes are in the tunnel's memory and not in the kernel's.
SMALL_BUFFER = 4096
MIB = 1 << 20


def serve(port: int) -> None:
    """The service as a process of its own, until standard input ends."""
    with Moods(port) as service:
        sys.stdin.read()
        service.over.set()


@contextlib.contextmanager
def service() -> Iterator[Address]:
    """The service in another process."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.bounds", "--serve", str(port)], stdin=subprocess.PIPE)
    try:
        wait_for_port(("127.0.0.1", port))
        yield "127.0.0.1", port
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def throughput(public: Address) -> float:
    """Bytes a second that so many readers get together who read all they can."""
    buffer = memoryview(bytearray(256 * 1024))
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(OTHERS):
            user = stack.enter_context(ask(public, FLOOD))
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
def slow_reader(public: Address) -> Iterator[None]:
    """A connection through which a little is read each time."""
    over = threading.Event()
    with ask(public, FLOOD, receive_buffer=SMALL_BUFFER) as user:

        def read() -> None:
            while not over.wait(0.1):
                receive_exactly(user, SLOWNESS // 10)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(STILL)  # until it is behind
        try:
            yield
        finally:
            over.set()
            thread.join()


def compare(made: Ends) -> list[str]:
    """The others with and without a slow one, in turns."""
    alone: list[float] = []
    beside: list[float] = []
    for run in range(RUNS):
        # In turns, and each goes first as often as the other.
        for slow in (False, True) if run % 2 == 0 else (True, False):
            with slow_reader(made.public) if slow else contextlib.nullcontext():
                (beside if slow else alone).append(throughput(made.public))
    ratios = [with_it / without for with_it, without in zip(beside, alone, strict=True)]

    def gigabits(values: list[float]) -> str:
        shown = [value * 8 / 1e9 for value in values]
        return f"{statistics.median(shown):.2f} ({min(shown):.2f} to {max(shown):.2f})"

    return [
        f"| {OTHERS} readers, alone | {gigabits(alone)} Gbit/s |",
        f"| {OTHERS} readers beside one of {SLOWNESS // 1024} KiB/s | {gigabits(beside)} Gbit/s |",
        f"| ratio, run by run | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
    ]


def memory(made: Ends, mood: bytes, what: str) -> str:
    """What many connections add to both processes."""
    before = made.memory()
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(ask(made.public, mood, receive_buffer=SMALL_BUFFER)) for _ in range(MANY)]
        if mood == ECHO:
            for user in users:
                user.sendall(b"?")
                assert user.recv(1) == b"?"
        time.sleep(STILL)
        grown = [(now - then) / MIB for now, then in zip(made.memory(), before, strict=True)]
    return f"| {MANY} {what} | server +{grown[0]:.0f} MiB, client +{grown[1]:.0f} MiB |"


def measure() -> list[str]:
    """Everything; the lines of the table."""
    lines = ["| | |", "| --- | --- |"]
    with tempfile.TemporaryDirectory(prefix="asport-bounds-") as name, service() as local:
        directory = Path(name)
        certificate = self_signed(directory / "certificate")
        for measurement in (
            compare,
            lambda made: [memory(made, ECHO, "idle connections that have carried a byte each way")],
            lambda made: [memory(made, FLOOD, "stalled readers of services that would send for ever")],
        ):
            with ends(directory, certificate, local) as made:
                for line in measurement(made):
                    print(line, flush=True)
                    lines.append(line)
    return lines


def main() -> None:
    """Measure, print, and write down where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bounds", description=__doc__)
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    place = Place("tests.bounds")
    if arguments.write_docs:
        place.check()
    lines = measure()
    if arguments.write_docs:
        place.put("\n".join(lines))


if __name__ == "__main__":
    run_program(main)
