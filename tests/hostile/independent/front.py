"""The address that a client under test knows: at first it leads to a hostile server, and then to an honest one."""

from __future__ import annotations

import selectors
import socket
import threading

Address = tuple[str, int]


class Front:
    """Passes datagrams on: of the first client address to and from the hostile server, of others the honest one.

    Attributes:
        address: Where it is.
        hostile: The socket of the hostile server.
    """

    def __init__(self, honest: Address) -> None:
        self._honest = honest
        self._front = _loopback()
        self.hostile = _loopback()
        self.address: Address = self._front.getsockname()
        self._stopping, self._stop_signal = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="front")

    def __enter__(self) -> Front:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_signal.close()
        self._thread.join()
        for sock in (self._front, self.hostile, self._stopping):
            sock.close()

    def _run(self) -> None:
        behind: dict[Address, socket.socket] = {}
        ahead: dict[socket.socket, Address] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._front, selectors.EVENT_READ)
            selector.register(self._stopping, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    sock = key.fileobj
                    if sock is self._stopping:
                        for back in ahead:
                            back.close()
                        return
                    try:
                        data, source = sock.recvfrom(65536)
                    except ConnectionRefusedError:
                        continue
                    if sock is not self._front:
                        self._front.sendto(data, ahead[sock])
                        continue
                    if source not in behind:
                        back = behind[source] = _loopback()
                        ahead[back] = source
                        back.connect(self._honest if len(ahead) > 1 else self.hostile.getsockname())
                        selector.register(back, selectors.EVENT_READ)
                    try:
                        behind[source].send(data)
                    except ConnectionRefusedError:
                        continue


def _loopback() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock
