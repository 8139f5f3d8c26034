"""Groups: clients of one user that share a public port (``balance``). The events thread."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Final

from asport_sync.config import BalanceName
from asport_sync.engine import Balance, Engine
from asport_sync.errors import EngineError
from asport_sync.server.ports import PublicPort
from asport_sync.server.public_udp import PortAssociations
from asport_sync.wire import ForwardMode

if TYPE_CHECKING:
    from asport_sync.server.connection import ClientConnection

_BALANCES: Final[dict[BalanceName, Balance]] = {
    "round_robin": Balance.ROUND_ROBIN,
    "least_connections": Balance.LEAST_CONNECTIONS,
}


class PortGroup:
    """The clients that share a public port. The engine spreads visitors over them.

    Args:
        engine: The host's.
        port: What they share. It has the sockets that at least one of them needs.
        balance: How visitors are spread.

    Attributes:
        port: As given.
        balance: The current policy.
        handle: The engine's group.
        members: Its clients, and the networks that each was granted.
        associations: What their UDP associations share.

    Raises:
        EngineError: The engine is out of memory, or being stopped.
    """

    def __init__(self, engine: Engine, port: PublicPort, balance: BalanceName) -> None:
        self.port = port
        self.balance = balance
        self.handle = engine.new_group(_BALANCES[balance])
        self.members: dict[ClientConnection, ForwardMode] = {}
        self.associations = PortAssociations()

    def mode(self, *more: ForwardMode) -> ForwardMode:
        """Returns the networks that its members, and clients with these modes, need."""
        return functools.reduce(_both, (*self.members.values(), *more), ForwardMode(False, None))

    def set_balance(self, balance: BalanceName) -> None:
        """Changes how new visitors are spread."""
        if balance != self.balance:
            self.balance = balance
            self.handle.set_balance(_BALANCES[balance])

    @property
    def is_accepting(self) -> bool:
        """Whether a member still accepts TCP connections."""
        return any(member.listener is not None for member in self.members)

    def close(self) -> None:
        """Forgets the group, whose last member has left."""
        with contextlib.suppress(EngineError):
            self.handle.close()


def _both(first: ForwardMode, second: ForwardMode) -> ForwardMode:
    return ForwardMode(first.tcp or second.tcp, first.udp or second.udp)
