"""A program for which the system has no IPv6, as with ``ipv6.disable=1`` on the kernel's command line: seccomp(2).

As a script, ``python tests/support/no_ipv6.py PROGRAM ARGUMENT...``, it becomes that program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from pathlib import Path

PR_SET_SECCOMP = 22  # <linux/prctl.h>
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2  # <linux/seccomp.h>
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
BPF_LOAD = 0x20  # <linux/bpf_common.h>: BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_RETURN = 0x06
# In struct seccomp_data; of the argument the lower half, both machines being little-endian.
OFFSET_OF_NUMBER = 0
OFFSET_OF_ARCHITECTURE = 4
OFFSET_OF_FIRST_ARGUMENT = 16

# <linux/audit.h>, and the number of socket(2) in <asm/unistd.h>.
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}


def without_ipv6(argv: list[str]) -> list[str]:
    """The command that runs ``argv`` without IPv6."""
    return [sys.executable, str(Path(__file__).resolve()), *argv]


def refuse_ipv6() -> None:
    """Have the kernel refuse IPv6 sockets to this process and its children, for good.

    Raises:
        OSError: It takes no filters.
    """
    architecture, number = MACHINES[platform.machine()]
    instructions = [
        (BPF_LOAD, 0, 0, OFFSET_OF_ARCHITECTURE),
        (BPF_JUMP_EQUAL, 0, 5, architecture),
        (BPF_LOAD, 0, 0, OFFSET_OF_NUMBER),
        (BPF_JUMP_EQUAL, 0, 3, number),
        (BPF_LOAD, 0, 0, OFFSET_OF_FIRST_ARGUMENT),
        (BPF_JUMP_EQUAL, 0, 1, socket.AF_INET6),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)):
        if library.prctl(*arguments) != 0:
            problem = ctypes.get_errno()
            raise OSError(problem, f"prctl: {os.strerror(problem)}")


if __name__ == "__main__":
    refuse_ipv6()
    os.execvp(sys.argv[1], sys.argv[1:])
