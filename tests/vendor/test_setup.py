"""The part of setup.py that compiles our own files: what it made the last time is used only if it still is that."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.compiling import compiler_or_skip

SETUP = Path(__file__).resolve().parents[2] / "setup.py"
TIMEOUT = 60.0
"""Seconds for compiling a small file; it takes a fraction of one."""

pytestmark = [
    pytest.mark.skipif(not SETUP.is_file(), reason="the tests run without the source tree"),
    pytest.mark.skipif(not find_spec("setuptools"), reason="setuptools is not installed"),
]

# A process of its own, for setuptools replaces parts of the standard library.
PROGRAM = f"""
import runpy, types, setuptools
setuptools.setup = lambda **_: None
compile_objects = runpy.run_path({str(SETUP)!r})["compile_objects"]
(made,) = compile_objects(
    types.SimpleNamespace(extra_compile_args=[], include_dirs=[], define_macros=[], depends=["one.c"])
)
print(made)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small file to compile."""
    compiler_or_skip()
    (tmp_path / "one.c").write_text("int one(void);\nint one(void) { return 1; }\n")
    return tmp_path


def compiled(folder: Path) -> tuple[Path, bool]:
    """Compile it; the object, and whether it was made now."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    *said, made = done.stdout.splitlines()
    return folder / made, "compiling one.c" in said


def test_an_object_is_made_once(folder: Path) -> None:
    made, new = compiled(folder)
    assert new
    assert compiled(folder) == (made, False)


@pytest.mark.parametrize("change", ["content", "mode", "sums"])
def test_an_object_that_may_have_been_changed_is_made_anew(folder: Path, change: str) -> None:
    made, _ = compiled(folder)
    content = made.read_bytes()
    if change == "content":
        made.write_bytes(content[:-1] + b"x")
    elif change == "mode":
        made.chmod(0o666)
    else:
        made.with_name(f"{made.name}.sha256").unlink()
    assert compiled(folder) == (made, True)
    assert made.read_bytes() == content
    assert made.stat().st_mode & 0o022 == 0
    assert compiled(folder) == (made, False)
