"""What debian/ says is what the rest of the repository says. Nothing is built: that is ``make test-deb``."""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync import __version__
from release import deb, roots, wheel
from tests.examples import units
from tests.support.process import REPOSITORY
from vendor import pinned

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
CHANGELOG = (deb.PACKAGING / "changelog").read_text(encoding="utf-8")
CONTROL = (deb.PACKAGING / "control").read_text(encoding="utf-8")
IN_DEBIAN = {"pyyaml": "yaml"}
"""Where the name in Debian is not that of PyPI."""


def field(package: str, name: str) -> str:
    """A field of the control file's paragraph about a package."""
    (paragraph,) = (each for each in CONTROL.split("\n\n") if each.startswith(f"Package: {package}\n"))
    found = re.search(rf"^{name}:((?: .*\n|\n)(?: .*\n?)*)", paragraph, re.MULTILINE)
    assert found is not None, f"{package} has no {name}"
    return found[1]


def requirement(text: str) -> tuple[str, str]:
    """The package of Debian, and the lowest version, that a requirement of Python's stands for."""
    found = re.match(r"([a-z0-9-]+)>=([0-9.]+)", text)
    assert found is not None, text
    return f"python3-{IN_DEBIAN.get(found[1], found[1])}", found[2]


def test_the_version_is_that_of_the_package() -> None:
    assert deb.version() == __version__


def test_the_last_entry_is_of_the_maintainer_and_of_the_day_of_the_release() -> None:
    trailer = re.search(r"^ -- (.+)  (.+)$", CHANGELOG, re.MULTILINE)
    assert trailer is not None
    assert f"Maintainer: {trailer[1]}\n" in CONTROL
    released = re.search(rf"^## {re.escape(__version__)} \((.+)\)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert released is not None
    assert email.utils.parsedate_to_datetime(trailer[2]).date().isoformat() == released[1]


@pytest.mark.parametrize("path", units.debian(), ids=lambda path: str(path.name))
def test_the_units_are_those_that_the_command_makes(path: Path) -> None:
    """If not: ``python -m tests.examples.units --write-docs``."""
    assert path.read_text(encoding="utf-8") == units.debian()[path]
    assert {each.name for each in path.parent.iterdir()} == {each.name for each in units.debian()}


def test_the_build_depends_on_what_the_project_needs() -> None:
    lowest: dict[str, str] = json.loads((REPOSITORY / "vendor" / "packages.json").read_text())["minimum"]
    needed = {"libgnutls28-dev": lowest["gnutls"], "python3-dev": lowest["python"]}
    for text in [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]:
        # Newer ones, for versions of Python that the release does not have, are no condition for it.
        if not re.search("; python_version (>=|<) '3.1[14]'$", text) or "< '3.14'" in text:
            name, version = requirement(text)
            needed[name] = version
    stated = dict(re.findall(r"^ ([a-z0-9.+-]+) \(>= ([0-9.]+)\),$", CONTROL, re.MULTILINE))
    assert stated == needed
    # Any release of shtab completes for bash and zsh.
    assert {*needed, "python3-shtab"} < set(deb.build_dependencies())


def test_the_extras_are_suggested() -> None:
    optional = PROJECT["project"]["optional-dependencies"]
    extras = {requirement(text)[0] for extra in ("edit", "metrics", "qr") for text in optional[extra]}
    assert set(re.findall(r"python3-[a-z-]+", field("python3-asport-sync", "Suggests"))) == extras


def test_account_and_folders_are_those_of_the_units() -> None:
    (account,) = re.findall(r"^u (\S+) -", (deb.PACKAGING / "asport-sync.sysusers").read_text(), re.MULTILINE)
    (folder,) = re.findall(r"^d (\S+) 0700 (\S+) (\S+)$", (deb.PACKAGING / "asport-sync.tmpfiles").read_text(), re.M)
    for text in units.debian().values():
        assert f"User={account}\n" in text
        assert f" run -c {folder[0]}/" in text
    assert folder[1:] == (account, account)
    removed = (deb.PACKAGING / "asport-sync.postrm").read_text()
    logs = {name for text in units.debian().values() for name in re.findall("^LogsDirectory=(.+)$", text, re.M)}
    assert set(re.findall(r"rm -rf (.+)$", removed, re.MULTILINE)) == {f"/var/log/{name}" for name in logs}


@pytest.mark.parametrize("script", ["asport-sync.postrm", "asport-sync.postinst", "asport-sync.prerm"])
def test_maintainer_scripts_are_complete(script: str) -> None:
    path = deb.PACKAGING / script
    assert "\n#DEBHELPER#\n" in path.read_text(encoding="utf-8")
    done = subprocess.run(["sh", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_file_that_a_package_gets_exists() -> None:
    for listing in [*deb.PACKAGING.glob("*.install"), *deb.PACKAGING.glob("*.docs"), *deb.PACKAGING.glob("*.examples")]:
        for line in listing.read_text(encoding="utf-8").splitlines():
            # What the build makes is below debian/tmp and debian/completion.
            if not line.startswith(("usr/", "debian/completion/")):
                assert list(REPOSITORY.glob(line.split()[0])), f"{listing.name}: {line}"


@pytest.mark.parametrize("status", [0, 1])
def test_the_source_package_has_two_tarballs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """And nothing is passed on when the build, or lintian, fails."""
    root, output = tmp_path / "root", tmp_path / "output"
    found = []

    @contextlib.contextmanager
    def copy(kind: roots.Kind, *, refresh: bool) -> Iterator[Path]:
        assert (kind, refresh) == (deb.build_root(), True)
        root.mkdir()
        yield root

    def archive(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / name, name)
        return tmp_path / f"{name}.tar"

    def run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
        assert (place, command[-1]) == (root, f"/build/asport-sync-{__version__}")
        found.extend(sorted(str(file.relative_to(root / "build")) for file in root.rglob("*") if file.is_file()))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(roots, "copy", copy)
    monkeypatch.setattr(roots, "run", run)
    monkeypatch.setattr(wheel, "source_distribution", lambda output, when: archive("ours"))
    monkeypatch.setattr(pinned, "tarball", lambda distribution, cache: archive("ngtcp2"))
    assert deb.main([str(output)]) == status
    tarballs = [f"asport-sync_{__version__}.orig-ngtcp2.tar.xz", f"asport-sync_{__version__}.orig.tar.gz"]
    folder = f"asport-sync-{__version__}"
    assert found == [f"{folder}/ngtcp2/ngtcp2", f"{folder}/ours", *tarballs]
    assert sorted(file.name for file in output.iterdir()) == (tarballs if status == 0 else [])
    assert capsys.readouterr().err == (
        "the packages could not be built, or lintian has found a fault, see above\n" if status else ""
    )
