"""Where the control socket is, how it is created, and who may use it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from asport_sync.errors import ConfigError
from asport_sync.forked import new_socket
from asport_sync.host.stats import Side

KEY = "control_socket"

_BACKLOG = 16
_LONGEST_PATH = 107  # bytes: sun_path without the NUL (unix(7)); nobody could connect to a longer one
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_PROBE_TIMEOUT = 1.0  # seconds; a connection to a socket of a live process takes microseconds
_LOCK_TIMEOUT = 2.0  # seconds to wait for another process of ours: longer than its probe, which takes most of the time
_LOCK_PAUSE = 0.01  # seconds between two tries

# Where services have their runtime directories (RuntimeDirectory= in systemd.exec(5)): those of the system below this
# one, those of a user below $XDG_RUNTIME_DIR.
_SYSTEM = Path("/run")
_PATTERN = "asport*"
_DIRECTORY = "asport-sync"  # of processes that are no service, below the same directories


def name_of(side: Side) -> str:
    """Returns the file name of the control socket of a client or a server."""
    return f"{side.value}.sock"


def default_path(side: Side) -> Path | None:
    """Returns where a command has its control socket unless the configuration says so; None: nowhere."""
    directory = next(_own_directories(), None)
    return None if directory is None else directory / name_of(side)


def _own_directories() -> Iterator[Path]:
    """Yields the directories for sockets of this process, best first."""
    # systemd separates several directories by colons (systemd.exec(5)).
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if os.path.isabs(runtime):
        yield Path(runtime)
    for user in _user_directories():
        if _is_safe(user):
            yield user / _DIRECTORY
    # In a container, or after su, root has none of these.
    if os.geteuid() == 0 and os.access(_SYSTEM, os.W_OK) and _is_safe(_SYSTEM):
        yield _SYSTEM / _DIRECTORY


def _user_directories() -> Iterator[Path]:
    """Yields the runtime directories of this user, best first; neither has to exist, nor to be theirs."""
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(user):
        yield Path(user)
    yield _SYSTEM / "user" / str(os.geteuid())  # what the variable is after a login (pam_systemd(8))


def _is_safe(directory: Path) -> bool:
    """Returns whether a directory exists, and no other user could replace files of this one in it.

    After su, XDG_RUNTIME_DIR may still be the directory of the user before.
    """
    try:
        found = directory.stat()
    except OSError:
        return False
    is_shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (0, os.geteuid()) and not is_shared


def find(side: Side | None = None) -> list[Path]:
    """Returns the control sockets of clients, of servers, or of both that this user can see, dead ones included."""
    sides = [Side.CLIENT, Side.SERVER] if side is None else [side]
    of_services = [path for parent in (*_user_directories(), _SYSTEM) for path in sorted(parent.glob(_PATTERN))]
    directories = dict.fromkeys([*_own_directories(), *of_services])
    return [path for directory in directories for each in sides if _is_socket(path := directory / name_of(each))]


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


class SocketInUse(ConfigError):
    """Another process has the control socket.

    Attributes:
        owner: The process, for people.
    """

    def __init__(self, path: Path, pid: int) -> None:
        # The kernel says 0 for a process that this one cannot see: that of another container.
        self.owner = f"process {pid}" if pid else "another process"
        super().__init__(f"cannot create the control socket {path}: {self.owner} uses it", key=KEY)


class ControlSocket:
    """A listening unix socket of mode 0600 that is removed when it is closed.

    Replaces the socket of a process that has died, but neither one that answers nor a file of another kind.

    Args:
        path: Its path; the directory must exist.

    Attributes:
        path: The same.
        sock: The socket.

    Raises:
        SocketInUse: Another process has it.
        ConfigError: It can't be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _only_one(path.parent):
                _check_free(path)
                self.sock = _bound(path)
                made = path.lstat()
        except OSError as problem:
            raise ConfigError(f"cannot create the control socket {path}: {_why(problem)}", key=KEY) from None
        self._made = (made.st_dev, made.st_ino)

    def close(self) -> None:
        """Closes the socket, and removes its file unless another process has replaced it. Idempotent."""
        self.sock.close()
        with contextlib.suppress(OSError), _only_one(self.path.parent):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._made:
                self.path.unlink()


def _why(problem: OSError) -> str:
    return problem.strerror or str(problem)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Keeps other processes of ours from creating or removing a socket in the directory at the same time.

    Not if the file system has no locks, and not for long: anybody who can read the directory can lock it. Then two
    starts at the same moment may collide.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        with contextlib.suppress(OSError):
            while not _locked(descriptor) and time.monotonic() < deadline:
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Tries to lock a file; returns whether that has succeeded.

    Raises:
        OSError: Its file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_free(path: Path) -> None:
    """Checks that nothing is at the path, or the socket of a dead process.

    Raises:
        SocketInUse: The socket of a live process is.
        OSError: Something else is, or nothing can be.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {_LONGEST_PATH} bytes")
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is another file")
    with new_socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            raise SocketInUse(path, 0) from None  # its backlog is full
        pid, _, _ = _credentials(probe)
    raise SocketInUse(path, pid)


def _bound(path: Path) -> socket.socket:
    """Returns a socket that listens at the path.

    It is bound in a private directory and renamed once its mode is right: nobody can connect before that. The umask
    could do the same, but it belongs to the whole process.
    """
    private = path.parent / f".{os.urandom(4).hex()}"
    unfinished = private / "s"
    sock = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        private.mkdir(0o700)
        try:
            sock.bind(str(unfinished))
            unfinished.chmod(0o600)
            sock.listen(_BACKLOG)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
            private.rmdir()
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_directory(directory: Path) -> None:
    """Creates the directory for control sockets of a user, with mode 0700, unless it exists.

    Raises:
        ConfigError: It can't be created, or another user could replace files in it.
    """
    try:
        directory.mkdir(0o700, exist_ok=True)
        found, link = directory.stat(), directory.lstat()
    except OSError as problem:
        raise ConfigError(f"cannot create {directory}: {_why(problem)}", key=KEY) from None
    # The runtime directory of a service may be a link of root (DynamicUser= in systemd.exec(5)).
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or link.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{directory} can be changed by other users", key=KEY)


def refusal(sock: socket.socket) -> str | None:
    """Returns why the process at the other end of a connection may not use it; None: it may."""
    _, uid, _ = _credentials(sock)
    return None if uid in (0, os.geteuid()) else f"user {uid} may not use it"


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Returns pid, uid and gid of the process at the other end of a connection: of a listening one, who listens."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid
