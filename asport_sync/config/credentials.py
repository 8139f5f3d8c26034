"""Certificates, private keys and files with secrets that a configuration names and other subpackages read.

The content of such files never appears in error texts or in ``repr``.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from asport_sync.config.bad_value import BadValue, printable
from asport_sync.config.paths import CREDENTIAL_PREFIX, credentials_directory, file_path
from asport_sync.config.values import text
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenBytes, HiddenText

_PEM_MARK: Final = "-----BEGIN "
_LONGEST_LINE: Final = 65536
"""Bytes. Bounds reading if the path names a device or another endless file."""
_LARGEST: Final = 16 << 20
"""Bytes of certificates or of a key: the engine's maximum, see INPUT_MAX in tls.c."""
_FIFO_TIMEOUT: Final = 10.0
"""Seconds that a program gets to write to a FIFO, such as one that fetches a secret."""


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading. If it is a FIFO, waits for the first data, but not without limit.

    Raises:
        OSError: It cannot be opened, or nothing was written to the FIFO in time.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            if not waiting.poll(_FIFO_TIMEOUT * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing was written to the FIFO within {_FIFO_TIMEOUT:g} s")
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate chain or a private key: the path of its file, or the bytes themselves. Exactly one is set.

    Attributes:
        path: File in PEM or DER.
        data: PEM or DER; not shown by ``repr``.
    """

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def read(self, key: str | None = None) -> bytes:
        """Returns the bytes; a file is read again each time, so a renewed certificate takes effect.

        Args:
            key: The key that names the file, for errors.

        Raises:
            ConfigError: The file cannot be read, is empty, or too large.
        """
        if self.path is None:
            return HiddenBytes(self.data or b"")
        try:
            with open_file(self.path) as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", path=str(self.path), key=key) from None
        if not content:
            raise ConfigError("the file is empty", path=str(self.path), key=key)
        if len(content) > _LARGEST:
            raise ConfigError(f"the file is larger than {_LARGEST >> 20} MiB", path=str(self.path), key=key)
        return HiddenBytes(content)


def credential(value: object, directory: Path | None) -> Credential:
    """Returns a certificate or key from a path, from PEM text, or from bytes in PEM or DER.

    Args:
        value: Text with a BEGIN line is PEM, other text a path.
        directory: Base of relative paths; None leaves them relative.

    Raises:
        BadValue: None of these, or the file does not exist.
    """
    if isinstance(value, (bytes, bytearray)):
        if not value:
            raise BadValue("expected a path, PEM text or bytes, not empty bytes")
        return Credential(data=HiddenBytes(value))
    if isinstance(value, str) and _PEM_MARK in value:
        return Credential(data=HiddenBytes(text(value).encode()))
    return Credential(path=existing_file(value, directory))


def pem(value: object) -> str:
    """Returns certificates as PEM text; bytes must be PEM too."""
    if isinstance(value, (bytes, bytearray)):
        value = value.decode("ascii", "replace")
    content = text(value)
    if _PEM_MARK + "CERTIFICATE" not in content:
        raise BadValue('expected PEM text with a "-----BEGIN CERTIFICATE-----" line; a path belongs in paths')
    return content


def existing_file(value: object, directory: Path | None) -> Path:
    """Returns the path of a file, which must exist now."""
    path = file_path(value, directory)
    # A key pasted in place of its path must not be shown. Base64 has no dot, and keys in use are longer than this.
    like_a_path = "." in path.name or len(str(value)) < 40
    name = f": {printable(str(path))}" if like_a_path else "; the path is not shown because it may be a key"
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return path
        problem = "is a directory, not a file"
    except FileNotFoundError:
        problem = "no such file"
    except (OSError, ValueError) as error:
        problem = f"cannot be used ({getattr(error, 'strerror', None) or 'not a path'})"
    raise BadValue(problem + name)


def first_line(path: Path, written: object) -> str:
    """Returns the first line of a file with a secret, without its line ending.

    Args:
        path: The file.
        written: Its value in the configuration, for errors.

    Raises:
        BadValue: The file cannot be read, or its first line is empty, too long or not UTF-8.
    """
    name = printable(str(path))
    try:
        with open_file(path) as file:
            line = file.readline(_LONGEST_LINE + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG) and _may_be_a_secret(written, path):
            raise BadValue("no such file; its name is not shown because it may be the secret itself") from None
        raise BadValue(f"{name} cannot be read: {error.strerror}") from None
    if len(line) > _LONGEST_LINE:
        raise BadValue(f"the first line of {name} is longer than {_LONGEST_LINE} bytes")
    try:
        found = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadValue(f"the first line of {name} is not UTF-8 text") from None
    if not found:
        raise BadValue(f"the first line of {name} is empty")
    return HiddenText(found)


def _may_be_a_secret(written: object, path: Path) -> bool:
    """Returns whether the value of a "_file" key may be the secret itself, given that there is no such file.

    A value whose folder exists, or that has an extension, counts as a file name. Base64 may begin with a slash.
    """
    if not isinstance(written, str) or written.startswith(CREDENTIAL_PREFIX):
        return False
    in_a_folder = "/" in written and path.parent.is_dir() and path.parent != Path("/")
    return not in_a_folder and not path.suffix


def loose_permissions(path: str | os.PathLike[str], *, secret: bool = True) -> str | None:
    """Checks whether anyone except its owner and root may change a file, or read one that holds a secret.

    Args:
        path: The file. Symbolic links are followed.
        secret: Whether it holds a password or a private key; otherwise everyone may read it.

    Returns:
        What is wrong and how to fix it; None if nothing is, or if the file cannot be examined. Credentials of systemd
        are always accepted: systemd controls access to their folder by means other than the mode.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if Path(path).parent == credentials_directory():
        return None
    what = f"{os.fspath(path)} holds a secret and" if secret else f"{os.fspath(path)}"
    if found.st_uid not in (0, os.geteuid()):
        return f"{what} belongs to another user (uid {found.st_uid}), who can modify it: run chown on it"
    mode = stat.S_IMODE(found.st_mode)
    group, everybody = stat.S_IWGRP, stat.S_IWOTH
    if secret:
        group, everybody = group | stat.S_IRGRP, everybody | stat.S_IROTH
    loose = mode & (group | everybody)
    if not loose:
        return None
    verbs = [
        verb
        for verb, bits in (("read", stat.S_IRGRP | stat.S_IROTH), ("changed", stat.S_IWGRP | stat.S_IWOTH))
        if loose & bits
    ]
    who = "everyone" if loose & everybody else "its group"
    mended = mode & (0o700 if secret else 0o755)
    return f"{what} can be {' and '.join(verbs)} by {who} (mode {mode:04o}): run chmod {mended:o} on it"
