"""The wheel in empty Debian roots without compiler and network, and the source distribution in one without network.

What is installed comes from folders that are filled outside, by pip of this machine. ``SUITE`` are the tests that run
with the wheel, as for ``make test-wheel``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import roots
from release import wheel as making
from tests.interop.install import cache_directory
from tests.support.console import Command, parts_of
from tests.support.process import REPOSITORY
from vendor import pinned
from vendor.distribution import detect

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(5400)]

SUITES = {"bookworm": "3.11", "trixie": "3.13", "sid": "3.14"}
"""With the version of Python in each."""
ON_THE_PAGE = ("bookworm", "trixie")
PAGE = REPOSITORY / "docs" / "install.md"
INSTALLS = "apt-get install --yes --no-install-recommends "
"""The beginning of the command that the page names for what a machine needs."""
TESTED = "tests/e2e tests/interop tests/cli"
OFFLINE_TESTED = "tests/test_*.py tests/config tests/wire tests/cli tests/vendor tests/e2e/test_smoke.py"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def needed() -> tuple[str, ...]:
    """The packages that the page says a machine needs."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if INSTALLS in line)
    return tuple(line.partition(INSTALLS)[2].split())


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root(suite: str, wheel: Path, sdist: Path) -> Iterator[Path]:
    """A root with the wheel in the home folder, what it depends on in /wheels, and in /src the tests alone."""
    with roots.copy(roots.Kind(suite, needed())) as copied:
        shutil.copy(wheel, copied / "root")
        making.unpack_tests(sdist, copied / "src")
        making.download(
            copied / "wheels",
            SUITES[suite],
            os.uname().machine,
            f"{wheel}[completion,edit,metrics,qr]",
            "--group",
            "test",
            glibc=41 if suite != "bookworm" else 36,
        )
        peers = cache_directory() / "interop"
        if peers.is_dir():
            shutil.copytree(peers, copied / "root" / ".cache" / "asport-sync" / "interop", symlinks=True)
        yield copied


def execute(root: Path, command: str) -> str:
    """Executes a command line in a root without network; returns its output."""
    done = roots.run(root, ["sh", "-c", f"cd /src && {command}"], env=OFFLINE, capture=True)
    print(f"$ {command}\n{done.stdout}")
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_a_root_has_neither_compiler_nor_network(root: Path) -> None:
    found = roots.run(root, ["sh", "-c", "command -v gcc cc clang make pkg-config; ls /sys/class/net"], capture=True)
    assert found.stdout == "lo\n"
    assert not list((root / "usr" / "include").glob("*.h"))


def test_the_page(root: Path, suite: str) -> None:
    if suite not in ON_THE_PAGE:
        pytest.skip(f"the page has no transcript of {suite}")
    execute(root, f"python3 -m tests.wheel.typed docs/install.md {suite}")


def test_installed_it_works_and_leaves_nothing_behind(root: Path) -> None:
    execute(root, "python3 -m venv /opt/asport")
    before = listed(root)
    execute(root, "/opt/asport/bin/pip install -q /root/asport_sync-*.whl")
    assert "bundled" in execute(root, "/opt/asport/bin/asport-sync --version")
    execute(root, "/opt/asport/bin/python demo/demo.py")
    # The GnuTLS of the system is not used, even where there is one: that of apt.
    loaded = execute(
        root, "/opt/asport/bin/python -c 'import asport_sync._aq; print(open(\"/proc/self/maps\").read())'"
    )
    found = {line.split()[-1] for line in loaded.splitlines() if re.search("gnutls|nettle|hogweed|gmp|p11", line)}
    assert len(found) == 5
    assert all("/site-packages/asport_sync.libs/" in file for file in found)
    listing = execute(root, "/opt/asport/bin/pip list --format=freeze")
    names = {line.partition("==")[0] for line in listing.splitlines()} - {"pip", "setuptools", "wheel"}
    assert "asport-sync" in names
    execute(root, f"/opt/asport/bin/pip uninstall -q --yes {' '.join(sorted(names))} 2>&1")
    assert listed(root) == before


def listed(root: Path) -> list[str]:
    """Every file of the virtual environment, except compiled Python."""
    place = root / "opt" / "asport"
    files = (file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sorted(str(file.relative_to(place)) for file in files)


def test_the_tests_pass_with_it(root: Path) -> None:
    execute(root, "python3 -m venv /opt/tests")
    execute(root, "/opt/tests/bin/pip install -q /wheels/*.whl")
    place = execute(root, "/opt/tests/bin/python -c 'import asport_sync; print(asport_sync.__file__)'")
    assert place.startswith("/opt/tests/")
    run_tests(root, TESTED)


def run_tests(root: Path, tests: str) -> None:
    """Runs tests with the Python in /opt/tests: these, or those of the environment."""
    tested = os.environ.get("SUITE") or tests
    jobs = os.environ.get("JOBS") or str(3 * len(os.sched_getaffinity(0)))
    execute(root, f"/opt/tests/bin/python -m pytest -q -p no:cacheprovider -n {jobs} --dist worksteal {tested}")


def test_the_source_distribution_builds_and_passes_its_tests_offline(sdist: Path) -> None:
    source = pinned.tarball(detect(), cache_directory())
    with roots.copy(making.build_root()) as root:
        making.unpack(sdist, root / "src")
        shutil.copy(source, root / "root")
        groups = ("--group", "test", "--group", "wheel")
        making.download(root / "wheels", making.PYTHON, os.uname().machine, "pyyaml>=6", *groups)
        execute(root, "python3 -m venv /opt/tests && /opt/tests/bin/pip install -q /wheels/*.whl")
        install = "/opt/tests/bin/pip install -q --no-build-isolation --editable ."
        execute(root, f"ASPORT_NGTCP2_SOURCE=/root/{source.name} {install}")
        run_tests(root, OFFLINE_TESTED)


def test_the_commands_of_the_page_are_two_lines() -> None:
    """And a third one, which looks at the page that is served."""
    text = PAGE.read_text(encoding="utf-8")
    for suite in ON_THE_PAGE:
        _, _, section = text.partition(f"\n### Debian {suite}")
        commands = list(parts_of(section.partition("\n#")[0]))
        assert all(isinstance(command, Command) and "\n" not in command.text for command in commands)
        assert len(commands) == 3
