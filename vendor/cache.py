"""The folder that keeps fetched and built third-party files, outside the source tree."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from vendor.steps import say


def folder(env: Mapping[str, str] = os.environ) -> Path:
    """``$ASPORT_CACHE``, else ``$XDG_CACHE_HOME/asport-sync``, else ``~/.cache/asport-sync``. Not created here."""
    if chosen := env.get("ASPORT_CACHE"):
        return Path(chosen).absolute()
    base = env.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "asport-sync"


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache for writing. A second build waits here and then finds what the first one made.

    The kernel drops the lock when its holder dies, so there is never a stale one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build holds the cache; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A folder for unfinished work, on the cache's own file system so that a rename publishes the result whole."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=cache, ignore_cleanup_errors=True) as name:
        yield Path(name)


def publish(finished: Path, place: Path) -> Path:
    """Move a finished folder or file to its place in one step; whoever looks sees nothing or all of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    finished.rename(place)
    return place
