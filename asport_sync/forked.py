"""Closes this package's sockets in forked children.

While a child holds a copy, a port stays bound after the parent has closed it, and the peer does not see a connection
end. The engine closes its own sockets, see ``aq_forked``.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref

# Guarded by _creating.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
# Held from the creation of a socket to its registration, and during a fork: otherwise a child forked in between by
# another thread keeps a copy. Reentrant, because a signal handler may fork in the middle of a creation.
_creating = threading.RLock()


def new_socket(family: int = -1, kind: int = -1, protocol: int = -1, fileno: int | None = None) -> socket.socket:
    """Creates a socket that is closed in every forked child. Takes the arguments of ``socket.socket``.

    Raises:
        OSError: The system refuses it.
    """
    with _creating:
        sock = socket.socket(family, kind, protocol, fileno)
        _sockets.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in tuple(_sockets):
        sock.close()
    _creating.release()


os.register_at_fork(before=_creating.acquire, after_in_parent=_creating.release, after_in_child=_after_fork_in_child)
