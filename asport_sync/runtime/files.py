"""Creates and replaces small files so that no reader ever sees half of one, and nothing is overwritten by mistake."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWNER_ONLY: Final = 0o600
"""The mode of files with secrets."""
_LARGEST: Final = 16 << 20
"""Bytes: far more than any configuration has."""


def create(path: Path, content: bytes, mode: int = OWNER_ONLY) -> None:
    """Creates a file; it is on the disk when this returns. Of a file that cannot be written, nothing is left.

    Args:
        path: The file.
        content: What it contains.
        mode: Its permissions, whatever the umask.

    Raises:
        FileExistsError: There is something of this name, even a symbolic link that leads nowhere.
        OSError: The file cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
    try:
        try:
            os.fchmod(descriptor, mode)
            _write(descriptor, content)
        finally:
            os.close(descriptor)
        _sync_directory(path.parent)
    except BaseException:
        os.unlink(path)
        raise


@dataclass(frozen=True, slots=True)
class LockedFile:
    """An existing file that this process has locked, and no other process that uses :func:`locked`.

    Attributes:
        path: The file itself: symbolic links are followed.
        content: Its content; not shown by ``repr``, as it may hold secrets.
    """

    path: Path
    content: bytes
    _status: os.stat_result

    def __repr__(self) -> str:
        return f"LockedFile({str(self.path)!r})"

    def replace(self, content: bytes, check: Callable[[Path], object] | None = None) -> None:
        """Replaces the file by a new one with the same owner and permissions. A reader sees all of the old or the new.

        Args:
            content: The new content.
            check: Called with the new file, which has the same folder and extension, before it takes the old one's
                place. If it raises an exception, nothing has changed.

        Raises:
            OSError: The new file cannot be written, or cannot have the owner; nothing has changed.
        """
        beside = self.path.with_name(f".{self.path.stem}.{os.urandom(8).hex()}{self.path.suffix}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
        try:
            try:
                made = os.fstat(descriptor)
                if (made.st_uid, made.st_gid) != (self._status.st_uid, self._status.st_gid):
                    os.fchown(descriptor, self._status.st_uid, self._status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(self._status.st_mode))
                _write(descriptor, content)
            finally:
                os.close(descriptor)
            if check is not None:
                check(beside)
            os.rename(beside, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            raise
        _sync_directory(self.path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[LockedFile]:
    """Locks a file and yields it with its content. Waits for others that have locked it.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    real = path.resolve(strict=True)
    while True:
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(real))
            if found.st_size > _LARGEST:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(real))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.path.samestat(os.stat(real), found):
                continue  # another process has replaced it meanwhile
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            yield LockedFile(real, content, found)
            return
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    """Puts the entry of a new file on the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
