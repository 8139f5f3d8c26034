"""Run a program to which the kernel refuses some system calls, as a container's filter may: seccomp(2).

As a script, ``python tests/support/refusing.py CALL,CALL ERRNO PROGRAM ARGUMENT...``, it becomes that program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_SECCOMP = 22  # <linux/prctl.h>
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2  # <linux/seccomp.h>
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
BPF_LOAD = 0x20  # <linux/bpf_common.h>: BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_RETURN = 0x06
OFFSET_OF_NUMBER = 0  # struct seccomp_data
OFFSET_OF_ARCHITECTURE = 4
OFFSET_OF_FIRST_ARGUMENT = 16  # its lower half: both machines are little-endian

IPV6_SOCKETS = "IPv6 sockets"
"""In place of a system call: socket(2) for AF_INET6 alone."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # <linux/audit.h>
SOCKET = {"x86_64": 41, "aarch64": 198}  # socket(2) in <asm/unistd.h>
# <asm/unistd.h> of x86_64, and <asm-generic/unistd.h>, which has fewer.
NUMBERS = {
    "x86_64": {
        "accept": 43,
        "accept4": 288,
        "clone3": 435,
        "epoll_create1": 291,
        "epoll_pwait": 281,
        "epoll_pwait2": 441,
        "epoll_wait": 232,
        "eventfd2": 290,
        "getcwd": 79,
        "getrandom": 318,
        "getrlimit": 97,
        "madvise": 28,
        "mremap": 25,
        "pipe2": 293,
        "prctl": 157,
        "prlimit64": 302,
        "readlink": 89,
        "recvmmsg": 299,
        "recvmsg": 47,
        "rseq": 334,
        "sched_getaffinity": 204,
        "sched_yield": 24,
        "sendmsg": 46,
        "set_robust_list": 273,
        "setrlimit": 160,
        "shutdown": 48,
        "statx": 332,
        "sysinfo": 99,
        "timerfd_create": 283,
        "timerfd_settime": 286,
    },
    "aarch64": {
        "accept": 202,
        "accept4": 242,
        "clone3": 435,
        "epoll_create1": 20,
        "epoll_pwait": 22,
        "epoll_pwait2": 441,
        "eventfd2": 19,
        "getcwd": 17,
        "getrandom": 278,
        "getrlimit": 163,
        "madvise": 233,
        "mremap": 216,
        "pipe2": 59,
        "prctl": 167,
        "prlimit64": 261,
        "readlinkat": 78,
        "recvmmsg": 243,
        "recvmsg": 212,
        "rseq": 293,
        "sched_getaffinity": 123,
        "sched_yield": 124,
        "sendmsg": 211,
        "set_robust_list": 99,
        "setrlimit": 164,
        "shutdown": 210,
        "statx": 291,
        "sysinfo": 179,
        "timerfd_create": 85,
        "timerfd_settime": 86,
    },
}


def numbers() -> dict[str, int]:
    """The system calls that can be refused on this machine; none on one that is not known here."""
    return NUMBERS.get(platform.machine(), {})


def refused(calls: Sequence[str], error: int, argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` without these system calls."""
    return [sys.executable, str(Path(__file__).resolve()), ",".join(calls), errno.errorcode[error], *argv]


def refuse(calls: Sequence[str], error: int) -> None:
    """Have the kernel refuse system calls to this process and its children, for good.

    Raises:
        OSError: It takes no filters.
    """
    machine = platform.machine()
    instructions = [
        (BPF_LOAD, 0, 0, OFFSET_OF_ARCHITECTURE),
        (BPF_JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
        (BPF_LOAD, 0, 0, OFFSET_OF_NUMBER),
    ]
    for call in calls:
        if call == IPV6_SOCKETS:
            instructions += [
                (BPF_JUMP_EQUAL, 0, 4, SOCKET[machine]),
                (BPF_LOAD, 0, 0, OFFSET_OF_FIRST_ARGUMENT),
                (BPF_JUMP_EQUAL, 0, 1, socket.AF_INET6),
                (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
                (BPF_LOAD, 0, 0, OFFSET_OF_NUMBER),
            ]
        else:
            instructions += [
                (BPF_JUMP_EQUAL, 0, 1, NUMBERS[machine][call]),
                (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
            ]
    instructions.append((BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)):
        if library.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl: {os.strerror(number)}")


if __name__ == "__main__":
    refuse(sys.argv[1].split(","), getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
