"""Compiles the native targets with clang, libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import HERE, NATIVE, ROOT, NativeTarget
from vendor import ngtcp2

BUILD = ROOT / "build" / "fuzz"
FLAGS = (
    "-std=gnu11",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer-no-link,address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-pthread",
)
COMPILE_SECONDS = 300


class CannotBuild(Exception):
    """The native targets can't be had on this machine; the text says why."""


def compiler() -> list[str]:
    """Clang as a command: ``$FUZZ_CC``, or the first that is there.

    Raises:
        CannotBuild: There is none, or it has no libFuzzer.
    """
    names = [os.environ.get("FUZZ_CC", ""), "clang", *(f"clang-{version}" for version in range(22, 13, -1))]
    command = next((shlex.split(name) for name in names if name and shutil.which(shlex.split(name)[0])), None)
    if command is None:
        raise CannotBuild("there is no clang")
    source, program = BUILD / "probe.c", BUILD / "probe"
    BUILD.mkdir(parents=True, exist_ok=True)
    source.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { (void)d; (void)n; return 0; }\n")
    probe = [*command, "-fsanitize=fuzzer,address,undefined", str(source), "-o", str(program)]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode != 0:
        raise CannotBuild(f"{command[0]} does not link with libFuzzer: {done.stderr.strip().splitlines()[-1]}")
    return command


def build(target: NativeTarget, command: list[str]) -> Path:
    """Compile what has changed since the last time and return the program.

    Raises:
        CannotBuild: ngtcp2 can't be had, or a file does not compile.
    """
    compile_args: tuple[str, ...] = ()
    link_args: tuple[str, ...] = ()
    if target.ngtcp2:
        try:
            library = ngtcp2.choose()
        except ngtcp2.LibraryMissing as problem:
            raise CannotBuild(str(problem)) from None
        compile_args, link_args = library.compile_args, (*library.archives, *library.link_args)
    compile_command = [*command, *FLAGS, *target.flags, f"-I{NATIVE}", f"-I{HERE}", *compile_args]
    folder = BUILD / "objects" / hashlib.sha256("\0".join(compile_command).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    newest_header = max(path.stat().st_mtime for place in (NATIVE, HERE) for path in place.rglob("*.h"))
    objects = {
        path: folder / f"{path.stem}.o"
        for path in [*(HERE / name for name in target.sources), *(NATIVE / name for name in target.native)]
    }
    stale = [
        (source, made)
        for source, made in objects.items()
        if not made.exists() or made.stat().st_mtime <= max(newest_header, source.stat().st_mtime)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(lambda pair: _run([*compile_command, "-c", str(pair[0]), "-o", str(pair[1])]), stale):
            pass
    program = BUILD / "programs" / target.name
    program.parent.mkdir(parents=True, exist_ok=True)
    wraps = [f"-Wl,--wrap={name}" for name in target.wraps]
    _run(
        [
            *command,
            "-fsanitize=fuzzer,address,undefined",
            "-pthread",
            *map(str, objects.values()),
            *wraps,
            *link_args,
            "-o",
            str(program),
        ]
    )
    return program


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode != 0:
        raise CannotBuild(f"{shlex.join(command)}\n{done.stderr.strip()}")
