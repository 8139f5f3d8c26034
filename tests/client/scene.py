"""A client whose server the test plays, on an engine without a network."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from asport_sync.client.backend import Backend
from asport_sync.client.session import ClientSession
from asport_sync.config import ClientConfig
from asport_sync.engine import Carrier, CloseCause
from asport_sync.host.calls import Calls
from asport_sync.host.host import Host
from asport_sync.runtime.backoff import Backoff
from asport_sync.runtime.log import logger
from asport_sync.wire import ServerHello, ServerHelloCode, encode
from tests.host import fake_engine as fake
from tests.host.fake_counters import FakeCounters
from tests.host.fake_engine import FakeConnection, FakeEngine
from tests.support.waiting import wait_until

ALICE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
PASSWORD = "open sesame"
SERVER = ("192.0.2.1", 443)
PORT = 2024
TIMEOUT = 10.0
PUBLIC_PEER = ("198.51.100.9", 5353)

Answer = Callable[["Scene", FakeConnection], None]


class NoDelay(Backoff):
    """Tries again at once, and notes what the failures were.

    Args:
        attempts: After so many failures the next attempt is put off for longer than any test lasts.
    """

    def __init__(self, attempts: int = 10) -> None:
        super().__init__()
        self.slow: list[bool] = []
        self.steady: list[bool] = []
        self.successes = 0
        self._attempts = attempts

    def succeeded(self) -> None:
        self.successes += 1

    def failed(self, *, slow: bool = False, steady: bool = False) -> float:
        self.slow.append(slow)
        self.steady.append(steady)
        return 0.0 if len(self.slow) < self._attempts else 1000.0

    def parallel(self) -> float:
        return 1000.0


class Scene:
    """A client and what its server does with each connection. The last behaviour stays."""

    def __init__(
        self,
        *behaviours: Answer,
        attempts: int = 10,
        backend: Backend | None = None,
        calls: Calls | None = None,
        **options: Any,
    ) -> None:
        self.engine = FakeEngine()
        self.engine.on_connect = self._connected
        self.backoff = NoDelay(attempts)
        self.behaviours = list(behaviours or (accept,))
        config = ClientConfig.from_options(
            **{
                "server": f"{SERVER[0]}:{SERVER[1]}",
                "local": "127.0.0.1:9",
                "uuid": ALICE,
                "password": PASSWORD,
                **options,
            }
        )
        self.counters = FakeCounters()
        self.host = Host(
            self.engine.as_real(),
            config.workers,
            config.tcp_keepalive,
            logger("client"),
            counters=self.counters,
            calls=calls,
        )
        self.host.start()
        self.config = config.tunnels[""]
        self.session = ClientSession(self.config, self.host, self.backoff, backend)
        self.host.add(self.session)

    def _connected(self, connection: FakeConnection) -> None:
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        behaviour(self, connection)

    def post_command(self, connection: FakeConnection, data: bytes, carrier: Carrier = Carrier.STREAM) -> None:
        self.engine.post(fake.command(connection, data, carrier))

    def ready(self) -> FakeConnection:
        self.session.wait_ready(TIMEOUT)
        return self.engine.connections[-1]

    def counter(self, name: str) -> int:
        return self.counters[name]

    def expect_counter(self, name: str, value: int = 1) -> None:
        wait_until(lambda: self.counter(name) == value, TIMEOUT, f"{name} is {value}")

    def attempts(self, number: int) -> None:
        wait_until(lambda: len(self.engine.connections) >= number, TIMEOUT, f"attempt {number}")


def accept(scene: Scene, connection: FakeConnection) -> None:
    scene.engine.post(fake.connected(connection, server=False))
    scene.post_command(connection, encode(ServerHello(ServerHelloCode.SUCCESS, PORT)))


def silent_after_handshake(scene: Scene, connection: FakeConnection) -> None:
    scene.engine.post(fake.connected(connection, server=False))


def nothing(scene: Scene, connection: FakeConnection) -> None:
    """No event at all."""


def refuse_with(code: ServerHelloCode) -> Answer:
    def refuse(scene: Scene, connection: FakeConnection) -> None:
        scene.engine.post(fake.connected(connection, server=False))
        scene.post_command(connection, encode(ServerHello(code)))

    return refuse


def close_with(cause: CloseCause, code: int = 0, reason: str = "", *, handshake: bool = False) -> Answer:
    def close(scene: Scene, connection: FakeConnection) -> None:
        if handshake:
            scene.engine.post(fake.connected(connection, server=False))
        event = fake.closed(connection, cause, code, reason)
        # Not gone for us before the event before it was looked at.
        connection.is_gone = not handshake
        scene.engine.post(event)

    return close


@contextlib.contextmanager
def scene_of(*behaviours: Answer, **options: Any) -> Iterator[Scene]:
    scene = Scene(*behaviours, **options)
    try:
        yield scene
    finally:
        scene.host.stop(TIMEOUT)
        assert scene.engine.closed == 1
