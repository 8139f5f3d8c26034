"""What happens to this machine: its address towards servers changes, or it was suspended."""

from __future__ import annotations

import logging
from collections.abc import Callable

from asport_sync.engine import SocketAddress, clock_watch
from asport_sync.errors import EngineError
from asport_sync.runtime.machine import NetworkWatch, SleepWatch
from asport_sync.runtime.selecting import SelectorThread

_log = logging.getLogger("asport_sync.runtime")


class MachineWatch:
    """Watches this machine for all sessions of a host, which need one netlink socket and one timer together.

    Args:
        pump: The thread that waits for changes, and makes the calls.
        asleep: Returns how many seconds this machine has been suspended since an arbitrary moment.
    """

    def __init__(self, pump: SelectorThread, asleep: Callable[[], float]) -> None:
        self._pump = pump
        self._asleep = asleep
        # The pump thread only, until it has ended:
        self._is_open = False
        self._network = NetworkWatch(pump)
        self._sleep: SleepWatch | None = None
        self._resumed: dict[object, Callable[[], object]] = {}  # by owner

    def watch(self, owner: object, resumed: Callable[[], object]) -> None:
        """Calls ``resumed()`` after each suspend. Any thread."""
        self._pump.call(self._watch, owner, resumed)

    def watch_route(self, owner: object, server: SocketAddress, changed: Callable[[], object]) -> None:
        """Calls ``changed()`` when the kernel would send to this server from another address than before. Any thread.

        Replaces the earlier call of the same owner. If the server is the same, the address of before still counts.
        """
        self._pump.call(self._network.watch_route, owner, server, changed)

    def unwatch(self, owner: object) -> None:
        """Makes no more calls for this owner, once calls in progress have returned. Any thread."""
        self._pump.call(self._unwatch, owner)

    def close(self) -> None:
        """Closes the descriptors. The pump has ended."""
        self._network.close()
        if self._sleep is not None:
            self._sleep.close()

    # --- the pump thread ---

    def _watch(self, owner: object, resumed: Callable[[], object]) -> None:
        self._resumed[owner] = resumed
        if self._is_open:
            return
        self._is_open = True
        self._network.open()
        try:
            self._sleep = SleepWatch(self._pump, clock_watch(), self._call_all, self._asleep)
        except EngineError as problem:
            _log.debug("resume from sleep cannot be detected: %s", problem)
        else:
            self._sleep.open()

    def _unwatch(self, owner: object) -> None:
        self._resumed.pop(owner, None)
        self._network.unwatch_route(owner)

    def _call_all(self) -> None:
        for resumed in self._resumed.values():
            resumed()
