"""The local service of a soak: does what the first line of a connection asks for."""

from __future__ import annotations

import contextlib
import hashlib
import socket

from tests.soak.data import pieces
from tests.support.services import CHUNK, TcpService, UdpEcho

LONGEST_LINE = 64


class TcpActor(TcpService):
    """``echo``, ``take`` (answers with a digest after the end) or ``give SEED SIZE``; a line that ends with LF."""

    def handle(self, connection: socket.socket) -> None:
        # Users are cut off on purpose: their end is no fault of the service. What arrives wrong the users see.
        with contextlib.suppress(OSError):
            words = self._line(connection).split()
            if words[:1] == [b"echo"]:
                while chunk := connection.recv(CHUNK):
                    connection.sendall(chunk)
            elif words[:1] == [b"take"]:
                connection.sendall(self._digest(connection))
            elif words[:1] == [b"give"]:
                for piece in pieces(int(words[1]), int(words[2])):
                    connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(CHUNK):
                pass

    @staticmethod
    def _line(connection: socket.socket) -> bytes:
        line = b""
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            piece = connection.recv(1)
            if not piece:
                break
            line += piece
        return line

    @staticmethod
    def _digest(connection: socket.socket) -> bytes:
        state = hashlib.sha256()
        while chunk := connection.recv(CHUNK):
            state.update(chunk)
        return state.digest()


__all__ = ["TcpActor", "UdpEcho"]
