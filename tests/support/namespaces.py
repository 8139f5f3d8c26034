"""Network namespaces that a test makes for itself, and sockets inside them."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import itertools
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")

# Names hold the pid of the process that made them: two runs never collide, and what a killed run left can be found.
PREFIX = "asport-test-"
DIRECTORY = Path("/run/netns")

CLONE_NEWNET = 0x40000000  # <sched.h>
TUNSETIFF = 0x400454CA  # <linux/if_tun.h>; another number on mips, powerpc and sparc
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000

COMMAND_TIMEOUT = 30.0

_numbers = itertools.count(1)


class CommandError(OSError):
    """A command ended with a status other than 0, or not in time; the text holds what it wrote to standard error."""


def existing_namespaces() -> list[str]:
    """Names of the namespaces that this process made and has not deleted."""
    own = f"{PREFIX}{os.getpid()}-"
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(own))
    except FileNotFoundError:
        return []


@functools.lru_cache(maxsize=1)
def unavailable() -> str | None:
    """Say why this process can't make network namespaces and TUN devices, or return None where it can.

    Found out by trying, for the right to do it has many shapes (root, capabilities, containers).
    """
    try:
        with Namespace() as namespace:
            os.close(namespace.open_tun("tun0"))
    except OSError as error:
        return f"network namespaces with TUN devices are not to be had here: {error}"
    return None


class Namespace:
    """A network namespace with a unique name, its loopback interface up, deleted by ``__exit__``."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"

    def __enter__(self) -> Namespace:
        _delete_abandoned()
        _command(["ip", "netns", "add", self.name])
        try:
            self.configure(["link", "set", "lo", "up"])
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._delete()

    def configure(self, arguments: Sequence[str]) -> None:
        """Run ``ip`` with these arguments inside the namespace."""
        _command(["ip", "-n", self.name, *arguments])

    def argv(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Return the command that runs ``argv`` inside the namespace.

        ``ip netns exec`` replaces itself by the program, so the pid of the started process is the program's own.
        """
        return ["ip", "netns", "exec", self.name, *(os.fspath(part) for part in argv)]

    def run(self, argv: Sequence[str | os.PathLike[str]], timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command inside the namespace, wait for it and return its standard output.

        Raises:
            CommandError: It ended with a status other than 0, or was killed after ``timeout`` seconds.
        """
        return _command(self.argv(argv), timeout)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in a thread that has entered the namespace, and return its result.

        What it opens (sockets, TUN devices) stays in the namespace for good; threads it starts do, too.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                _enter(DIRECTORY / self.name)
                results.append(function())
            except BaseException as error:  # handed to the caller
                errors.append(error)

        thread = threading.Thread(target=enter_and_call, name=f"in {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Create a socket that belongs to the namespace, whichever thread uses it afterwards."""
        return self.call(lambda: socket.socket(family, kind))

    def open_tun(self, interface: str) -> int:
        """Create a TUN device in the namespace and return its descriptor (non-blocking, whole IP packets).

        The device lasts until the descriptor is closed.
        """

        def create() -> int:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                request = struct.pack("16sH22x", interface.encode("ascii"), IFF_TUN | IFF_NO_PI)
                fcntl.ioctl(descriptor, TUNSETIFF, request)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

        return self.call(create)

    def write_setting(self, name: str, value: str) -> None:
        """Write a file below ``/proc/sys/net`` of the namespace, such as ``ipv6/conf/tun0/disable_ipv6``."""

        def write() -> None:
            Path("/proc/sys/net", name).write_text(value)

        self.call(write)

    def _delete(self) -> None:
        _command(["ip", "netns", "delete", self.name])


def _enter(path: Path) -> None:
    """Move the calling thread, and only this thread, into the namespace."""
    # os.setns() exists from Python 3.12 on only.
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if library.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def _delete_abandoned() -> None:
    """Delete the namespaces of test runs that were killed before they could."""
    try:
        names = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return
    for name in names:
        pid = name[len(PREFIX) :].partition("-")[0] if name.startswith(PREFIX) else ""
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            # Another run may be deleting it at this moment, too.
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=COMMAND_TIMEOUT, check=False)


def _command(argv: Sequence[str], timeout: float = COMMAND_TIMEOUT) -> str:
    line = " ".join(argv)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise CommandError(f"killed after {timeout:g} s: {line}") from None
    if done.returncode != 0:
        raise CommandError(f"status {done.returncode} from: {line}\n{done.stdout}{done.stderr}".strip())
    return done.stdout
