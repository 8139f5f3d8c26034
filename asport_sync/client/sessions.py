"""The sessions of a client: one for each tunnel."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from asport_sync.client.published import wait_ready
from asport_sync.client.session import ClientSession
from asport_sync.client.shared import Shared
from asport_sync.client.stats import ClientStats
from asport_sync.config import TunnelConfig
from asport_sync.engine import SocketAddress
from asport_sync.errors import ConfigError, ConfigErrors, GoneError, LifecycleError
from asport_sync.host.host import Host
from asport_sync.host.session import Session
from asport_sync.host.stats import Side

# Characters of each of the two lists in the status line, of the tunnels that are public and of the others: about as
# much as a terminal shows in two lines.
_MAX_LISTED = 200

_PUBLIC = "public "  # how the status of a public tunnel begins
_DRAINING = "draining"  # the status of a tunnel that drains


class Changes(NamedTuple):
    """The names of the tunnels in which two configurations differ.

    Attributes:
        added: Only the second has them.
        removed: Only the first has them.
        changed: Both have them, with different settings.
        renewed: Both have them with the same settings, but files that they trust have other content.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    renewed: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Mapping[str, TunnelConfig], after: Mapping[str, TunnelConfig]) -> Changes:
        """Returns in what ``after`` differs from ``before``."""
        return cls(
            tuple(name for name in after if name not in before),
            tuple(name for name in before if name not in after),
            tuple(name for name in after if name in before and after[name] != before[name]),
        )


class Sessions:
    """The sessions of the tunnels of a client between start and stop. Any thread, unless noted otherwise.

    Args:
        host: Their host.
        new: Creates the session of a tunnel, given the public port that it had before.

    Attributes:
        host: Their host.
        by_name: The sessions by tunnel, in the order of the configuration. Replaced, never changed.
    """

    def __init__(self, host: Host, new: Callable[[Host, TunnelConfig, Shared, int | None], ClientSession]) -> None:
        self.host = host
        self.by_name: Mapping[str, ClientSession] = {}
        self._new = new
        self._shared = Shared(host)

    def change(self, tunnels: Mapping[str, TunnelConfig], *, checks_files: bool = False) -> Changes:
        """Makes these the tunnels: ends and begins sessions of those that differ. One thread at a time; may block.

        If the client is stopped meanwhile, that ends all sessions.

        Args:
            tunnels: All tunnels, by name.
            checks_files: Whether files of unchanged tunnels are read again, and other content counts as a change.

        Returns:
            The names of the tunnels that are new, gone and different.

        Raises:
            ConfigErrors: A trusted certificate of a new or changed tunnel isn't usable; nothing has changed.
            EngineError: The engine lacks memory.
            LifecycleError: The system can't create a thread.
        """
        before = self.by_name
        changes = Changes.between({name: session.config for name, session in before.items()}, tunnels)
        followed = {name for name in changes.changed if can_follow(before[name].config, tunnels[name])}
        different = [name for name in (*changes.added, *changes.changed) if name not in followed]
        same = [name for name in before if name in tunnels and name not in different]
        begun = self._prepare(tunnels, different, same if checks_files else ())
        changes = changes._replace(renewed=tuple(name for name in same if name in begun))
        gone = [before[name] for name in before if name not in tunnels or name in begun]
        self.by_name = {name: begun.get(name) or before[name] for name in tunnels}
        for name in followed - begun.keys():
            with contextlib.suppress(LifecycleError, GoneError):  # the client is being stopped
                self.host.run(before[name].follow, tunnels[name])
        for session in gone:
            self.host.remove(session)
        for session in begun.values():
            try:
                self.host.open(session)
            except LifecycleError:
                if not self.host.stopping.is_set():
                    raise
                session.close()
        return changes

    def take(self, name: str) -> ClientSession | None:
        """Takes a tunnel out; returns its session, which the caller has to end. One thread at a time."""
        session = self.by_name.get(name)
        self.by_name = {other: each for other, each in self.by_name.items() if other != name}
        return session

    def _prepare(
        self, tunnels: Mapping[str, TunnelConfig], names: Sequence[str], existing: Sequence[str]
    ) -> dict[str, ClientSession]:
        """Creates sessions and reads their files.

        Args:
            tunnels: All tunnels, by name.
            names: Those that get a new session.
            existing: Those that get one if the files that they trust differ.

        Raises:
            ConfigErrors: One or more files aren't usable; each problem is listed once.
        """
        made: dict[str, ClientSession] = {}
        problems: dict[str, ConfigError] = {}
        try:
            outdated = []
            for name in existing:
                try:
                    if self.by_name[name].is_outdated():
                        outdated.append(name)
                except ConfigError as problem:
                    problems.setdefault(str(problem), problem)
            for name in (*names, *outdated):
                former = self.by_name.get(name)
                session = self._new(self.host, tunnels[name], self._shared, None if former is None else former.port)
                try:
                    session.prepare()
                except ConfigError as problem:
                    problems.setdefault(str(problem), problem)
                else:
                    made[name] = session
            if problems:
                raise ConfigErrors(problems.values())
        except BaseException:
            for session in made.values():
                session.close()
            raise
        return made

    def wait_ready(self, timeout: float | None) -> SocketAddress:
        """See ``Client.wait_ready``."""
        tunnels = [session.published for session in self.by_name.values()]
        if not tunnels:
            raise LifecycleError("there is no tunnel")
        return wait_ready(tunnels, timeout, self._shared.changed)[0]

    def stats(self) -> ClientStats:
        """Returns statistics of the tunnels and of their host.

        Raises:
            EngineClosedError: The host is stopped.
        """
        tunnels = {name: session.stats() for name, session in self.by_name.items()}
        return ClientStats(
            running=True,
            **self.host.stats(Side.CLIENT),
            public=next((each.public for each in tunnels.values()), None),
            connections=tuple(connection for each in tunnels.values() for connection in each.connections),
            tunnels=tunnels,
        )


def can_follow(before: TunnelConfig, after: TunnelConfig) -> bool:
    """Returns whether a tunnel can follow another configuration without another connection."""
    return dataclasses.replace(before, bandwidth=after.bandwidth) == after


def status_of(sessions: Sequence[Session]) -> str:
    """Returns the state of all tunnels in one line of bounded length, for the service manager. Any thread."""
    if len(sessions) == 1:
        return sessions[0].status
    states = [(each.name, each.status) for each in sessions if isinstance(each, ClientSession)]
    if states and all(said == _DRAINING for _, said in states):
        return f"draining, {len(states)} tunnels"
    public = [f"{name} {said.removeprefix(_PUBLIC)}".lstrip() for name, said in states if said.startswith(_PUBLIC)]
    others = [f"{name} {said}".lstrip() for name, said in states if not said.startswith(_PUBLIC)]
    line = f"{len(public)} of {len(states)} tunnels public"
    if public:
        line += f": {_listed(public, ', ')}"
    return f"{line}; {_listed(others, '; ')}" if others else line


def _listed(items: Sequence[str], separator: str) -> str:
    """Returns as many items as there is room for, at least one, and how many are left out."""
    shown: list[str] = []
    for item in items:
        if shown and sum(map(len, shown)) + len(item) > _MAX_LISTED:
            break
        shown.append(item)
    left_out = len(items) - len(shown)
    return separator.join(shown) + (f" and {left_out} more" if left_out else "")
