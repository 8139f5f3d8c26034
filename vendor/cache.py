"""The folder that keeps fetched and built third-party files, outside the source tree.

Its content ends up in the extension module. It is therefore used only if no one but the building user and root can have
changed it, and if it still is what was published: next to each file or folder is a list of SHA-256 sums
(``NAME.sha256``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from vendor.steps import Refused, StepFailed, say

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def folder(env: Mapping[str, str] = os.environ) -> Path:
    """Return ``$ASPORT_CACHE``, ``$XDG_CACHE_HOME/asport-sync`` or ``~/.cache/asport-sync``, without creating it."""
    if chosen := env.get("ASPORT_CACHE"):
        return Path(chosen).absolute()
    base = env.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "asport-sync"


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Lock the cache for writing. A second build waits here and then finds the result of the first.

    The kernel releases the lock when its holder dies, so it cannot become stale.

    Raises:
        Refused: Another user may write to the cache.
        StepFailed: The cache cannot be created or written to.
    """
    try:
        make_folder(cache)
        check(cache, cache)
        held = (cache / "lock").open("w")
    except OSError as problem:
        raise StepFailed(
            f"cannot use the cache folder {cache} ({problem.strerror}): name another folder in ASPORT_CACHE"
        ) from problem
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build, which holds the cache lock")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """Provide a folder for unfinished work, on the cache's file system, so that a rename publishes it atomically."""
    make_folder(cache)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=cache, ignore_cleanup_errors=True) as name:
        yield Path(name)


def publish(finished: Path, place: Path) -> Path:
    """Move a finished folder or file to its place atomically; other processes see nothing or all of it.

    Args:
        finished: In a folder that no other user may write to, such as that of :func:`scratch`. A damaged folder that is
            at the place already is moved there.
        place: The destination. The sums are written next to it, for :func:`kept`.
    """
    for path in (finished, *_below(finished)):
        # Independent of the umask: otherwise the user's own cache could be refused the next time.
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_WRITE)
    make_folder(place.parent)
    record = _record(place)
    unfinished = record.with_name(f"{record.name}.tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(0o644)
    unfinished.write_text(_sums(finished, place.name))
    unfinished.replace(record)
    if place.is_dir():
        place.rename(finished.with_name("damaged"))
    finished.rename(place)
    return place


def make_folder(place: Path) -> None:
    """Create a folder and its missing parents, which no other user may write to, whatever the umask is."""
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(0o755, exist_ok=True)


def kept(cache: Path, place: Path) -> bool:
    """Return whether a file or folder is in the cache and is what was published there.

    Args:
        cache: The cache folder.
        place: A file or folder below it.

    Raises:
        Refused: Another user may have changed it.
    """
    if not place.exists():
        return False
    check(cache, place)
    record = _record(place)
    return record.is_file() and record.read_text() == _sums(place, place.name)


def check(cache: Path, place: Path) -> None:
    """Make sure that only the building user and root may write to something in the cache; see :func:`doubt`.

    Raises:
        Refused: Another user may write to it or owns it.
    """
    if problem := doubt(cache, place):
        raise Refused(f"{problem}: remove {cache}, or name another folder in ASPORT_CACHE")


def doubt(cache: Path, place: Path) -> str:
    """Return what is wrong with the owner or mode of something in the cache; empty if nothing is.

    Args:
        cache: The cache folder. The folders above it are the user's choice and are not checked.
        place: The cache folder itself, or a file or folder below it. The folders between and everything below the place
            are checked, too.
    """
    if place == cache:
        paths = [cache]
    else:
        between = [folder for folder in place.parents if folder.is_relative_to(cache)]
        there = [path for path in (place, _record(place)) if path.exists()]
        # A link below it is as safe as the folder that contains it, and its target is checked as well.
        below = [path for path in _below(place) if not path.is_symlink()]
        paths = [*reversed(between), *there, *below]
    for path in paths:
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} is not used: it belongs to user {status.st_uid}, and user {os.geteuid()} is building"
        if status.st_mode & _OTHERS_WRITE:
            return f"{path} is not used: other users may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _record(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _below(place: Path) -> list[Path]:
    """Return everything in a folder, sorted, without following links; nothing for a file."""
    return sorted(Path(folder, name) for folder, folders, files in os.walk(place) for name in (*folders, *files))


def _sums(place: Path, name: str) -> str:
    """Return a line for each file, as sha256sum writes it, and for each symbolic link; ``name`` replaces the place."""
    lines = []
    for path in (place, *_below(place)):
        shown = Path(name, path.relative_to(place))
        if path.is_symlink():
            lines.append(f"# {shown} -> {os.readlink(path)}\n")
        elif path.is_file():
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {shown}\n")
    return "".join(lines)
