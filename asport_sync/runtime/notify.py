"""Reports the state of a service to systemd (sd_notify(3)), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*assignments: str) -> bool:
    """Sends assignments such as ``READY=1`` to the service manager.

    Args:
        assignments: ``NAME=value`` each; line breaks in values are replaced by spaces.

    Returns:
        Whether the service manager accepted them. Without a service manager, or if it is unreachable, nothing happens:
        a service must not fail for lack of a service manager.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]  # the abstract namespace of unix(7)
    message = "\n".join(assignment.replace("\n", " ") for assignment in assignments).encode("utf-8", "replace")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        # Non-blocking: a service manager that does not read must not block the service.
        sock.setblocking(False)
        sock.sendto(message, address)
        return True
    return False


def ready(status: str) -> bool:
    """Reports that the service has started; ``status`` is one line for ``systemctl status``."""
    return notify("READY=1", f"STATUS={status}")


def status(text: str) -> bool:
    """Reports one line for ``systemctl status``."""
    return notify(f"STATUS={text}")


def reloading() -> bool:
    """Reports that the service reloads its configuration; ``ready`` has to follow (Type=notify-reload)."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping(within: float = 0.0) -> bool:
    """Reports that the service is about to end.

    Args:
        within: Seconds that it may take if that is longer than the unit allows (TimeoutStopSec); 0: it takes no longer.
    """
    return notify("STOPPING=1", *([f"EXTEND_TIMEOUT_USEC={int(within * 1e6)}"] if within > 0 else []))


def watchdog_interval() -> float | None:
    """Returns the seconds between two calls of ``feed_watchdog``; None: the service manager expects none.

    A third of the time after which the service manager considers the service dead: one call may be late or lost.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for the process that started this one
    limit = os.environ.get("WATCHDOG_USEC", "")
    return int(limit) / 3e6 if limit.isdecimal() and int(limit) > 0 else None


def feed_watchdog() -> bool:
    """Reports that the service is alive."""
    return notify("WATCHDOG=1")
