"""What a client takes at rest, in memory, and ``--help`` in processor time: ``python -m tests.bounds.footprint``.

Server and client are the commands, on one host. The client has its port and no visitor. Memory is what the kernel
reports of the process (/proc/PID/smaps), by what it is for; that of a module is what its import allocates, without the
modules that it imports itself. Nothing is compared with a promise: figures depend on Python and on the libraries.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bounds.sessions import SETTLED
from tests.e2e.tunnels import CLIENT_READY, SERVER_READY, client_process, command, server_address, server_process
from tests.support.certificates import Certificate, pin_of, self_signed
from tests.support.process import REPOSITORY
from tests.support.program import run_program

READY = 300.0  # seconds; only a failure waits so long
NOWHERE = ("127.0.0.1", 9)
SHOWN = 15  # modules
REPETITIONS = 5

# What memory is for, by the file that is mapped; the first that matches.
KINDS = (
    ("extension", r"_aq\."),
    ("libraries of TLS", r"lib(gnutls|p11-kit|nettle|hogweed|gmp|tasn1|idn2|unistring|ffi)"),
    ("interpreter and its modules", r"python|\.cpython-|lib-dynload"),
    ("heap of malloc", r"^\[heap\]"),
    ("anonymous: Python's objects, arenas of malloc, stacks", r"^$|^\[stack"),
    ("C library and others", r"."),
)

# Prints what each import allocates, itself and in all, in KiB. tracemalloc would count a module's code as importlib's.
OF_IMPORTS = """
import importlib.machinery, sys, tracemalloc
own, inside = {}, []
def counted(loader):
    execute = loader.exec_module
    def exec_module(self, module):
        before = tracemalloc.get_traced_memory()[0]
        inside.append(0)
        execute(self, module)
        took = tracemalloc.get_traced_memory()[0] - before
        own[module.__name__] = took - inside.pop()
        if inside:
            inside[-1] += took
    loader.exec_module = exec_module
counted(importlib.machinery.SourceFileLoader)
counted(importlib.machinery.ExtensionFileLoader)
tracemalloc.start()
import asport_sync.cli.commands, asport_sync.cli.main, asport_sync.client.client, asport_sync.client.operations
for name, size in own.items():
    print(name, size // 1024)
"""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a process has, in KiB.

    Attributes:
        resident: All of it.
        anonymous: The part that no file is behind, and that no other process shares.
        kinds: ``resident`` by what it is for.
    """

    resident: int
    anonymous: int
    kinds: Mapping[str, int]


def memory_of(pid: int) -> Memory:
    """What a process has now."""
    resident = anonymous = 0
    kinds: defaultdict[str, int] = defaultdict(int)
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)", line):
            kind = next(
                name for name, pattern in KINDS if re.search(pattern, mapping[1].rpartition("/")[2]) is not None
            )
        elif line.startswith("Rss:"):
            resident += int(line.split()[1])
            kinds[kind] += int(line.split()[1])
        elif line.startswith("Anonymous:"):
            anonymous += int(line.split()[1])
    return Memory(resident, anonymous, kinds)


def of_program(*arguments: str) -> Memory:
    """What an interpreter has that got these arguments, the last of which is a program."""
    *options, program = arguments
    waits = f"{program}\nprint(flush=True)\ninput()"
    argv = [sys.executable, *options, waits]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = memory_of(process.pid)
        process.stdin.write(b"\n")
        process.stdin.close()
    return found


def of_clients(folder: Path, certificate: Certificate) -> Iterator[tuple[str, Memory]]:
    """What clients have at rest, by what they trust."""
    trusts: dict[str, dict[str, Any]] = {
        "a pinned key": {"pins": [pin_of(certificate.certificate)], "pins_only": True},
        "a private authority": {"paths": [str(certificate.trusted)], "disable_native": True},
        "the system's authorities as well": {"paths": [str(certificate.trusted)]},
    }
    with server_process(folder, certificate) as server:
        server.wait_for(SERVER_READY, READY)
        for what, certificates in trusts.items():
            with client_process(
                folder, certificate, server_address(server), NOWHERE, network="tcp", certificates=certificates
            ) as client:
                client.wait_for(CLIENT_READY, READY)
                time.sleep(SETTLED)
                yield what, memory_of(client.pid)


def processor_time(argv: list[str]) -> float:
    """Seconds that a command takes, at best."""
    times = []
    for _ in range(REPETITIONS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, cwd=REPOSITORY)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def of_memory(what: str, found: Memory) -> str:
    return row(what, f"{found.resident / 1024:.1f} MiB", f"{found.anonymous / 1024:.1f} MiB")


def main() -> None:
    """Measure, and print tables."""
    argparse.ArgumentParser(prog="python -m tests.bounds.footprint", description=__doc__).parse_args()
    print(row("process", "resident", "of it anonymous"), row("---", "---", "---"), sep="\n")
    print(of_memory("interpreter", of_program("-I", "-S", "-c", "")))
    print(of_memory("interpreter with the packages of its environment", of_program("-c", "")))
    print(of_memory("with the engine", of_program("-c", "from asport_sync.engine import Engine; Engine()")), flush=True)
    with tempfile.TemporaryDirectory() as name:
        found = None
        for what, found in of_clients(Path(name), self_signed(Path(name))):
            print(of_memory(f"client at rest that trusts {what}", found), flush=True)
        assert found is not None
    print("", row("of the last one", "resident"), row("---", "---"), sep="\n")
    for kind, size in sorted(found.kinds.items(), key=lambda each: -each[1]):
        print(row(kind, f"{size / 1024:.1f} MiB"))
    said = subprocess.run(
        [sys.executable, "-c", OF_IMPORTS], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    sizes = {each: int(size) for each, size in map(str.split, said.stdout.splitlines())}
    print("", row(f"imports of a client, {len(sizes)} modules", f"{sum(sizes.values()) / 1024:.1f} MiB"), sep="\n")
    print(row("---", "---"))
    for module, size in sorted(sizes.items(), key=lambda each: -each[1])[:SHOWN]:
        print(row(f"`{module}`", f"{size} KiB"))
    print("", row("command", "processor time"), row("---", "---"), sep="\n")
    print(row("`python -c pass`", f"{1000 * processor_time([sys.executable, '-c', 'pass']):.0f} ms"))
    for arguments in (["--help"], ["--version"]):
        print(row(f"`asport-sync {arguments[0]}`", f"{1000 * processor_time(command(*arguments)):.0f} ms"))


if __name__ == "__main__":
    run_program(main)
