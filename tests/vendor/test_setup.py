"""setup.py: an object is used only if it still is what was compiled, and the module knows which ngtcp2 is linked."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.compiling import compiler_or_skip
from tests.vendor.programs import answer_pkg_config
from vendor import machine

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


# A machine that cannot get the pinned release, with a system's ngtcp2.
FALLBACK = f"""
import runpy, types, setuptools
setuptools.setup = lambda **_: None
from setuptools.dist import Distribution
build = runpy.run_path({str(SETUP)!r})["BuildNative"](Distribution())
from vendor import pinned, steps
def unavailable(*_):
    raise steps.StepFailed("no network")
pinned.tarball = unavailable
lists = ("define_macros", "extra_compile_args", "extra_objects", "extra_link_args", "include_dirs", "depends")
extension = types.SimpleNamespace(**{{name: [] for name in lists}})
build.pre_run(extension, None)
print(dict(extension.define_macros)["AQ_NGTCP2_ORIGIN"])
"""


def test_a_fallback_is_a_warning_and_part_of_the_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and server then warn at each start, see tests/e2e/test_commands.py."""
    if not machine.has_python_headers():
        pytest.skip(f"there is no {machine.python_header()}")
    answer_pkg_config(monkeypatch, folder, gnutls="3.7.9", libngtcp2="1.11.0", libngtcp2_crypto_gnutls="1.11.0")
    for name in ("ASPORT_NGTCP2", "ASPORT_NGTCP2_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", FALLBACK], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (0, '"system, fallback"\n'), done.stderr
    reason, choice, warning = [line for line in done.stderr.splitlines() if line.startswith("ngtcp2: ")]
    assert reason == "ngtcp2: pinned release: no network"
    assert choice == "ngtcp2: using system ngtcp2 1.11.0"
    assert warning.startswith("ngtcp2: warning: fell back to the system's ngtcp2 1.11.0, for the reason above; ")
