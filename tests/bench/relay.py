"""A TCP and a UDP relay in front of the load generator's service which do to the bytes what a test wants."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

from bench.load import Address

# The bytes that came in this order, and where they begin in their direction; what is to be sent on.
Change = Callable[[bytes, int], bytes]


def unchanged(data: bytes, offset: int) -> bytes:
    return data


def at(position: int, change: Callable[[bytes], bytes]) -> Change:
    """Do `change` to what begins at this position of a direction and came in one piece."""

    def apply(data: bytes, offset: int) -> bytes:
        start = position - offset
        if not 0 <= start < len(data):
            return data
        return data[:start] + change(data[start:])

    return apply


@contextlib.contextmanager
def tcp_relay(target: Address, *, up: Change = unchanged, down: Change = unchanged) -> Iterator[Address]:
    """Relay connections to `target` until the context ends, which resets those that are left."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket, change: Change) -> None:
        offset = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(change(data, offset))
                offset += len(data)
            sink.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(target)
                sockets.extend((near, far))
                for arguments in ((near, far, up), (far, near, down)):
                    thread = threading.Thread(target=pump, args=arguments)
                    threads.append(thread)
                    thread.start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for one in sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for one in sockets:
                one.close()


@contextlib.contextmanager
def udp_relay(target: Address, change: Callable[[int, bytes], list[bytes]]) -> Iterator[Address]:
    """Relay one source's datagrams to `target`; those towards it are numbered and replaced by what `change` returns.

    A datagram that asks for an echo is neither numbered nor changed.
    """
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind(("127.0.0.1", 0))
    far.connect(target)
    ends, ended = socket.socketpair()

    def serve() -> None:
        source = None
        number = 0
        with selectors.DefaultSelector() as selector:
            for one in (near, far, ended):
                selector.register(one, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if ended in ready:
                    return
                if near in ready:
                    data, source = near.recvfrom(65536)
                    if data[4]:
                        far.send(data)
                        continue
                    for datagram in change(number, data):
                        far.send(datagram)
                    number += 1
                if far in ready and source is not None:
                    near.sendto(far.recv(65536), source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield near.getsockname()
    finally:
        ends.close()
        thread.join()
        for one in (near, far, ended):
            one.close()
