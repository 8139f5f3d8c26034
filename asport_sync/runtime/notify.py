"""Telling systemd how a service does (sd_notify(3)), without its library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*assignments: str) -> bool:
    """Sends assignments such as ``READY=1`` to the service manager.

    Args:
        assignments: ``NAME=value`` each; line breaks in values become spaces.

    Returns:
        Whether there is a service manager that took them. Without one, or when it can't be reached, nothing happens: a
        service must not fail for want of somebody to report to.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]  # the abstract namespace of unix(7)
    message = "\n".join(assignment.replace("\n", " ") for assignment in assignments).encode("utf-8", "replace")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        # Never waits: a manager that doesn't read must not hold up the service.
        sock.setblocking(False)
        sock.sendto(message, address)
        return True
    return False


def ready(status: str) -> bool:
    """The service has started; ``status`` is one line for ``systemctl status``."""
    return notify("READY=1", f"STATUS={status}")


def status(text: str) -> bool:
    """One line for ``systemctl status``."""
    return notify(f"STATUS={text}")


def stopping() -> bool:
    """The service is about to end."""
    return notify("STOPPING=1")
