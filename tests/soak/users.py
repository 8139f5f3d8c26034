"""What the users of a public port do during a soak. Each runs in a thread, again and again, until it is over.

Every byte is compared. A connection that is cut is a fault unless something was done to the pair in its time. Bytes
that are wrong are always one.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.soak.data import pieces
from tests.soak.pair import Pair
from tests.support.services import CHUNK

# Seconds without progress after which a transfer has failed.
GRACE_PERIOD = 30.0
MIB = 1 << 20
# Faults that are kept; more say nothing new.
MAX_FAULTS = 50
HARD_CLOSE = struct.pack("ii", 1, 0)


class WrongBytes(Exception):
    """What arrived is not what was sent."""


class Users:
    """The threads that use one pair."""

    def __init__(self, pair: Pair, seed: int) -> None:
        """Describe them; ``start`` starts them."""
        self.pair = pair
        self.counts: Counter[str] = Counter()  # under the lock, as is the next line
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        kinds: list[tuple[str, int, Callable[[random.Random], None]]] = [
            ("uploads", 1, self._upload),
            ("downloads", 1, self._download),
            ("short connections", 2, self._short),
            ("pings", 1, self._pings),
            ("idle connections", 1, self._idle),
            ("half-closed", 1, self._half_closed),
            ("resets", 1, self._reset),
            ("stalled readers", 1, self._stalled),
            ("UDP sources", 2, self._datagrams),
        ]
        for name, count, work in kinds:
            for number in range(count):
                chance = random.Random(f"{seed} {pair.name} {name} {number}")
                thread = threading.Thread(target=self._again_and_again, args=(name, work, chance), name=name)
                self._threads.append(thread)

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is under way and wait for it."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _again_and_again(self, name: str, work: Callable[[random.Random], None], chance: random.Random) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                work(chance)
                self._count(name)
            except WrongBytes as problem:
                self._fault(f"{name}: {problem}")
            except OSError as problem:
                if self.pair.disturbed_since(began):
                    self._count(f"{name} cut")
                    self._over.wait(0.5)
                else:
                    self._fault(f"{name}: {problem!r} after {time.monotonic() - began:.1f} s")

    def _count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] += amount

    def _fault(self, text: str) -> None:
        with self._lock:
            self.counts["faults"] += 1
            if len(self.faults) < MAX_FAULTS:
                self.faults.append(f"{time.strftime('%H:%M:%S')} {self.pair.name}: {text}")

    def _connect(self, first: bytes) -> socket.socket:
        connection = socket.create_connection(self.pair.public, timeout=GRACE_PERIOD)
        try:
            connection.sendall(first)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _receive(connection: socket.socket, size: int) -> bytes:
        """Exactly so many bytes; a stream that ends before counts as cut."""
        got = bytearray()
        while len(got) < size:
            chunk = connection.recv(min(CHUNK, size - len(got)))
            if not chunk:
                raise ConnectionError(f"it ended after {len(got)} of {size} bytes")
            got += chunk
        return bytes(got)

    # --- what they do ---

    def _upload(self, chance: random.Random) -> None:
        seed, size = chance.randrange(1 << 20), chance.randint(1, 8 * MIB)
        state = hashlib.sha256()
        with self._connect(b"take\n") as connection:
            for piece in pieces(seed, size):
                state.update(piece)
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            if self._receive(connection, state.digest_size) != state.digest():
                raise WrongBytes(f"an upload of {size} bytes")
        self._count("MiB", size // MIB)
        self._over.wait(0.3)

    def _take(self, connection: socket.socket, seed: int, size: int) -> None:
        for piece in pieces(seed, size):
            if self._receive(connection, len(piece)) != piece:
                raise WrongBytes(f"a download of {size} bytes")
        if connection.recv(1):
            raise WrongBytes(f"a download of {size} bytes that does not end")

    def _download(self, chance: random.Random) -> None:
        seed, size = chance.randrange(1 << 20), chance.randint(1, 8 * MIB)
        with self._connect(f"give {seed} {size}\n".encode()) as connection:
            self._take(connection, seed, size)
        self._count("MiB", size // MIB)
        self._over.wait(0.3)

    def _short(self, chance: random.Random) -> None:
        data = chance.randbytes(chance.randint(1, 2000))
        with self._connect(b"echo\n" + data) as connection:
            if self._receive(connection, len(data)) != data:
                raise WrongBytes("a short connection")
        self._over.wait(0.02)

    def _pings(self, chance: random.Random) -> None:
        with self._connect(b"echo\n") as connection:
            for _ in range(100):
                data = chance.randbytes(32)
                connection.sendall(data)
                if self._receive(connection, len(data)) != data:
                    raise WrongBytes("a ping")
                if self._over.wait(0.02):
                    break

    def _idle(self, chance: random.Random) -> None:
        """Many connections without traffic, which all still work in the end."""
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(self._connect(b"echo\n")) for _ in range(50)]
            self._over.wait(chance.uniform(5, 30))
            for connection in held:
                connection.sendall(b"?")
                if self._receive(connection, 1) != b"?":
                    raise WrongBytes("an idle connection")

    def _half_closed(self, chance: random.Random) -> None:
        """The user's end comes before the answer."""
        data = chance.randbytes(chance.randint(1, 200_000))
        with self._connect(b"take\n" + data) as connection:
            connection.shutdown(socket.SHUT_WR)
            if self._receive(connection, 32) != hashlib.sha256(data).digest():
                raise WrongBytes("a half-closed connection")
            if connection.recv(1):
                raise WrongBytes("a half-closed connection that does not end")
        self._over.wait(0.1)

    def _reset(self, chance: random.Random) -> None:
        """The user resets while bytes are on their way, both ways."""
        with self._connect(b"give 1 4000000\n") as connection:
            self._receive(connection, chance.randint(1, 100_000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD_CLOSE)
        self._over.wait(0.2)

    def _stalled(self, chance: random.Random) -> None:
        """Reads nothing for a while, and then either all or nothing of what came."""
        seed, size = chance.randrange(1 << 20), 16 * MIB
        with self._connect(f"give {seed} {size}\n".encode()) as connection:
            self._over.wait(chance.uniform(1, 8))
            if chance.random() < 0.5:
                self._take(connection, seed, size)
                self._count("MiB", size // MIB)

    def _datagrams(self, chance: random.Random) -> None:
        """A new source with a few datagrams. They may be lost; what comes is what was sent."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.settimeout(0.5)
            source.connect(self.pair.public)
            for _ in range(chance.randint(1, 20)):
                data = chance.randbytes(chance.choice([1, 100, 1200, 5000, 30000]))
                self._count("datagrams")
                try:
                    source.send(data)
                    answer = source.recv(65536)
                except (TimeoutError, ConnectionRefusedError):
                    self._count("datagrams lost")
                    break  # a late answer would be taken for that of the next one
                if answer != data:
                    raise WrongBytes(f"a datagram of {len(data)} bytes")
        self._over.wait(0.1)
