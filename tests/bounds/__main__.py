"""What readers that do not read cost the others, and in memory: ``python -m tests.bounds [--write-docs]``.

One slow reader among 64 against the other 63 alone, in turns; then many stalled and many idle connections. A slow
reader costs the others something without any tunnel: it and its service take their part of the processors. So there is
a third case, one that asks the service directly, and what the tunnel adds is the difference. Takes about ten minutes,
and wants a machine that has nothing else to do. Fails where the tunnel's part is more than chance.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bounds.neighbours import compare
from tests.bounds.stalling import ECHO, FLOOD, SMALL_BUFFER, Ends, Moods, ask, ends
from tests.support.certificates import self_signed
from tests.support.page import Place
from tests.support.ports import free_port
from tests.support.program import run_program
from tests.support.services import Address
from tests.support.traffic import wait_for_port

MANY = 500
# Long enough for everything to have stopped, or to have been acknowledged. Seconds.
STILL = 3.0
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


def measure() -> tuple[list[str], str | None]:
    """Everything; the lines of the table, and what is not as promised."""
    lines = ["| | |", "| --- | --- |"]
    with tempfile.TemporaryDirectory(prefix="asport-bounds-") as name, service() as local:
        directory = Path(name)
        certificate = self_signed(directory / "certificate")
        with ends(directory, certificate, local) as made:
            comparison = compare(made, local)
        lines += comparison.lines()
        print("\n".join(lines), flush=True)
        for mood, what in (
            (ECHO, "idle connections that have carried a byte each way"),
            (FLOOD, "stalled readers of services that would send for ever"),
        ):
            with ends(directory, certificate, local) as made:
                lines.append(memory(made, mood, what))
            print(lines[-1], flush=True)
    return lines, comparison.cost()


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
    lines, problem = measure()
    if arguments.write_docs:
        place.put("\n".join(lines))
    if problem:
        raise SystemExit(problem)


if __name__ == "__main__":
    run_program(main)
