"""A server and a client as processes, and what is done to them while they carry traffic."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.tunnels import client_options, server_options, write_config
from tests.soak.relay import Relay
from tests.soak.service import TcpActor, UdpEcho
from tests.support.certificates import Certificate
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address
from tests.support.waiting import wait_until

# Seconds. Short, so that a silence is noticed within a run of two minutes; longer than a busy machine pauses a process.
IDLE_TIME = 6.0
# Seconds that a lost tunnel gets to come back: the idle timeout, and the longest pause between attempts.
BACK_WITHIN = 60.0
# Seconds after the tunnel is back in which connections of the time before may still end.
GRACE = 15.0
HOST = "127.0.0.1"

SERVER = {"max_idle_time": f"{IDLE_TIME:g}s", "udp_session_timeout": "8s"}
CLIENT = {"udp_timeout": "4s"}


class Pair:
    """Two processes, the local service behind them, and a public port. ``__enter__`` returns once it is public.

    ``disturb`` is called by one thread; everything else by any.
    """

    def __init__(self, name: str, directory: Path, certificate: Certificate, *, steady: bool, carrier: str) -> None:
        """Describe it.

        Args:
            name: What tables and failures call it.
            directory: For its files.
            certificate: The server's.
            steady: Its processes are never ended; a relay between them falls silent instead.
            carrier: ``udp_forward_mode``.
        """
        self.name = name
        self.steady = steady
        self.public: Address = (HOST, free_port())
        self._directory = directory
        self._certificate = certificate
        self._carrier = carrier
        self._port = free_port()
        self._lock = threading.Lock()
        self._disturbed_until = 0.0  # under the lock; infinity while a disturbance lasts
        self.disturbances: list[str] = []  # under the lock
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Pair:
        with contextlib.ExitStack() as stack:
            local = free_port()
            stack.enter_context(TcpActor(port=local))
            stack.enter_context(UdpEcho(port=local))
            quic: Address = (HOST, self._port)
            self._relay = stack.enter_context(Relay(quic)) if self.steady else None
            directory = self._directory / self.name
            directory.mkdir()
            server = server_options(self._certificate, server=f"{HOST}:{self._port}", **SERVER)
            self._configs = {"server": write_config(directory, "server", server)}
            client = client_options(
                self._certificate,
                self._relay.address if self._relay else quic,
                (HOST, local),
                network="both",
                udp_forward_mode=self._carrier,
                expected_port_range=self.public[1],
                **CLIENT,
            )
            self._configs["client"] = write_config(directory, "client", client)
            for side in ("server", "client"):
                self._start(side)
            stack.callback(self._stop_all)
            self._wait_until_public()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def disturbed_since(self, moment: float) -> bool:
        """Whether a connection that began then may have been cut by what was done to the pair."""
        with self._lock:
            return moment <= self._disturbed_until

    def figures(self, side: str) -> dict[str, Any]:
        """What ``stats()`` of one end said a moment ago; empty where it has not said anything yet."""
        try:
            found: dict[str, Any] = json.loads(self._figures(side).read_text())
        except FileNotFoundError:
            return {}
        return found

    def disturb(self, chance: random.Random) -> None:
        """Loses the connection in one of several ways, and waits until the tunnel is back."""
        ways: dict[str, Callable[[], None]] = {
            "silence": self._fall_silent,
            "client killed": lambda: self._restart("client", signal.SIGKILL),
            "server killed": lambda: self._restart("server", signal.SIGKILL),
            "client ended": lambda: self._restart("client", signal.SIGTERM),
            "server ended": lambda: self._restart("server", signal.SIGTERM),
        }
        way = "silence" if self.steady else chance.choice([name for name in ways if name != "silence"])
        with self._disturbing(way):
            ways[way]()
            self._wait_until_public()

    @contextlib.contextmanager
    def _disturbing(self, way: str) -> Iterator[None]:
        with self._lock:
            self._disturbed_until = float("inf")
            self.disturbances.append(way)
        yield
        with self._lock:
            self._disturbed_until = time.monotonic() + GRACE

    def _fall_silent(self) -> None:
        assert self._relay is not None
        self._relay.silence(True)
        time.sleep(2 * IDLE_TIME)
        self._relay.silence(False)

    def _restart(self, side: str, number: signal.Signals) -> None:
        process = self.processes[side]
        process.send_signal(number)
        process.wait(BACK_WITHIN)
        process.stop()
        self._start(side)

    def _figures(self, side: str) -> Path:
        return self._directory / self.name / f"{side}.figures"

    def _start(self, side: str) -> None:
        self._figures(side).unlink(missing_ok=True)
        arguments = [sys.executable, "-m", "tests.soak.end", side, str(self._configs[side]), str(self._figures(side))]
        self.processes[side] = Process(arguments, name=f"{self.name} {side}").__enter__()

    def _stop_all(self) -> None:
        for process in self.processes.values():
            process.stop()

    def _wait_until_public(self) -> None:
        wait_until(self._answers, BACK_WITHIN, f"{self.name} is public", detail=self._descriptions)

    def _answers(self) -> bool:
        for process in self.processes.values():
            process.check_running()
        try:
            with socket.create_connection(self.public, timeout=IDLE_TIME) as connection:
                connection.sendall(b"echo\n.")
                return connection.recv(1) == b"."
        except OSError:
            time.sleep(0.2)
            return False

    def _descriptions(self) -> str:
        return "\n".join(process.description() for process in self.processes.values())
