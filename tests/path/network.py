"""Two network namespaces with a path between them that is as good or as bad as the test wants."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.path import forwarder
from tests.path.forwarder import LinkCounters, LinkSettings
from tests.support.namespaces import Namespace

# The same in every path: the namespaces keep them apart.
ADDRESS_A = "10.203.0.1"
ADDRESS_B = "10.203.0.2"
PREFIX_LENGTH = 30
INTERFACE = "path0"

# Seconds the forwarder gets to answer, or to end after its control socket was closed.
CONTROL_TIMEOUT = 10.0

Direction = Literal["both", "a to b", "b to a"]


class NetworkPath:
    """A path between namespaces ``a`` and ``b``; made by ``__enter__``, gone after ``__exit__``.

    All times and rates are those of one direction: the round trip takes twice ``delay_ms``. Used by one thread.
    """

    def __init__(
        self,
        delay_ms: float = 0.0,
        loss: float = 0.0,
        rate_mbit: float = 100.0,
        queue_ms: float = 100.0,
        seed: int = 1,
        *,
        mtu: int = 1500,
    ) -> None:
        """Describe the path; see ``LinkSettings`` for the meaning of all but the last two.

        Args:
            delay_ms: One way.
            loss: Share of packets, 0 to 1.
            rate_mbit: 10^6 bit/s.
            queue_ms: Drop-tail queue at that rate.
            seed: Decides which packets are lost.
            mtu: Of both interfaces, bytes.
        """
        self._settings = LinkSettings(delay_ms, loss, rate_mbit, queue_ms)
        self._seed = seed
        self._mtu = mtu
        self.a = Namespace()
        self.b = Namespace()

    address_a = ADDRESS_A
    address_b = ADDRESS_B
    # Settings that the forwarder does not know, by name.
    lacking: frozenset[str] = frozenset()

    def __enter__(self) -> NetworkPath:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.a)
            stack.enter_context(self.b)
            devices = []
            for namespace, own, other in ((self.a, ADDRESS_A, ADDRESS_B), (self.b, ADDRESS_B, ADDRESS_A)):
                device = namespace.open_tun(INTERFACE)
                stack.callback(os.close, device)
                devices.append(device)
                self._configure(namespace, own, other)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self._control)
            self._control.settimeout(CONTROL_TIMEOUT)
            with theirs:
                self._forwarder = self._start_forwarder(devices, theirs.fileno())
            stack.callback(self._end_forwarder)
            self.counters()  # it answers, so it runs
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def run_in(self, namespace: Namespace, argv: Sequence[str | os.PathLike[str]], timeout: float = 30.0) -> str:
        """Run a command in one of the namespaces, wait for it and return its standard output."""
        return namespace.run(argv, timeout)

    def change(
        self,
        direction: Direction = "both",
        *,
        delay_ms: float | None = None,
        loss: float | None = None,
        rate_mbit: float | None = None,
        queue_ms: float | None = None,
        black_hole: bool | None = None,
        corruption: float | None = None,
        duplication: float | None = None,
        reordering: float | None = None,
    ) -> None:
        """Change what is given, for packets that arrive from now on. Those on their way keep their times."""
        given = {
            "delay_ms": delay_ms,
            "loss": loss,
            "rate_mbit": rate_mbit,
            "queue_ms": queue_ms,
            "black_hole": black_hole,
            "corruption": corruption,
            "duplication": duplication,
            "reordering": reordering,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if unknown := self.lacking & changes.keys():
            raise ValueError(f"this path can't do {', '.join(sorted(unknown))}")
        LinkSettings(**{**asdict(self._settings), **changes})  # refuses here what the forwarder would refuse
        numbers = {"both": ("0", "1"), "a to b": ("0",), "b to a": ("1",)}[direction]
        self._request(dict.fromkeys(numbers, changes))

    def counters(self) -> tuple[LinkCounters, LinkCounters]:
        """Return what became of the packets so far: from a to b, and from b to a."""
        first, second = self._request({})
        return LinkCounters(**first), LinkCounters(**second)

    def _configure(self, namespace: Namespace, own: str, other: str) -> None:
        # Without this the kernel sends router solicitations, and they would use up numbers of the seeded loss.
        namespace.write_setting(f"ipv6/conf/{INTERFACE}/disable_ipv6", "1")
        namespace.configure(["address", "add", f"{own}/{PREFIX_LENGTH}", "dev", INTERFACE])
        namespace.configure(["link", "set", INTERFACE, "mtu", str(self._mtu), "up"])

    def _start_forwarder(self, devices: list[int], control: int) -> subprocess.Popen[bytes]:
        program = Path(forwarder.__file__)
        options = [f"--{name}={json.dumps(value)}" for name, value in asdict(self._settings).items()]
        return subprocess.Popen(
            [
                # Isolated and without site-packages: it starts in a third of the time.
                *(sys.executable, "-I", "-S", str(program)),
                *("--devices", *map(str, devices), "--control", str(control), "--seed", str(self._seed)),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[*devices, control],
        )

    def _end_forwarder(self) -> None:
        self._control.close()
        try:
            self._forwarder.wait(CONTROL_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._forwarder.kill()
            self._forwarder.wait()
            raise AssertionError("the forwarder of a network path did not end") from None

    def _request(self, changes: Mapping[str, Mapping[str, float]]) -> list[dict[str, int]]:
        self._control.send(json.dumps(changes).encode())
        answer = self._control.recv(forwarder.CONTROL_SIZE)
        if not answer:
            raise AssertionError(f"the forwarder ended with status {self._forwarder.wait(CONTROL_TIMEOUT)}")
        counters: list[dict[str, int]] = json.loads(answer)
        return counters
