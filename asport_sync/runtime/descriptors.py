"""How many file descriptors this process may have (RLIMIT_NOFILE, getrlimit(2))."""

from __future__ import annotations

import contextlib
import resource

from asport_sync.runtime.process import limits

MOST = 1 << 20
"""Nobody needs more: that many connections take tens of gigabytes. Also the kernel's own bound by default."""

_UNKNOWN = 1024  # what the limit is taken for where nothing tells it: the usual one


def limit() -> int | None:
    """The soft limit, which is the one that counts; None: there is none."""
    soft = (limits(resource.RLIMIT_NOFILE) or (_UNKNOWN,))[0]
    return None if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int | None:
    """Raises the soft limit to the hard one, but not above ``MOST``; returns what it is then.

    For commands: a program that uses the library may have its reasons for a low limit, such as calls of select().
    """
    soft, hard = limits(resource.RLIMIT_NOFILE) or (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # ValueError: beyond what the kernel was told to allow (fs.nr_open) meanwhile.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()
