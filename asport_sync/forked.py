"""Closes this package's sockets in forked children.

While a child holds a copy, a port stays bound after the parent has closed it, and the peer does not see a connection
end. The engine closes its own sockets, see ``aq_forked``.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref

# Guarded by no_fork.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
no_fork = threading.RLock()
"""Held from the creation of a socket to its registration, while a socket is closed or handed over, and during a fork.

Otherwise a child that another thread forks in between keeps a copy. Reentrant, because a signal handler may fork while
its thread holds the lock.
"""


class _Socket(socket.socket):
    def close(self) -> None:
        with no_fork:  # Python forgets the number before the system closes it
            super().close()


def new_socket(family: int = -1, kind: int = -1, protocol: int = -1, fileno: int | None = None) -> socket.socket:
    """Creates a socket that is closed in every forked child. Takes the arguments of ``socket.socket``.

    Raises:
        OSError: The system refuses it.
    """
    with no_fork:
        sock = _Socket(family, kind, protocol, fileno)
        _sockets.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in tuple(_sockets):
        sock.close()
    no_fork.release()


os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_after_fork_in_child)
