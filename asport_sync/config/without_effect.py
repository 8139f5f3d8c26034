"""Keys without effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields

from asport_sync.config.client import ClientConfig
from asport_sync.config.server import ServerConfig
from asport_sync.config.tunnel import TunnelConfig

WITHOUT_EFFECT: Mapping[str, str] = {
    "max_packet_size": "UDP packets of every size are carried whole",
    "buffer_pool_size": "memory for UDP packets is allocated as they come, up to a fixed amount",
    "healthy_check": "a lost connection is detected by its silence and replaced immediately",
    "gc_interval": "fragments are dropped when gc_lifetime is over, without periodic scans",
    "zero_rtt_handshake": "ASPORT cannot use TLS early data",
}
"""Keys that are accepted and validated for compatibility, but have no effect; and why."""


def without_effect(config: ClientConfig | ServerConfig) -> Iterator[tuple[str, str]]:
    """Yields the keys without effect whose value is not the default, and why each has none.

    A key that several tunnels have set counts once.
    """
    owners: Iterable[TunnelConfig | ServerConfig]
    owners = config.tunnels.values() if isinstance(config, ClientConfig) else (config,)
    names = {
        each.name
        for owner in owners
        for table in (owner, owner.tls)
        for each in fields(table)
        if each.name in WITHOUT_EFFECT and getattr(table, each.name) != each.default
    }
    yield from ((name, why) for name, why in WITHOUT_EFFECT.items() if name in names)
    if config.relay == "engine" and config.max_workers:
        yield "max_workers", "with relay: engine there are no workers"
    if config.relay == "workers" and config.max_workers == 0:
        yield "relay", "max_workers is 0, so the engine relays everything"
