"""Compiles and runs the unit tests of the C modules: plain, and under the compiler's sanitizers.

A new test is one row in ``TESTS``. Every ``test_*.c`` in this directory must have one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.native import tls_material
from tests.support import compiling
from tests.support.compiling import compiler_or_skip
from vendor import ngtcp2

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "asport_sync" / "_native"

WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")
VARIANTS = {
    "plain": ("-O2",),
    "address-undefined": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # GCC warns (-Wtsan) that the sanitizer does not model fences. It need not: no fence hands over plain data alone.
    "thread": ("-O1", "-g", "-fsanitize=thread", "-Wno-tsan"),
}
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
COMPILE_SECONDS = 120
# Of a test: all its objects may have to be compiled, beside other tests that compile.
WHOLE_SECONDS = 600
RUN_SECONDS = 100  # the programs have watchdogs of their own, which say more; this one is behind them


@dataclass(frozen=True)
class NativeTest:
    """One test program.

    Attributes:
        name: ``test_<name>.c`` in this directory.
        sources: Files of ``_native`` that it is linked with.
        threaded: It starts threads, so it runs under the thread sanitizer too.
        wraps: Functions of the libraries that the program has its own of (the linker's ``--wrap``).
        ngtcp2: It needs the QUIC and TLS libraries that the package is built with.
        tls: It needs the TLS library and ngtcp2's helper for it. If not, it is linked without them.
        headers: Further folders of files that it includes.
        prepare: Writes into an empty directory the files that the program wants; it gets the directory as its argument.
    """

    name: str
    sources: tuple[str, ...]
    threaded: bool = False
    wraps: tuple[str, ...] = ()
    ngtcp2: bool = False
    tls: bool = True
    headers: tuple[Path, ...] = ()
    prepare: Callable[[Path], None] | None = None


ASSOCIATION = (
    "tunnel/association.c",
    "core/bucket.c",
    "tunnel/dgram.c",
    "core/events.c",
    "tunnel/limits.c",
    "tunnel/group.c",
    "core/ranges.c",
    "core/map.c",
    "tunnel/packet.c",
    "core/udp.c",
    "core/ready.c",
    "core/wake.c",
    "core/clock.c",
    "core/random.c",
    "core/descriptors.c",
)
GROUP = ("tunnel/group.c", "core/map.c", "core/ranges.c", "core/random.c")
STREAM = (
    "tunnel/stream.c",
    "tunnel/keepalive.c",
    "core/pipe.c",
    "core/budget.c",
    "core/reserve.c",
    "core/slab.c",
    "core/ready.c",
    "core/bucket.c",
    "core/wake.c",
    "core/clock.c",
)

ALL = tuple(targets.native_sources())
TLS = ("quic/tls.c", "quic/tls_credentials.c", "quic/tls_messages.c", "quic/tls_session.c")
# What setup.py tells the compiler. For every program, so that all are linked with the same objects.
ORIGIN = ('-DAQ_BUILD_ID="test"', '-DAQ_NGTCP2_ORIGIN="test"')

TESTS = (
    NativeTest("pipe", ("core/pipe.c", "core/budget.c", "core/reserve.c", "core/clock.c"), threaded=True),
    NativeTest("reserve", ("core/reserve.c", "core/budget.c", "core/pipe.c"), wraps=("malloc",)),
    NativeTest("budget", ("core/budget.c", "core/reserve.c"), threaded=True, wraps=("malloc",)),
    NativeTest("bucket", ("core/bucket.c", "core/ready.c", "core/wake.c", "core/clock.c"), threaded=True),
    NativeTest("list", ()),
    NativeTest("errno_text", ()),
    NativeTest("slab", ("core/slab.c",), threaded=True),
    NativeTest("map", ("core/map.c",)),
    NativeTest("ranges", ("core/ranges.c",)),
    NativeTest("limits", ("tunnel/limits.c", "core/ranges.c")),
    NativeTest("group", GROUP, threaded=True, wraps=("calloc",)),
    NativeTest("rotation", ("core/rotation.c", "core/random.c")),
    NativeTest("source", ("quic/source.c", "core/map.c")),
    NativeTest("descriptors", ("core/descriptors.c",), threaded=True),
    NativeTest("packet", ("tunnel/packet.c",)),
    NativeTest("assembler", ("tunnel/packet.c",)),
    NativeTest("wake", ("core/wake.c", "core/clock.c"), threaded=True),
    NativeTest("dgram", ("tunnel/dgram.c",), threaded=True),
    NativeTest(
        "message", ("tunnel/message.c", "tunnel/packet.c", "core/budget.c", "core/reserve.c"), wraps=("malloc",)
    ),
    NativeTest("events", ("core/events.c", "core/clock.c", "core/descriptors.c"), threaded=True, wraps=("malloc",)),
    NativeTest("ready", ("core/ready.c", "core/wake.c"), threaded=True),
    NativeTest("udp", ("core/udp.c", "core/descriptors.c")),
    NativeTest("association", ASSOCIATION),
    NativeTest("association_packets", ASSOCIATION, threaded=True),
    NativeTest("stream", STREAM, wraps=("malloc",)),
    NativeTest("stream_ends", STREAM, wraps=("aq_now",)),
    NativeTest("stream_threads", STREAM, threaded=True),
    NativeTest("tls_messages", ("quic/tls_messages.c",)),
    NativeTest("frames", ("quic/frames.c",)),
    NativeTest(
        "tls", (*TLS, "quic/frames.c", "core/random.c", "quic/reading.c"), ngtcp2=True, prepare=tls_material.write
    ),
    NativeTest(
        "handshake",
        tuple(name for name in ALL if name not in targets.TLS),
        threaded=True,
        wraps=("malloc", "calloc", "realloc"),
        ngtcp2=True,
        tls=False,
        headers=(HERE.parent / "fuzz",),
    ),
    NativeTest("admission", tuple(name for name in ALL if name != "quic/endpoint_admission.c"), ngtcp2=True),
    NativeTest("commands", ALL, threaded=True, ngtcp2=True),
    NativeTest(
        "memory",
        ("core/pipe.c", "core/budget.c", "core/reserve.c", "core/slab.c", "core/map.c", "tunnel/packet.c"),
        wraps=("malloc", "calloc", "realloc"),
    ),
)

CASES = [
    pytest.param(test, variant, id=f"{test.name}-{variant}")
    for test in TESTS
    for variant in VARIANTS
    if variant != "thread" or test.threaded
]


@cache
def why_unusable(command: tuple[str, ...], flags: tuple[str, ...], scratch: Path) -> str:
    """Empty where a trivial program compiles and runs with these flags, else what went wrong."""
    source, program = scratch / "probe.c", scratch / "probe"
    source.write_text("int main(void) { return 0; }\n")
    compiled = run([*command, *flags, str(source), "-o", str(program)], COMPILE_SECONDS)
    if compiled.returncode != 0:
        return f"does not compile: {compiled.stdout.strip()}"
    ran = run([str(program)], COMPILE_SECONDS)
    return "" if ran.returncode == 0 else f"does not run (exit status {ran.returncode}): {ran.stdout.strip()}"


def run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Output and errors as one text, in the order in which they were written."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **SANITIZER_OPTIONS},
    )


@dataclass(frozen=True)
class Libraries:
    """What compiling and linking with libraries takes."""

    compile_args: tuple[str, ...] = ()
    link_args: tuple[str, ...] = ()


@cache
def ngtcp2_libraries() -> Libraries:
    """The QUIC and TLS libraries that the package is built with, or a skip that says what is missing."""
    try:
        library = ngtcp2.choose()
    except ngtcp2.LibraryMissing as problem:
        pytest.skip(str(problem))
    return Libraries(tuple(library.compile_args), (*library.archives, *library.link_args))


def linked(
    sources: Sequence[Path],
    flags: Sequence[str],
    libraries: Libraries,
    program: Path,
    *,
    headers: Sequence[Path] = (HERE, NATIVE),
    wraps: Sequence[str] = (),
) -> Path:
    """Compile what has changed since the last time, and link it.

    Args:
        sources: The C files.
        flags: For compiling, and for linking.
        libraries: What it is linked with.
        program: Where the program is to be.
        headers: The folders of the headers.
        wraps: Functions that the sources have their own of.
    """
    command = [*compiler_or_skip(), *flags, "-pthread"]
    places = [f"-I{folder}" for folder in headers]
    objects = compiling.objects([*command, *places, *libraries.compile_args], sources, headers=headers)
    wrapped = [f"-Wl,--wrap={name}" for name in wraps]
    done = run([*command, *map(str, objects), *wrapped, *libraries.link_args, "-o", str(program)], COMPILE_SECONDS)
    assert done.returncode == 0, done.stdout
    return program


def test_every_program_has_a_row() -> None:
    assert {path.name for path in HERE.glob("test_*.c")} == {f"test_{test.name}.c" for test in TESTS}


@pytest.mark.timeout(WHOLE_SECONDS)
@pytest.mark.parametrize(("test", "variant"), CASES)
def test_native(test: NativeTest, variant: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = compiler_or_skip()
    flags = VARIANTS[variant]
    reason = why_unusable(tuple(command), flags, tmp_path_factory.getbasetemp())
    if reason:
        pytest.skip(f"{shlex.join([*command, *flags])} {reason}")
    libraries = ngtcp2_libraries() if test.ngtcp2 else Libraries()
    if not test.tls:
        # By name: the folder of a bundled ngtcp2 names the version of GnuTLS as well.
        rest = tuple(arg for arg in libraries.link_args if "gnutls" not in Path(arg).name)
        libraries = replace(libraries, link_args=rest)
    sources = [HERE / f"test_{test.name}.c", *(NATIVE / source for source in test.sources)]
    program = linked(
        sources,
        (*WARNINGS, *flags, *ORIGIN),
        libraries,
        tmp_path / "program",
        headers=(HERE, NATIVE, *test.headers),
        wraps=test.wraps,
    )
    arguments = []
    if test.prepare is not None:
        material = tmp_path / "material"
        material.mkdir()
        test.prepare(material)
        arguments.append(str(material))
    ran = run([str(program), *arguments], RUN_SECONDS)
    print(ran.stdout)
    assert ran.returncode == 0, f"exit status {ran.returncode}\n{ran.stdout}"
