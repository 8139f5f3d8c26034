"""The folder that keeps fetched and built third-party files, outside the source tree.

What is in it ends up in the extension module, so it is used only where nobody but the user who builds, and root, may
have changed it, and where it still is what it was when it was published: beside each file or folder lies a list of
SHA-256 sums (``NAME.sha256``).
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

    Raises:
        Refused: Somebody else may write to the cache.
        StepFailed: It can't be made or written to.
    """
    try:
        make_folder(cache)
        check(cache, cache)
        held = (cache / "lock").open("w")
    except OSError as problem:
        raise StepFailed(
            f"the cache folder {cache} can't be used ({problem.strerror}): name another folder in ASPORT_CACHE"
        ) from problem
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build holds the cache; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A folder for unfinished work, on the cache's own file system so that a rename publishes the result whole."""
    make_folder(cache)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=cache, ignore_cleanup_errors=True) as name:
        yield Path(name)


def publish(finished: Path, place: Path) -> Path:
    """Move a finished folder or file to its place in one step; whoever looks sees nothing or all of it.

    Args:
        finished: In a folder that nobody else may write to, as that of :func:`scratch`. A folder that is at the place
            already, and damaged, goes there.
        place: Where it is to be. Its sums are written beside it, for :func:`kept`.
    """
    for path in (finished, *_below(finished)):
        # Whatever the umask was: else the user's own cache would be refused the next time.
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
    """Make a folder, and those above it that are missing, in which nobody else may write whatever the umask is."""
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(0o755, exist_ok=True)


def kept(cache: Path, place: Path, *, digest: str = "") -> bool:
    """Whether a file or folder is in the cache, and is what was published there.

    Args:
        cache: The cache folder.
        place: Below it.
        digest: SHA-256 of the file, for one that was published before sums were written.

    Raises:
        Refused: Somebody else may have changed it.
    """
    if not place.exists():
        return False
    check(cache, place)
    record = _record(place)
    noted = record.read_text() if record.is_file() else f"{digest}  {place.name}\n"
    return noted == _sums(place, place.name)


def check(cache: Path, place: Path) -> None:
    """Make sure that only the user who builds, and root, may write to something in the cache; see :func:`doubt`.

    Raises:
        Refused: Somebody else may, or owns it.
    """
    if problem := doubt(cache, place):
        raise Refused(f"{problem}: remove {cache}, or name another folder in ASPORT_CACHE")


def doubt(cache: Path, place: Path) -> str:
    """What is wrong with the owner or the mode of something in the cache; empty where nothing is.

    Args:
        cache: The cache folder; what is above it is the user's choice.
        place: The cache folder itself, or a file or folder below it. The folders between count, and all that is below.
    """
    if place == cache:
        paths = [cache]
    else:
        between = [folder for folder in place.parents if folder.is_relative_to(cache)]
        there = [path for path in (place, _record(place)) if path.exists()]
        # A link below it is as safe as the folder that it is in, and leads to what is looked at as well.
        below = [path for path in _below(place) if not path.is_symlink()]
        paths = [*reversed(between), *there, *below]
    for path in paths:
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} is not used, as it belongs to user {status.st_uid}, and user {os.geteuid()} is building"
        if status.st_mode & _OTHERS_WRITE:
            return f"{path} is not used, as other users may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _record(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _below(place: Path) -> list[Path]:
    """Everything in a folder, sorted; links are not followed. Nothing for a file."""
    return sorted(Path(folder, name) for folder, folders, files in os.walk(place) for name in (*folders, *files))


def _sums(place: Path, name: str) -> str:
    """A line for each file, as sha256sum writes it, and for each symbolic link, with another name for the place."""
    lines = []
    for path in (place, *_below(place)):
        shown = Path(name, path.relative_to(place))
        if path.is_symlink():
            lines.append(f"# {shown} -> {os.readlink(path)}\n")
        elif path.is_file():
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {shown}\n")
    return "".join(lines)
