"""What a forked child must not keep: this package's sockets, which are the parent's to close.

As long as a child has a copy, a port stays taken after the parent has closed it, and the end of a connection does not
reach its peer. Sockets of the engine are closed by it, see ``aq_forked``.
"""

from __future__ import annotations

import os
import socket
import weakref

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def kept_from_children(sock: socket.socket) -> socket.socket:
    """Has a socket closed in every child that is forked from here on; returns it."""
    _sockets.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in tuple(_sockets):
        sock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
