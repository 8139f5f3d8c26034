"""Decodes commands that arrive in pieces. The product doesn't need it: the engine collects what a stream carries."""

from __future__ import annotations

from asport_sync.wire import Command, decode
from asport_sync.wire.codec import Buffer, command_length, payload_length


class Decoder:
    """Decodes commands from a stream that arrives in pieces of any size.

    Not thread-safe. The buffer holds the bytes that were fed and not decoded yet, so the caller bounds it: a Packet
    takes at most 65564 bytes, every other command at most 55.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> None:
        """Appends the next bytes of the stream. Any length, including zero; they are copied."""
        self._buffer += data

    def next_command(self) -> Command | None:
        """Removes the next command from the buffer and returns it.

        Returns:
            The command, a Packet with its complete payload; None if more bytes are needed.

        Raises:
            RemoteProtocolError: The bytes are not a command. They stay in the buffer, so every later call raises again.
        """
        header = command_length(self._buffer)
        payload = payload_length(self._buffer)
        if header is None or payload is None or len(self._buffer) < header + payload:
            return None
        command, consumed = decode(self._buffer)
        del self._buffer[:consumed]
        return command

    @property
    def trailing(self) -> bytes:
        """The bytes that were fed but belong to no command returned so far; after a Connect, application data."""
        return bytes(self._buffer)
