"""The limit on this process's file descriptors (RLIMIT_NOFILE, getrlimit(2))."""

from __future__ import annotations

import contextlib
import resource

from asport_sync.runtime.process import limits

MAX_DESCRIPTORS = 1 << 20
"""More is never needed: that many connections take tens of gigabytes. Also the kernel's default upper bound
(fs.nr_open)."""

_UNKNOWN = 1024  # assumed if the limit cannot be determined: the usual value


def limit() -> int | None:
    """Returns the soft limit, which is the effective one; None if there is none."""
    soft = (limits(resource.RLIMIT_NOFILE) or (_UNKNOWN,))[0]
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int | None:
    """Raises the soft limit to the hard limit, but not above ``MAX_DESCRIPTORS``; returns the resulting soft limit.

    For commands only: a program that uses the library may have reasons for a low limit, such as calls of select().
    """
    soft, hard = limits(resource.RLIMIT_NOFILE) or (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # ValueError: above the kernel's limit (fs.nr_open), which may have been lowered meanwhile.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()
