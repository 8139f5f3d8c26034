"""Reading of apt's source lists, the choice of a mirror, and that the system's apt is left alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vendor import apt
from vendor.apt import Source
from vendor.distribution import detect
from vendor.steps import StepFailed

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")


def test_one_line_format() -> None:
    text = """
    # deb http://commented.test/debian bookworm main
    deb http://mirror.test/debian bookworm main contrib # a remark
    deb-src [ arch=amd64 signed-by=/keys/own.gpg ] http://other.test/debian/ bookworm-updates main
    deb [trusted=yes] file:/srv/flat ./
    not a source at all
    """
    assert apt.parse_one_line(text) == [
        Source("http://mirror.test/debian", ("bookworm",), ("main", "contrib")),
        Source("http://other.test/debian/", ("bookworm-updates",), ("main",), "/keys/own.gpg"),
        Source("file:/srv/flat", ("./",), ()),
    ]


def test_deb822_format() -> None:
    text = """# The main archive
Types: deb deb-src
URIs: http://one.test/debian http://two.test/debian
Suites: bookworm
# inside a stanza
 bookworm-updates
components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main

X-Only: a comment of somebody's
"""
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    assert apt.parse_deb822(text) == [
        Source("http://one.test/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"), key),
        Source("http://two.test/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"), key),
    ]


@pytest.mark.parametrize("signed_by", ["", "/keys/own.gpg", "\n -----BEGIN-----\n .\n mQINBF\n -----END-----"])
def test_deb822_is_written_as_it_is_read(signed_by: str) -> None:
    source = Source("http://mirror.test/debian", ("unstable",), ("main", "contrib"), signed_by)
    assert apt.parse_deb822(source.deb822("deb-src")) == [source]


def test_system_sources_come_from_the_places_apt_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://list.test/debian bookworm main\n")
    (parts / "b.list").write_text("deb http://b.test/debian bookworm main\n")
    (parts / "a.sources").write_text("Types: deb\nURIs: http://a.test/debian\nSuites: bookworm\nComponents: main\n")
    (parts / "c.list.disabled").write_text("deb http://c.test/debian bookworm main\n")
    answer = f"LIST='{tmp_path}/sources.list'\nPARTS='{parts}/'\n"
    monkeypatch.setattr(apt, "run", lambda command: answer)
    assert [source.uri for source in apt.system_sources()] == [
        "http://list.test/debian",
        "http://a.test/debian",
        "http://b.test/debian",
    ]


def test_the_main_archive_is_found_among_other_sources() -> None:
    sources = [
        Source("cdrom:[Debian GNU/Linux 12]/", ("bookworm",), ("main",)),
        Source("http://mirror.test/debian-security", ("bookworm-security",), ("main",), KEYRING),
        Source("http://third.test/debian/12/prod", ("bookworm",), ("main",), "/keys/third.gpg"),
        Source("http://third.test/linux/debian", ("bookworm",), ("stable",), "/keys/third.gpg"),
    ]
    plain = Source("http://mirror.test/debian/", ("bookworm",), ("main",))
    keyed = Source("http://mirror.test/anything", ("bookworm", "bookworm-updates"), ("main",), KEYRING)
    assert apt.archive([*sources, plain], DEBIAN_12) == plain
    assert apt.archive([*sources, plain, keyed], DEBIAN_12) == keyed
    assert apt.archive(sources[:2], DEBIAN_12) is None


def test_another_suite_keeps_mirror_and_key() -> None:
    assert DEBIAN_12.apt is not None
    own = Source("http://mirror.test/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"), "/keys/own.gpg")
    assert apt.with_suite(own, DEBIAN_12.apt, "unstable", ["main"]) == Source(
        "http://mirror.test/debian", ("unstable",), ("main",), "/keys/own.gpg"
    )


def test_without_a_mirror_the_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(apt, "system_sources", list)
    with pytest.raises(StepFailed, match="no mirror of the Debian 12 archive among the apt sources"):
        apt.find_archive(DEBIAN_12)


def test_without_apt_the_step_says_so() -> None:
    with pytest.raises(StepFailed, match="no apt on this system"):
        apt.find_archive(detect("ID=fedora\nVERSION_ID=42\n"))


@needs_apt
def test_the_systems_apt_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of the system's configuration does not run, and nothing in apt's own folders changes."""
    trace, system = tmp_path / "hook-ran", tmp_path / "system"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (system / folder).mkdir(parents=True)
        (system / folder / "of-the-system").write_text("")
    planted = tmp_path / "system.conf"
    planted.write_text(
        f'Dir::State "{system}/state";\nDir::Cache "{system}/cache";\n'
        + "".join(f'{hook} {{ "touch {trace}"; }};\n' for hook in apt.HOOKS)
    )
    # apt reads this file as a part of the system's configuration, so it stands for it here.
    monkeypatch.setenv("APT_CONFIG", str(planted))
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    assert f'APT::Update::Post-Invoke:: "touch {trace}";' in dump

    def changes() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in [system, *system.rglob("*")]}

    before = changes()
    empty = Source(f"file:{tmp_path}/no-such-archive", ("unstable",), ("main",))
    with pytest.raises(StepFailed, match=r"^apt-get update: apt-get failed: "):
        with apt.private(tmp_path / "own", empty, "deb"):
            pass
    assert changes() == before
    assert not trace.exists()
    assert not (tmp_path / "own").exists()


@needs_apt
def test_everything_apt_writes_is_below_our_folder(tmp_path: Path) -> None:
    own = tmp_path / "own"
    apt.PrivateApt(own, Source("file:/nowhere", ("unstable",), ("main",)), "deb-src")
    command = ["apt-config", "-c", str(own / "apt.conf"), "shell"]
    for name in ("Dir::State::Lists", "Dir::Cache", "Dir::Cache::Archives", "Dir::Etc::SourceList"):
        command += [name.rpartition(":")[2] or name, f"{name}/f"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places = [line.partition("=")[2].strip("'") for line in answer.splitlines()]
    assert len(places) == 4
    assert all(Path(place).is_relative_to(own) for place in places)
