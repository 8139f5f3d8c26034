"""``pip install .`` on a machine that lacks something: the last line says what, and the command that installs it all.

The real pip, setuptools and setup.py, in a copy of the source tree, with a PATH or an environment that lacks it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.vendor.test_static_build import make_source
from vendor import ngtcp2
from vendor.distribution import detect

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("gcc", "cc", "pkg-config", "make", "sh", "dirname", "cat")
TIMEOUT = 100.0
"""Seconds for pip to fail; it takes two."""

pytestmark = [
    pytest.mark.skipif(not (REPOSITORY / "setup.py").is_file(), reason="the tests run without the source tree"),
    pytest.mark.skipif(
        not all(find_spec(name) for name in ("pip", "setuptools")), reason="pip or setuptools is not installed"
    ),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the package is built from."""
    copy = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "vendor", copy / "vendor", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        REPOSITORY / "asport_sync", copy / "asport_sync", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    shutil.copytree(REPOSITORY / "docs" / "man", copy / "docs" / "man")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


def machine(folder: Path, *missing: str) -> dict[str, str]:
    """The environment of a machine that has not got some of the tools, and no ngtcp2 in its cache."""
    programs = folder / "bin"
    programs.mkdir()
    for name in TOOLS:
        if name not in missing and (found := shutil.which(name)):
            (programs / name).symlink_to(found)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("ASPORT_", "PKG_CONFIG", "CC"))}
    # Python's own compiler may have a name that only this machine knows.
    return {**ours, "CC": "cc", "PATH": str(programs), "ASPORT_CACHE": str(folder / "cache")}


def install(tree: Path, environment: dict[str, str]) -> list[str]:
    """What pip shows of the build, which has to fail."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(tree / "site"), str(tree)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode != 0
    shown = re.search(
        r"lines of output\]\n(.*)^ *\[end of output\]", done.stdout + done.stderr, re.DOTALL | re.MULTILINE
    )
    assert shown is not None, done.stdout + done.stderr
    return [line.strip() for line in shown[1].splitlines() if line.strip()]


def told(*problems: str) -> str:
    """The last line for these problems, on this distribution and for the user that runs the tests."""
    command = detect().install_command(ngtcp2.TOOLS)
    if os.geteuid() == 0:
        command = command.replace("sudo ", "")
    return f"asport-sync cannot be built: {'; '.join(problems)}. Run: {command}"


def without_python_headers(folder: Path) -> str:
    """A folder for PYTHONPATH, in which a module says that the headers are elsewhere."""
    (folder / "sitecustomize.py").write_text(
        "import sysconfig\n"
        "real = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name, *rest, **more: '/none' if name == 'include' else real(name, *rest, **more)\n"
    )
    return str(folder)


def test_no_compiler(tree: Path, tmp_path: Path) -> None:
    environment = {**machine(tmp_path), "CC": "no-such-compiler -pthread"}
    assert install(tree, environment)[-1] == told("no C compiler: no-such-compiler is not installed")


def test_no_compiler_but_pythons(tree: Path, tmp_path: Path) -> None:
    """As on Debian with a cross compiler's package and not the package gcc."""
    environment = machine(tmp_path, "gcc", "cc")
    found = shutil.which("cc")
    assert found is not None
    (tmp_path / "bin" / "triplet-gcc").symlink_to(found)
    (tmp_path / "sitecustomize.py").write_text(
        "import sysconfig\n"
        "real = sysconfig.get_config_var\n"
        "sysconfig.get_config_var = lambda name: 'triplet-gcc' if name == 'CC' else real(name)\n"
    )
    environment |= {"PYTHONPATH": str(tmp_path), "CC": ""}
    assert install(tree, environment)[-1] == told("no C compiler: neither gcc nor cc is installed")


def test_a_compiler_without_the_headers_of_the_c_library(tree: Path, tmp_path: Path) -> None:
    environment = {**machine(tmp_path), "CC": "gcc -nostdinc"}
    assert install(tree, environment)[-1] == told(
        "gcc does not find the headers of the C library or of Linux, or does not work"
    )


def test_no_make(tree: Path, tmp_path: Path) -> None:
    environment = {**machine(tmp_path, "make"), "ASPORT_NGTCP2_SOURCE": str(make_source(tmp_path))}
    assert install(tree, environment)[-1] == told("make is not installed")


def test_no_python_headers(tree: Path, tmp_path: Path) -> None:
    environment = {**machine(tmp_path), "PYTHONPATH": without_python_headers(tmp_path)}
    assert install(tree, environment)[-1] == told("the headers of this Python are not installed: no /none/Python.h")


def test_no_gnutls_headers(tree: Path, tmp_path: Path) -> None:
    environment = {**machine(tmp_path), "PKG_CONFIG_LIBDIR": str(tmp_path)}
    assert install(tree, environment)[-1] == told("GnuTLS (its development files) is not installed")


def test_nothing_at_all(tree: Path, tmp_path: Path) -> None:
    environment = {
        **machine(tmp_path, "gcc", "cc", "pkg-config", "make"),
        "PYTHONPATH": without_python_headers(tmp_path),
    }
    assert install(tree, environment)[-1] == told(
        "no C compiler: cc is not installed",
        "the headers of this Python are not installed: no /none/Python.h",
        "pkg-config is not installed",
        "make is not installed",
    )
