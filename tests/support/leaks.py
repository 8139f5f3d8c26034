"""What a test may leave behind: nothing. Threads, descriptors, child processes and network namespaces are compared.

Threads are counted as the kernel sees them, so that a thread started by native code shows up too.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.namespaces import existing_namespaces
from tests.support.sanitized import REPORT, preloaded
from tests.support.waiting import NeverHappened, wait_until

# Seconds that things which are already ending (a joined thread, a closed connection's worker) get to be gone.
GRACE = 5.0


@dataclass(frozen=True)
class Belongings:
    """What this process holds at one moment; each kind maps an identity to a description."""

    threads: dict[str, str] = field(default_factory=dict)
    descriptors: dict[str, str] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)
    namespaces: dict[str, str] = field(default_factory=dict)


def belongings() -> Belongings:
    """Look at this process."""
    return Belongings(_threads(), _descriptors(), _children(), {name: name for name in existing_namespaces()})


def left_behind(before: Belongings) -> list[str]:
    """Say what this process holds now and did not hold ``before``, one line each."""
    now = belongings()
    return [
        f"{kind}: {description}"
        for kind, old, new in (
            ("thread", before.threads, now.threads),
            ("file descriptor", before.descriptors, now.descriptors),
            ("child process", before.children, now.children),
            ("network namespace", before.namespaces, now.namespaces),
        )
        for identity, description in new.items()
        if identity not in old
    ]


def check_nothing_left(before: Belongings, grace: float = GRACE) -> None:
    """Wait until nothing is left over since ``before``.

    Raises:
        NeverHappened: Something stayed for ``grace`` seconds; the text names each thing.
    """
    if not left_behind(before):
        return
    # Reference cycles, as exceptions with tracebacks form them, may keep a finished thing alive; that is no leak.
    gc.collect()
    try:
        wait_until(lambda: not left_behind(before), grace, "everything the test made is gone")
    except NeverHappened:
        rest = left_behind(before)
        if rest:
            raise NeverHappened("the test left behind:\n  " + "\n  ".join(rest)) from None


def _threads() -> dict[str, str]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            comm = (task / "comm").read_text().strip()
        except OSError:
            continue  # ended meanwhile
        number = int(task.name)
        found[task.name] = f"{names.get(number, 'not a Python thread')} (tid {number}, {comm})"
    return found


def _descriptors() -> dict[str, str]:
    # The target belongs to the identity: a test that closes descriptor 7 and leaks another 7 is caught.
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the descriptor of this very listing
        if preloaded() and REPORT.fullmatch(target):
            continue  # a sanitizer's own, which it opens for its first report
        found[f"{number} {target}"] = f"{number} -> {target}"
    return found


def _children() -> dict[str, str]:
    found = {}
    for pid in _child_pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue  # reaped meanwhile
        found[str(pid)] = f"pid {pid}: {line or 'ended but not reaped'}"
    return found


def _child_pids() -> list[int]:
    pids = []
    for task in Path("/proc/self/task").iterdir():
        try:
            pids += [int(pid) for pid in (task / "children").read_text().split()]
        except FileNotFoundError:
            if task.exists():
                return _child_pids_by_search()  # a kernel built without CONFIG_PROC_CHILDREN
        except ProcessLookupError:
            continue  # the thread ended meanwhile
    return pids


def _child_pids_by_search() -> list[int]:
    pids = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                # "pid (name) state parent ...", where the name may hold spaces and brackets.
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == os.getpid():
                pids.append(int(process.name))
    return pids
