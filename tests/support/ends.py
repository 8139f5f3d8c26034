"""How TCP connections end: what two programs say and do in any order, and what each of them sees of it.

A plain TCP connection is the oracle: what a tunnel shows has to be the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import random
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.support.waiting import wait_until

Who = Literal["user", "service"]
Step = tuple[Who, str]

# Bytes of one "data" step; what two sides say in the longest sequence fits into every buffer on the way.
BLOCK = 700
# Seconds until what was said and done at one end shows at the other. Only a failure waits so long.
SETTLE = 20.0
OTHER: dict[Who, Who] = {"user": "service", "service": "user"}
# What a side may do: say something; read all that it has got; end its direction; close the socket, which is a reset
# where there is something unread; reset.
ACTIONS = ("data", "read", "fin", "close", "reset")


@dataclass
class _Side:
    """What the model knows of one side."""

    unread: int = 0  # bytes that are there for it
    said: int = 0  # blocks
    fin: bool = False  # it has ended its direction
    gone: Literal["", "fin", "reset"] = ""  # its socket is closed; what the other side sees of that


@dataclass(frozen=True)
class Seen:
    """What a side that did not close its socket sees: everything that it read, how that ended, whether writing failed.

    Attributes:
        data: All of it.
        end: "fin", "reset", or "open" where the time was up.
        broken: Whether what it writes afterwards is refused; None: it had ended its direction, or the other side lives.
    """

    data: bytes
    end: str
    broken: bool | None


def _allowed(sides: dict[Who, _Side], who: Who, action: str) -> bool:
    side = sides[who]
    if side.gone or (action == "read" and side.unread == 0):
        return False
    return not (side.fin and action in ("data", "fin"))


def _apply(sides: dict[Who, _Side], who: Who, action: str) -> None:
    side, other = sides[who], sides[OTHER[who]]
    if action == "data":
        side.said += 1
        if not other.gone:
            other.unread += BLOCK
    elif action == "read":
        side.unread = 0
    elif action == "fin":
        side.fin = True
    else:
        side.gone = "reset" if action == "reset" or side.unread else "fin"


def sequences(length: int) -> Iterator[tuple[Step, ...]]:
    """Every sequence of so many steps that makes sense."""
    for steps in itertools.product(itertools.product(OTHER, ACTIONS), repeat=length):
        sides: dict[Who, _Side] = {"user": _Side(), "service": _Side()}
        for who, action in steps:
            if not _allowed(sides, who, action):
                break
            _apply(sides, who, action)
        else:
            yield steps


def some_sequences(count: int, length: int, seed: int) -> list[tuple[Step, ...]]:
    """So many random sequences of at most so many steps."""
    choose = random.Random(seed)
    found: list[tuple[Step, ...]] = []
    while len(found) < count:
        sides: dict[Who, _Side] = {"user": _Side(), "service": _Side()}
        steps: list[Step] = []
        for _ in range(length):
            possible = [(who, action) for who in OTHER for action in ACTIONS if _allowed(sides, who, action)]
            if not possible:
                break
            steps.append(choose.choice(possible))
            _apply(sides, *steps[-1])
        found.append(tuple(steps))
    return found


def _prompt(sock: socket.socket) -> socket.socket:
    # What Nagle's algorithm holds back a reset would take with it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(SETTLE)
    return sock


@dataclass
class Play:
    """One connection on which a sequence is played.

    Attributes:
        steps: The sequence.
        user: One end.
        accept: Makes the other end, when the service first has something to do.
    """

    steps: tuple[Step, ...]
    user: socket.socket
    accept: Callable[[], socket.socket]
    _sockets: dict[Who, socket.socket] = field(default_factory=dict)
    _sides: dict[Who, _Side] = field(default_factory=lambda: {"user": _Side(), "service": _Side()})
    _data: dict[Who, bytearray] = field(default_factory=lambda: {"user": bytearray(), "service": bytearray()})

    def run(self) -> dict[Who, Seen]:
        """Plays the sequence, lets those that are still there come to an end, and says what they saw."""
        self._sockets["user"] = _prompt(self.user)
        before: Who | None = None
        try:
            for who, action in self.steps:
                if who != before:
                    self._settle(who)
                before = who
                self._act(who, action)
            left: list[Who] = [who for who in OTHER if not self._sides[who].gone]
            for who in left:
                self._settle(who)
            if len(left) == 2:
                for who in left:
                    if not self._sides[who].fin:
                        self._act(who, "fin")
            return {who: self._watch(who, alone=len(left) == 1) for who in left}
        finally:
            for sock in self._sockets.values():
                sock.close()

    def _socket(self, who: Who) -> socket.socket:
        if who not in self._sockets:
            self._sockets[who] = _prompt(self.accept())
        return self._sockets[who]

    def _act(self, who: Who, action: str) -> None:
        sock, side = self._socket(who), self._sides[who]
        if action == "read":
            while len(self._data[who]) < side.unread + self._read_before(who):
                chunk = sock.recv(side.unread + self._read_before(who) - len(self._data[who]))
                assert chunk, f"{who}: the end came too early"
                self._data[who] += chunk
        with contextlib.suppress(OSError):  # refused, where the other side has gone
            if action == "data":
                sock.sendall(self._block(who, side.said))
            elif action == "fin":
                sock.shutdown(socket.SHUT_WR)
        if action == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if action in ("close", "reset"):
            sock.close()
        _apply(self._sides, who, action)

    def _read_before(self, who: Who) -> int:
        """Bytes that earlier "read" steps took; ``unread`` is what came since."""
        return self._sides[OTHER[who]].said * BLOCK - self._sides[who].unread if not self._sides[who].gone else 0

    @staticmethod
    def _block(who: Who, number: int) -> bytes:
        return (b"%s %d " % (who.encode(), number)).ljust(BLOCK, b"u" if who == "user" else b"s")

    def _settle(self, who: Who) -> None:
        """Waits until a side sees all that the other one has done."""
        sock, side, other = self._socket(who), self._sides[who], self._sides[OTHER[who]]
        if side.gone:
            return
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)

        def sees_all() -> bool:
            events = dict(poll.poll(0)).get(sock.fileno(), 0)
            (unread,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
            if unread != side.unread:
                return False
            if other.gone == "reset":
                return bool(events & select.POLLHUP)
            return bool(events & select.POLLRDHUP) or not (other.fin or other.gone)

        wait_until(sees_all, SETTLE, f"{who} sees all of it", detail=lambda: f"{self.steps}, {self._sides}")

    def _watch(self, who: Who, *, alone: bool) -> Seen:
        sock, end = self._socket(who), ""
        while not end:
            try:
                chunk = sock.recv(65536)
            except ConnectionResetError:
                end = "reset"
            except TimeoutError:
                end = "open"
            else:
                self._data[who] += chunk
                end = "" if chunk else "fin"
        broken = self._breaks(sock) if alone and not self._sides[who].fin else None
        return Seen(bytes(self._data[who]), end, broken)

    @staticmethod
    def _breaks(sock: socket.socket) -> bool:
        """Whether writing fails, sooner or later."""

        def fails() -> bool:
            try:
                sock.send(b"?")
            except OSError:
                return True
            return False

        with contextlib.suppress(AssertionError):
            return wait_until(fails, SETTLE, "writing fails")
        return False
