"""How connections through the tunnel end, beside a plain TCP connection; and what is left when a process dies."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.tunnels import (
    READY_TIMEOUT,
    tunnel,
)
from tests.support.certificates import Certificate
from tests.support.ends import Play, Seen, Step, Who, sequences, some_sequences
from tests.support.services import Address
from tests.support.traffic import connect, receive_exactly

# Connections on which random sequences are played, and whether all sequences of four steps are (3,772 more):
#   ENDS=10000 pytest tests/e2e/test_ends.py -k plain
RANDOM = int(os.environ.get("ENDS", "150"))
AT_A_TIME = 8

Outcome = dict[Who, Seen]


class Services:
    """A listening service; each of its connections is found by the address of its user, which the PROXY header tells."""

    def __init__(self, *, header: bool) -> None:
        self._header = header
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._listener.settimeout(READY_TIMEOUT)
        self.address: Address = self._listener.getsockname()
        # Guards what was accepted for others.
        self._guard = threading.Lock()
        self._accepted: dict[int, socket.socket] = {}

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def of(self, user_port: int) -> socket.socket:
        """The service's end of the connection of the user with this port."""
        while True:
            with self._guard:
                if user_port in self._accepted:
                    return self._accepted.pop(user_port)
                sock, source = self._listener.accept()
                port = source[1]
                if self._header:  # PROXY TCP4 source destination port port
                    line = b""
                    while not line.endswith(b"\r\n"):
                        line += receive_exactly(sock, 1)
                    port = int(line.split()[4])
                self._accepted[port] = sock


def play(steps: tuple[Step, ...], public: Address, services: Services) -> Outcome:
    user = connect(public)
    port = user.getsockname()[1]
    return Play(steps, user, lambda: services.of(port)).run()


def differences(certificate: Certificate, played: list[tuple[Step, ...]]) -> list[str]:
    """Plays sequences on plain connections and through a tunnel; where they differ."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        with Services(header=False) as services:
            plain = list(pool.map(lambda steps: play(steps, services.address, services), played))
        with (
            Services(header=True) as services,
            tunnel(certificate, services.address, client={"proxy_protocol": "v1"}) as opened,
        ):
            through = list(pool.map(lambda steps: play(steps, opened.public, services), played))
    return [
        f"{steps}: plain {one}, through the tunnel {other}"
        for steps, one, other in zip(played, plain, through, strict=True)
        if one != other
    ]


def test_every_end_of_up_to_three_steps_is_as_on_a_plain_connection(certificate: Certificate) -> None:
    played = [steps for length in (1, 2, 3) for steps in sequences(length)]
    assert differences(certificate, played) == []


def test_random_ends_are_as_on_a_plain_connection(certificate: Certificate) -> None:
    assert differences(certificate, some_sequences(RANDOM, 7, seed=RANDOM)) == []
