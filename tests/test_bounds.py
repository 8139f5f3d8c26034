"""The table of bounds in docs/reliability.md and the sources say the same."""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asport_sync.engine import ConnectionInfo
from asport_sync.host.stats import METRICS
from tests.native.test_native import ngtcp2_libraries
from tests.support.compiling import compiler_or_skip

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "asport_sync"
NATIVE = PACKAGE / "_native"

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Mult: operator.mul,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.floordiv,
    ast.LShift: operator.lshift,
}
# A number, perhaps a unit, and in brackets what it is called in the sources.
NAMED = re.compile(r"(?:\b1/)?([\d,]+) ?(KiB|MiB|GiB|) ?\(`(\w+)`\)")


def rows() -> list[list[str]]:
    """The cells of each row that is not a heading."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.partition("<!-- bounds -->")[2].partition("<!-- end of bounds -->")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert len(found) > 30
    assert {len(cells) for cells in found} == {7}
    return [cells for cells in found if not cells[0].startswith("**")]


def evaluated(text: str, names: dict[str, str]) -> int:
    """The value of a C or Python expression of integer constants, which may name others."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Name):
            return evaluated(names[node.id], names)
        assert isinstance(node, ast.Constant), text
        assert isinstance(node.value, int), text
        return node.value

    return value(ast.parse(re.sub(r"\b(\d+)(?:U|L|UL|ULL|u)\b", r"\1", text), mode="eval").body)


def constants(path: Path) -> dict[str, str]:
    """Names and the expressions behind them: macros, or what Python assigns and what parameters default to."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".c", ".h"):
        return dict(re.findall(r"^#define (\w+) ([^\n]*?)(?:\s*/\*.*)?$", text, re.MULTILINE))
    return dict(_assigned(ast.parse(text)))


def _assigned(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, ast.unparse(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, ast.unparse(node.value)
        elif isinstance(node, ast.FunctionDef):
            plain = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            for parameter, default in [
                *zip(plain, node.args.defaults, strict=True),
                *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
            ]:
                if default is not None:
                    yield parameter.arg, ast.unparse(default)


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0])
def test_limits_are_what_the_sources_say(cells: list[str]) -> None:
    """Also those that the column of costs names."""
    names: dict[str, str] = {}
    for file in re.findall(r"`([\w/]+\.\w+)`", cells[1]):
        names |= constants(PACKAGE / file)
    named = [found for found in NAMED.findall(" ".join(cells[2:])) if not found[2].startswith("aq_")]
    # Segments are the pipe's, whoever keeps them.
    names = constants(NATIVE / "core" / "pipe.h") | names
    for number, unit, name in named:
        assert name in names, f"{name} is not in {cells[1]}"
        assert evaluated(names[name], names) == int(number.replace(",", "")) * UNITS[unit], name
    assert named or not cells[1], "a limit without a name"


def test_counters_exist() -> None:
    known = {name for metric in METRICS for name in (metric.name, ".".join(metric.place))}
    known |= {field.name for field in dataclasses.fields(ConnectionInfo)}
    shown = [name for cells in rows() for name in re.findall(r"`([\w.]+)`(?! of the kernel)", cells[4])]
    assert len(shown) > 30
    assert [name for name in shown if name not in known] == []
    for cells in rows():
        assert cells[4], f"nothing shows {cells[0]}"


def test_windows_fit_the_connections_own() -> None:
    """What all streams of a connection may have received is less than three quarters of its window.

    The rest is what ngtcp2 keeps back until a MAX_DATA frame is worth it.
    """
    native = constants(NATIVE / "quic" / "conn.h")
    transport = constants(PACKAGE / "engine" / "values.py")
    streams = constants(PACKAGE / "client" / "transport.py")
    all_streams = evaluated(streams["_MAX_STREAMS"], streams) * evaluated(native["AQ_FIRST_WINDOW"], native)
    together = all_streams + evaluated(native["AQ_WINDOW_GROWTH"], native)
    assert together <= evaluated(transport["connection_window"], transport) * 3 // 4


def test_sizes_are_about_what_the_compiler_says(tmp_path: Path) -> None:
    """About: a field more is no reason to change a page."""
    documented = {name: int(size) for cells in rows() for size, _, name in NAMED.findall(cells[5]) if name[:3] == "aq_"}
    assert len(documented) > 8
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    lines = "".join(f'printf("{name} %zu\\n", sizeof({name}));' for name in documented)
    source.write_text(f'#include "engine/engine.h"\n#include <stdio.h>\nint main(void) {{ {lines} return 0; }}\n')
    flags = ngtcp2_libraries().compile_args
    command = [*compiler_or_skip(), "-std=gnu11", f"-I{NATIVE}", *flags, str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=60)
    output = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    for name, size in (line.split() for line in output.splitlines()):
        assert int(size) / 1.25 <= documented[name] <= int(size) * 1.25, f"{name} has {size} bytes"
