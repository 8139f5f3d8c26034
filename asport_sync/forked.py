"""Closes this package's sockets in forked children.

While a child holds a copy, a port stays bound after the parent has closed it, and the peer does not see a connection
end. The engine closes its own sockets, see ``aq_forked``.
"""

from __future__ import annotations

import os
import socket
import weakref

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def kept_from_children(sock: socket.socket) -> socket.socket:
    """Registers a socket to be closed in every child forked from now on; returns it."""
    _sockets.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in tuple(_sockets):
        sock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
