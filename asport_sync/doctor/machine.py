"""Limits and settings of this machine: socket buffers, descriptors, IPv6, the clock."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from asport_sync.config import ClientConfig, ServerConfig, files_with_secrets, loose_files
from asport_sync.config.changes import files_of
from asport_sync.doctor.findings import Findings
from asport_sync.runtime import process, sockets
from asport_sync.runtime.descriptors import MAX_DESCRIPTORS

_BUFFER = 4 << 20  # bytes: what the engine asks for
_BUFFER_WORTH = 1 << 20  # bytes: below it the engine logs a line about the limit
_DESCRIPTORS = 1024  # a small number of connections, and everything else
_SPARE_DESCRIPTORS = 128  # for files, the engine and its threads
_FUTURE = 300.0  # seconds that the time of a file may be ahead, on a network file system for example
_NET = Path("/proc/net")
_LISTENING = "0A"  # TCP_LISTEN, <netinet/tcp.h>


def check_buffers(findings: Findings) -> None:
    """Checks which buffers the kernel grants a UDP socket without CAP_NET_ADMIN, with which there is no limit."""
    got = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            got.append(sock.getsockopt(socket.SOL_SOCKET, option) // 2)  # the kernel doubles it, socket(7)
    said = f"{got[0]} bytes (receive) and {got[1]} bytes (send)"
    if min(got) < _BUFFER_WORTH:
        findings.problem("buffers-small", said)
    else:
        findings.ok("buffers", said)


def check_descriptors(needed: int | None, pid: int | None, findings: Findings) -> None:
    """Checks the hard limit of descriptors, to which the commands raise their soft limit.

    Args:
        needed: How many connections are to be possible; None: no number is configured.
        pid: The running client or server; None: this process has the limits.
        findings: Gets what is found.
    """
    hard = _hard_limit(pid)
    if hard is None:
        findings.skipped("descriptors", "the limit is unknown")
        return
    wanted = _DESCRIPTORS if needed is None else needed + _SPARE_DESCRIPTORS
    whose = "this process" if pid is None else f"process {pid}"
    said = f"the limit of {whose} is {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    if hard != resource.RLIM_INFINITY and hard < min(wanted, MAX_DESCRIPTORS):
        why = "" if needed is None else f" (max_connections: {needed})"
        findings.problem("descriptors-few", f"{said}, {wanted} may be needed{why}")
    else:
        findings.ok("descriptors", said)


def _hard_limit(pid: int | None) -> int | None:
    if pid is not None:
        with contextlib.suppress(OSError):
            return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    found = process.limits(resource.RLIMIT_NOFILE)
    return None if found is None else found[1]


def check_ipv6(addresses: Iterable[str], findings: Findings) -> None:
    """Checks whether IPv6 works where one of these addresses needs it."""
    wanted = [each for each in dict.fromkeys(addresses) if ":" in each]
    if not wanted:
        findings.skipped("ipv6", "the configuration names no IPv6 address")
    elif sockets.is_here("::1"):
        findings.ok("ipv6", f"available, for {', '.join(wanted)}")
    else:
        findings.problem("ipv6-missing", f"for {', '.join(wanted)}")


def check_files(config: ClientConfig | ServerConfig, file: Path | None, findings: Findings) -> None:
    """Checks the permissions of the configuration's files, and that none is from the future.

    Args:
        config: The configuration.
        file: The file that it is from; None: a program has it.
        findings: Gets what is found.
    """
    if file is None:
        findings.skipped("files", "the configuration is from no file")
        _check_clock(files_of(config), findings)
        return
    for problem in (problems := loose_files(config, file)):
        findings.problem("files-exposed", problem)
    secrets, others = files_with_secrets(config, file)
    if not problems:
        findings.ok("files", ", ".join(map(str, sorted(secrets | others))))
    _check_clock(secrets | others, findings)


def _check_clock(files: Iterable[Path], findings: Findings) -> None:
    now = time.time()
    for path in sorted(files):
        with contextlib.suppress(OSError):
            ahead = path.stat().st_mtime - now
            if ahead > _FUTURE:
                findings.problem("clock-wrong", f"{path} was written {ahead / 60:.0f} min in the future")
                return
    findings.ok("clock", time.strftime("%Y-%m-%d %H:%M UTC; no file of the configuration is newer", time.gmtime(now)))


def bound_ports(network: Literal["tcp", "udp"]) -> set[int]:
    """Returns the ports that TCP listens on, or that UDP sockets are bound to, in this network namespace."""
    found = set()
    for name in (network, f"{network}6"):
        with contextlib.suppress(OSError):
            for line in (_NET / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()  # number, local address, remote address, state, ...
                if network == "udp" or fields[3] == _LISTENING:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found
