"""What is fuzzed, and what each target is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NATIVE = next(
    folder for folder in (ROOT / "asport_sync" / "_native", ROOT / "native") if folder.is_dir()
)  # the second: where "make test-system" has its copy

ALLOCATIONS = ("malloc", "calloc", "realloc", "aligned_alloc")
"""What fuzz_memory.c stands in front of."""

CALLS = (
    "accept",
    "accept4",
    "connect",
    "epoll_ctl",
    "epoll_wait",
    "nanosleep",
    "pthread_cond_wait",
    "readv",
    "recvmmsg",
    "recvmsg",
    "sendmsg",
    "socket",
    "syscall",
    "aq_udp_receiver_new",
    "aq_udp_receiver_free",
)
"""What sim.c stands in front of."""


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        name: Of the corpus file, too.
        about: One line for the table.
        max_length: Bytes of an input; more is never needed.
        share: Of the time, beside the other targets.
    """

    name: str
    about: str
    max_length: int
    share: float


@dataclass(frozen=True)
class NativeTarget(Target):
    """A program of C files with libFuzzer's main function.

    Attributes:
        sources: Files of this folder.
        native: Files of ``_native``.
        wraps: Functions that calls are led away from, see ``ld --wrap``.
        flags: Further flags for compiling.
        ngtcp2: It is linked with the QUIC library that the package is built with, and with GnuTLS.
    """

    sources: tuple[str, ...]
    native: tuple[str, ...]
    wraps: tuple[str, ...] = ALLOCATIONS
    flags: tuple[str, ...] = ()
    ngtcp2: bool = False


@dataclass(frozen=True)
class PythonTarget(Target):
    """A function of ``python_targets.py``."""


def native_sources() -> list[str]:
    """The C files of ``_native``, relative to it."""
    return sorted(str(path.relative_to(NATIVE)) for path in NATIVE.rglob("*.c"))


def _unit(name: str, about: str, *native: str, max_length: int = 512, share: float = 1.0) -> NativeTarget:
    sources = (f"fuzz_{name}.c", "fuzz_memory.c")
    return NativeTarget(name, about, max_length, share, sources, native)


def _engine(name: str, about: str, *sources: str, without: frozenset[str], flag: str, share: float) -> NativeTarget:
    native = tuple(sorted(set(native_sources()) - without))
    return NativeTarget(
        name,
        about,
        2048,
        share,
        ("fuzz_engine.c", "sim.c", "fuzz_memory.c", *sources),
        native,
        (*ALLOCATIONS, *CALLS),
        (flag, '-DAQ_BUILD_ID="fuzz"', '-DAQ_NGTCP2_ORIGIN="fuzz"'),
        ngtcp2=True,
    )


SIMULATED = frozenset({"core/clock.c", "core/random.c"})
"""What sim.c has its own of."""

TLS = frozenset({"quic/handshake.c", "quic/tls.c", "quic/tls_credentials.c", "quic/tls_session.c"})
"""What null_tls.c takes the place of."""

TARGETS: tuple[Target, ...] = (
    _unit("packet", "lengths, headers and plans for fragments", "tunnel/packet.c", max_length=128),
    _unit("assembler", "fragments of UDP packets, in any order", "tunnel/packet.c"),
    _unit(
        "message",
        "commands on streams, in pieces",
        "tunnel/message.c",
        "tunnel/packet.c",
        "core/budget.c",
        "core/reserve.c",
        max_length=256,
    ),
    _unit("map", "the hash table, against a list", "core/map.c", max_length=1024),
    _unit("slab", "names and references, against a list", "core/slab.c"),
    _unit("pipe", "producer and consumer of a stream's bytes", "core/pipe.c", "core/budget.c", "core/reserve.c"),
    _unit("dgram", "the ring of waiting UDP packets", "tunnel/dgram.c", max_length=256),
    _engine(
        "engine",
        "a whole engine, and a raw peer, without encryption",
        "null_tls.c",
        "raw_peer.c",
        "raw_null.c",
        without=SIMULATED | TLS,
        flag="-DNULL_TLS",
        share=5.0,
    ),
    _engine(
        "engine_tls",
        "a whole engine with GnuTLS",
        "real_tls.c",
        without=SIMULATED,
        flag="-DWITH_TLS",
        share=3.0,
    ),
    _engine(
        "raw_tls",
        "a whole engine with GnuTLS, and a raw peer behind real TLS",
        "real_tls.c",
        "raw_peer.c",
        "raw_tls.c",
        without=SIMULATED,
        flag="-DRAW_TLS",
        share=4.0,
    ),
    PythonTarget("wire", "commands in Python: decode, encode, chunks", 128, 1.0),
    PythonTarget("handshake", "the order of commands in Python, mode bytes", 128, 0.5),
    PythonTarget("fragments", "fragments in Python", 256, 0.5),
    PythonTarget("proxy_header", "PROXY headers in Python", 64, 0.5),
    PythonTarget("oracle", "packet.c against the Python codec", 512, 1.0),
)


def by_name(name: str) -> Target:
    """The target of this name; KeyError where there is none."""
    return {target.name: target for target in TARGETS}[name]
