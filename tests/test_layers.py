"""The direction of imports and includes, checked by reading the sources.

Nothing is imported here, so the test also runs where the extension is not built.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "asport_sync"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
NATIVE = ROOT / "_native"

# Room -> rooms it may import. Rooms are the modules and packages directly below asport_sync; "" is its __init__.
ALLOWED = {
    "hidden": set(),
    "errors": {"hidden"},
    "forked": set(),
    "wire": {"errors", "hidden"},
    "config": {"errors", "hidden"},
    "runtime": {"errors", "forked", "hidden"},
    "engine": {"errors", "hidden", "forked", "_aq", "_version"},
    "host": {"errors", "wire", "config", "runtime", "engine"},
    # It knows a client or a server as Operations only, which each of them implements.
    "control": {"errors", "_version", "forked", "hidden", "config", "runtime", "engine", "host"},
    # The two sides never import each other.
    "client": {"errors", "forked", "hidden", "wire", "config", "runtime", "engine", "host", "control"},
    "server": {"errors", "hidden", "wire", "config", "runtime", "engine", "host", "control"},
    # For those who set up a server; no running client or server imports it.
    "trust": {"errors", "hidden", "config", "runtime", "engine"},
    # It knows no server but by what it finds at its address, and uses a client as a program would.
    "doctor": {"errors", "wire", "config", "runtime", "engine", "host", "control", "client"},
    "cli": {
        "errors",
        "hidden",
        "_version",
        "config",
        "runtime",
        "engine",
        "host",
        "control",
        "client",
        "server",
        "trust",
        "doctor",
    },
    # For programs that test themselves; of no use to any other room.
    "testing": set(),
    "": {"errors", "_version", "config", "engine", "host", "client", "server"},
    "__main__": {"cli"},
    "_version": set(),
    "_cffi_build": {"_version"},
}

# What the relays for tests may use: any machine has it.
TESTING_STANDARD_LIBRARY = {
    "abc",
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "os",
    "random",
    "selectors",
    "socket",
    "struct",
    "threading",
    "time",
    "types",
    "typing",
}

# The wire format has no I/O, no threads and no clock; whoever wants to add one has to change this list.
WIRE_STANDARD_LIBRARY = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "ipaddress",
    "itertools",
    "struct",
    "types",
    "typing",
    "uuid",
}


def modules() -> list[Path]:
    found = sorted(path for path in ROOT.rglob("*.py") if "build" not in path.parts)
    assert len(found) > 10, f"hardly any module below {ROOT}"
    return found


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a dotted module name inside the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions and for type checkers."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")
                anchor = anchor[: len(anchor) - (node.level - 1)]
                base = ".".join([*anchor, base] if base else anchor)
            if base == PACKAGE:
                # "from asport_sync import wire" names a room, "from asport_sync import Client" the package itself.
                found.update(f"{PACKAGE}.{alias.name}" if alias.name in ROOMS else PACKAGE for alias in node.names)
            else:
                found.add(base)
    return found


ROOMS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"_aq"}


def inside(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == PACKAGE}


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = room(module_name(path))
    assert own in ALLOWED, f"{module_name(path)} belongs to no room of the table"
    used = {room(name) for name in inside(imported(path))} - {own}
    assert used <= ALLOWED[own], f"{own or PACKAGE} must not import {sorted(used - ALLOWED[own])}"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_nobody_uses_asyncio(path: Path) -> None:
    assert "asyncio" not in {name.split(".")[0] for name in imported(path)}


def test_only_the_engine_reaches_into_c() -> None:
    users = {module_name(path) for path in modules() if f"{PACKAGE}._aq" in imported(path)}
    assert users == {f"{PACKAGE}.engine.binding"}
    assert {module_name(path) for path in modules() if "cffi" in imported(path)} <= {f"{PACKAGE}._cffi_build"}


def test_wire_needs_no_clock_thread_or_socket() -> None:
    used = set()
    for path in (ROOT / "wire").rglob("*.py"):
        used |= {name.split(".")[0] for name in imported(path)}
    assert used - {PACKAGE} <= WIRE_STANDARD_LIBRARY


def test_the_relays_for_tests_need_the_standard_library_alone() -> None:
    used = set()
    for path in (ROOT / "testing").rglob("*.py"):
        used |= {name.split(".")[0] for name in imported(path)}
    assert used - {PACKAGE} <= TESTING_STANDARD_LIBRARY


def test_the_table_knows_every_room() -> None:
    existing = {room(module_name(path)) for path in modules()}
    assert existing <= set(ALLOWED)


# --- C ----------------------------------------------------------------------------------------------------------------


@cache
def c_order() -> dict[str, int]:
    """The position of each C file in the list at the head of aq.h, by path without suffix ("core/pipe")."""
    head = (NATIVE / "aq.h").read_text(encoding="utf-8").partition("*/")[0]
    lines = re.findall(r"^ \*   (\w+) +([\w ]+)$", head, re.MULTILINE)
    assert list(dict.fromkeys(folder for folder, _ in lines)) == ["core", "tunnel", "quic", "engine", "api"]
    order = [f"{folder}/{name}" for folder, names in lines for name in names.split()]
    assert len({name.rpartition("/")[2] for name in order}) == len(order), "two files with the same name"
    return {name: position for position, name in enumerate(order)}


def c_files() -> list[Path]:
    found = sorted(path for path in (*NATIVE.rglob("*.c"), *NATIVE.rglob("*.h")))
    assert found, f"no C files in {NATIVE}"
    return found


def c_name(path: Path) -> str:
    return str(path.relative_to(NATIVE).with_suffix(""))


def header_position(name: str) -> int:
    """Where a header stands: conn.h is also the header of conn_send.c and of others without one of their own."""
    parts = [
        position
        for other, position in c_order().items()
        if other == name or (other.startswith(f"{name}_") and not (NATIVE / f"{other}.h").exists())
    ]
    assert parts, f"{name}.h is not in the list of aq.h"
    return min(parts)


def position_of(path: Path) -> int:
    name = c_name(path)
    if path.suffix == ".h":
        return header_position(name)
    assert name in c_order(), f"{name}.c is not in the list of aq.h"
    return c_order()[name]


def test_the_list_of_c_files_is_complete() -> None:
    assert set(c_order()) == {c_name(path) for path in c_files()} - {"aq", "aq_api"}


@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(NATIVE)))
def test_includes_go_down(path: Path) -> None:
    """A file includes what the list in aq.h names before it: a lower folder, or an earlier file of its own."""
    included = set(re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE))
    if path.stem in ("aq", "aq_api"):
        assert included <= {"aq_api.h"}
        return
    for name in sorted(included - {"aq.h"}):
        assert header_position(name.removesuffix(".h")) <= position_of(path), f"{c_name(path)} includes {name}"


@cache
def c_code(path: Path) -> str:
    """The text of a C file without comments and literals."""
    return re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@cache
def c_functions() -> dict[str, str]:
    """Every function that other files can call, and the name of the file that defines it."""
    defined = {
        function: c_name(path)
        for path in c_files()
        if path.suffix == ".c"
        for function in re.findall(r"^(?!static\b)[a-z][\w *]*?\b(\w+)\([^;{}]*\)\n\{", c_code(path), re.MULTILINE)
    }
    assert len(defined) > 300
    assert [name for name in defined if not name.startswith("aq_")] == []
    return defined


@pytest.mark.parametrize(
    "path", [path for path in c_files() if path.suffix == ".c"], ids=lambda path: str(path.relative_to(NATIVE))
)
def test_calls_go_down(path: Path) -> None:
    """No two files call each other, not even through others: the list in aq.h is an order of the calls, too.

    A function that a lower file calls through a pointer is named by the higher file that passes it.
    """
    for function in sorted(set(re.findall(r"\baq_\w+", c_code(path))) & set(c_functions())):
        called = c_functions()[function]
        assert c_order()[called] <= c_order()[c_name(path)], f"{c_name(path)} calls {function} of {called}"


def test_ngtcp2_versions_differ_in_one_file() -> None:
    users = {path.name for path in c_files() if "NGTCP2_VERSION_NUM" in path.read_text(encoding="utf-8")}
    assert users <= {"compat.h", "compat.c"}


TLS_FILES = {"tls.c", "tls.h", "tls_credentials.c", "tls_session.c"}


def test_the_tls_library_is_used_behind_the_seam_only() -> None:
    """No file but these names GnuTLS or ngtcp2's helper for it, compat.h included; all others use ``handshake.h``."""
    library = re.compile(r"(?<!\w)(gnutls|ngtcp2_crypto)", re.IGNORECASE)
    users = {path.name for path in c_files() if library.search(without_comments(path.read_text(encoding="utf-8")))}
    assert users == TLS_FILES
    included = {path.name for path in c_files() if '#include "quic/tls.h"' in path.read_text(encoding="utf-8")}
    assert included == {name for name in TLS_FILES if name.endswith(".c")}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_the_handshake_layer_is_selected_in_one_file() -> None:
    naming = re.compile(r"&\s*aq_handshake_gnutls\b")
    assert {path.name for path in c_files() if naming.search(path.read_text(encoding="utf-8"))} == {"handshake.c"}


def test_the_boundary_has_no_preprocessor_lines() -> None:
    """cffi reads the same text as the C compiler, and has no preprocessor."""
    text = (NATIVE / "aq_api.h").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.lstrip().startswith("#")] == []
    assert "ngtcp2_" not in re.sub(r"aq_ngtcp2_", "", text)
    assert "gnutls_" not in re.sub(r"aq_gnutls_", "", text)


def test_descriptors_of_the_engine_are_closed_with_their_marks() -> None:
    """One that is closed without stays marked, and a forked child would close whatever has the number then."""
    unmarked = {
        "api",
        "clock",
        "descriptors",
        "random",
        "tls_credentials",
        "wake",
    }  # never marked, or not any more
    plain = {path.stem for path in NATIVE.rglob("*.c") if re.search(r"(?<!\w)close\([^)]", path.read_text())}
    assert plain <= unmarked
    assert len(re.findall(r"(?<!\w)close\([^)]", (NATIVE / "api" / "api.c").read_text())) == 1  # epoll's own


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_an_event_has_one_name() -> None:
    """From the engine (AQ_EVENT_UDP_REFUSED) to its class (UdpRefused) and the methods that handle it."""
    native = set(re.findall(r"\bAQ_EVENT_(\w+) = ", (NATIVE / "aq_api.h").read_text(encoding="utf-8")))
    text = (ROOT / "engine" / "events.py").read_text(encoding="utf-8")
    union = text.partition("Event: TypeAlias = (")[2].partition(")")[0]
    classes = set(re.findall(r"\w+", union))
    assert {snake(name) for name in classes} == {name.lower() for name in native}
    handled = set()
    for path in modules():
        handlers = re.findall(r"^ +(\w+): self\.(?:\w+\.)*(\w+),$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for name, method in handlers:
            if name in classes:
                assert method.lstrip("_") == snake(name), f"{path.name}: {method} handles {name}"
                handled.add(name)
    assert len(handled) > 10
