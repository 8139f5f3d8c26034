"""What all tunnels of a client share."""

from __future__ import annotations

import threading
from typing import Any

from asport_sync.host.associations import SharedBudget
from asport_sync.host.certificates import SharedTrust
from asport_sync.host.host import Host
from asport_sync.runtime import descriptors

# Maximum number of UDP associations, each with a socket of its own. Somewhat more than half of the kernel's default
# range of local ports (28,232), which other programs on this machine need as well. Each takes 1.5 KiB here, and two or
# three in the kernel.
_MAX_ASSOCIATIONS = 16384
_DESCRIPTORS_PER_ASSOCIATION = 2  # the socket, and the engine's duplicate of it


class Shared:
    """What the tunnels of a client have in common while it is started.

    Args:
        host: The host of all of them.

    Attributes:
        changed: Notified when the state of a tunnel has changed; its lock guards that of all.
        trust: The certificates that they trust. Any thread.
        places: Places of UDP associations. The pump thread only.
    """

    def __init__(self, host: Host) -> None:
        self.changed = threading.Condition()
        self.trust = SharedTrust(host.engine)
        self.places: SharedBudget[Any] = SharedBudget(max_associations(descriptors.limit()))


def max_associations(limit: int | None) -> int:
    """Returns the maximum number of UDP associations, given the process's limit of descriptors (None: no limit).

    Half of the descriptors remain for TCP and everything else.
    """
    return _MAX_ASSOCIATIONS if limit is None else min(_MAX_ASSOCIATIONS, limit // (2 * _DESCRIPTORS_PER_ASSOCIATION))
