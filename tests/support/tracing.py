"""Stops single threads of other processes, as ``kill -STOP`` cannot."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17  # requests of ptrace(2)
_WALL = 0x40000000  # of waitpid(2): for threads too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def stopped(thread: int) -> Iterator[None]:
    """A thread does nothing meanwhile, while the others of its process go on.

    Skips the test if the system forbids it.

    Args:
        thread: Its id, as of ``threading.Thread.native_id``, in a child process of this one.
    """
    if _libc.ptrace(_SEIZE, thread, None, None) != 0:
        pytest.skip(f"ptrace is not permitted here: {os.strerror(ctypes.get_errno())}")
    try:
        assert _libc.ptrace(_INTERRUPT, thread, None, None) == 0
        assert os.waitpid(thread, _WALL)[0] == thread
        yield
    finally:
        _libc.ptrace(_DETACH, thread, None, None)
