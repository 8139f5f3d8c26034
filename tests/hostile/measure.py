"""What each flood costs the server, and what an honest client notices of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from asport_sync import Client
from bench.load import bulk, ping, start_service
from tests.e2e.tunnels import client_options, client_process, public_port, server_options
from tests.hostile.floods import Flood, Target, finish, run
from tests.support.certificates import self_signed
from tests.support.ports import free_port
from tests.support.services import Address

_CPUCLOCK_SCHED = 2  # linux/posix-timers.h
_CHECK_PERIOD = 0.02  # seconds between looks at the memory
_WARM_UP = 0.7  # seconds that a flood runs before the honest client is looked at
_COOL_DOWN = 1.0  # seconds after it: what it has opened is closed
_JOIN_LIMIT = 20.0  # seconds that an honest client gets to join


@dataclasses.dataclass
class Process:
    """The server's process, and what it counts."""

    pid: int
    address: Address
    stdin: IO[str]
    stdout: IO[str]

    def stats(self) -> dict[str, int]:
        """All counters; those of the engine and of the decisions have no names in common."""
        self.stdin.write("\n")
        self.stdin.flush()
        answer = json.loads(self.stdout.readline())
        return {**answer["engine"], **answer["counters"]}

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return time.clock_gettime((~self.pid << 3) | _CPUCLOCK_SCHED)

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096


@dataclasses.dataclass(frozen=True)
class Scene:
    """A server and an honest client, each a process, and what the client makes public."""

    server: Process
    target: Target
    public: Address
    join: Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a flood alone does to the server; the honest client is idle.

    Attributes:
        units: Datagrams or connections that the server took.
        microseconds: Processor time of the server for each.
        before: Resident bytes.
        peak: The most, likewise.
        after: Once everything of the flood has timed out.
        amplification: Bytes sent by bytes received; None where the server answers for somebody else.
        counters: Those that grew.
    """

    units: int
    microseconds: float
    before: int
    peak: int
    after: int
    amplification: float | None
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Honest:
    """What an honest client has: Gbit/s down, median round trip in µs, seconds to join. Medians of the rounds."""

    gigabits: float
    round_trip: float
    join: float


@dataclasses.dataclass(frozen=True)
class Result:
    """All of one flood.

    Attributes:
        flood: Which.
        cost: What it does to the server.
        without: The honest client without it.
        during: The honest client meanwhile.
        share: Throughput during the flood by throughput just before it; the median of the rounds.
    """

    flood: Flood
    cost: Cost
    without: Honest
    during: Honest
    share: float


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long it takes.

    Attributes:
        rounds: Looks at the honest client, with and without the flood.
        seconds: Of each look.
        cost_seconds: For which the flood runs alone.
        settle: Seconds until half-open connections, and those that close, are gone.
    """

    rounds: int
    seconds: float
    cost_seconds: float
    settle: float


QUICK = Effort(rounds=1, seconds=0.6, cost_seconds=1.0, settle=1.0)
FULL = Effort(rounds=7, seconds=0.8, cost_seconds=5.0, settle=11.0)


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """Server, client and service, until the block ends."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asport-hostile-")))
        certificate = self_signed(directory)
        server = stack.enter_context(server_process(directory / "server.json", server_options(certificate)))
        service = stack.enter_context(start_service())
        client = stack.enter_context(
            client_process(directory, certificate, server.address, service.address, expected_port_range=free_port())
        )
        public = ("127.0.0.1", public_port(client))

        def join() -> float:
            options = client_options(certificate, server.address, service.address)
            began = time.monotonic()
            with Client(**options) as another:
                another.wait_ready(_JOIN_LIMIT)
                return time.monotonic() - began

        yield Scene(server, Target(server.address[1], public[1], directory), public, join)


@contextlib.contextmanager
def server_process(path: Path, options: dict[str, object], prefix: Sequence[str] = ()) -> Iterator[Process]:
    """A server whose options are written to this file, until the block ends."""
    path.write_text(json.dumps(options))
    path.chmod(0o600)
    with subprocess.Popen(
        [*prefix, sys.executable, "-m", "tests.hostile.server", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        host, port = json.loads(process.stdout.readline())
        yield Process(process.pid, (host, port), process.stdin, process.stdout)
        process.stdin.close()


def cost_of(place: Scene, flood: Flood, seconds: float, settle: float) -> Cost:
    """Run a flood alone."""
    server = place.server
    before, cpu, memory = server.stats(), server.cpu_seconds(), server.memory()
    process = run(flood, place.target, seconds)
    peak = memory
    while process.poll() is None:
        peak = max(peak, server.memory())
        time.sleep(_CHECK_PERIOD)
    sent = finish(process)
    cpu = server.cpu_seconds() - cpu
    time.sleep(settle)
    after = server.stats()
    grown = {name: value - before[name] for name, value in after.items() if value != before[name]}
    units = int(sent["tried"] if flood.unit == "tried" else grown.get(flood.unit, 0))
    return Cost(
        units, cpu * 1e6 / max(1, units), memory, peak, server.memory(), _amplification(flood, sent, grown), grown
    )


def _amplification(flood: Flood, sent: dict[str, float], grown: dict[str, int]) -> float | None:
    if not flood.quic:
        return None
    if "answer_bytes" in sent:
        return sent["answer_bytes"] / max(1, sent["bytes"])
    # Whoever completes handshakes does not count bytes; the honest client's few are among these.
    return grown.get("quic_bytes_sent", 0) / max(1, grown.get("quic_bytes_received", 0))


def measure(place: Scene, flood: Flood, effort: Effort) -> Result:
    """All of one flood. The looks at the honest client with it and without it take turns."""
    cost = cost_of(place, flood, effort.cost_seconds, effort.settle)
    without, during = [], []
    for _ in range(effort.rounds):
        without.append(_look(place, effort.seconds))
        process = run(flood, place.target, _WARM_UP + 3 * effort.seconds + _JOIN_LIMIT)
        try:
            time.sleep(_WARM_UP)
            during.append(_look(place, effort.seconds))
        finally:
            process.terminate()
            process.communicate(timeout=30)
        time.sleep(_COOL_DOWN)
    pairs = zip(without, during, strict=True)
    share = statistics.median(
        [after.gigabits / before.gigabits for before, after in pairs if before.gigabits > 0] or [0]
    )
    return Result(flood, cost, _medians(without), _medians(during), share)


def _look(place: Scene, seconds: float) -> Honest:
    transfer = bulk(place.public, direction="down", streams=1, seconds=seconds, warmup=0.2)
    round_trips = ping(place.public, seconds=seconds / 2, interval_us=1000)
    return Honest(transfer.gigabits_per_second, round_trips.p50_us, place.join())


def _medians(found: list[Honest]) -> Honest:
    return Honest(*(statistics.median(values) for values in zip(*map(dataclasses.astuple, found), strict=True)))
