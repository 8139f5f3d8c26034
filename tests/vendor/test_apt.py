"""Reading of apt's source lists, the choice of a mirror, and that the system's apt is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path

import pytest

from vendor import apt
from vendor.apt import Source
from vendor.distribution import detect
from vendor.steps import StepFailed

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Everything that lets apt take what is not signed, weakly signed or out of date.
LENIENT = """
Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
Acquire::AllowDowngradeToInsecureRepositories "true";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Min-ValidTime "999999999";
Acquire::Min-ValidTime::Test "999999999";
APT::Get::AllowUnauthenticated "true";
APT::Hashes::SHA1::Untrusted "no";
APT::Hashes::SHA1::Weak "yes";
"""

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
    assert apt.parse_deb822(source.deb822()) == [source]


def test_system_sources_come_from_the_places_apt_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://list.test/debian bookworm main\n")
    (parts / "b.list").write_text("deb http://b.test/debian bookworm main\n")
    (parts / "a.sources").write_text("Types: deb\nURIs: http://a.test/debian\nSuites: bookworm\nComponents: main\n")
    (parts / "d.list").mkdir()
    (parts / "e.list").symlink_to("e.list")
    (parts / "f.list").symlink_to("name" * 100)  # which is too long to be looked for
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
    with pytest.raises(StepFailed, match="the apt sources contain no mirror of the Debian 12 archive"):
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
        with apt.private(tmp_path / "own", empty):
            pass
    assert changes() == before
    assert not trace.exists()
    assert not (tmp_path / "own").exists()


@needs_apt
def test_everything_apt_writes_is_below_our_folder(tmp_path: Path) -> None:
    own = tmp_path / "own"
    apt.PrivateApt(own, Source("file:/nowhere", ("unstable",), ("main",)))
    command = ["apt-config", "-c", str(own / "apt.conf"), "shell"]
    for name in ("Dir::State::Lists", "Dir::Cache", "Dir::Cache::Archives", "Dir::Etc::SourceList"):
        command += [name.rpartition(":")[2] or name, f"{name}/f"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places = [line.partition("=")[2].strip("'") for line in answer.splitlines()]
    assert len(places) == 4
    assert all(Path(place).is_relative_to(own) for place in places)


# --- what apt accepts, with the real apt and a repository of our own --------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a signing key of ours, and ``public.gpg`` with its public half."""
    if shutil.which("gpg") is None or shutil.which("apt-get") is None:
        pytest.skip("gpg or apt-get is not installed")
    home = tmp_path_factory.mktemp("keys")
    home.chmod(0o700)
    try:
        gpg(home, "--passphrase", "", "--quick-generate-key", "test", "rsa2048", "sign", "never")
        (home / "public.gpg").write_bytes(gpg(home, "--export"))
        yield home
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def gpg(home: Path, *arguments: str) -> bytes:
    command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--pinentry-mode", "loopback", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


class Archive:
    """A repository on this machine, with one suite, which has no sources."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self._suite = folder / "dists" / "unstable"
        self._keys = keys
        self.source = Source(f"file:{folder}", ("unstable",), ("main",), str(keys / "public.gpg"))

    def write(self, *, begins: timedelta = timedelta(-30), ends: timedelta = timedelta(7), packages: str = "") -> Path:
        """Write the index, valid from and until a time from now, without a signature.

        Args:
            begins: When it becomes valid, seen from now.
            ends: The same of its end.
            packages: The index of binary packages.
        """
        architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
        index = self._suite / "main" / f"binary-{architecture.stdout.strip()}" / "Packages"
        index.parent.mkdir(parents=True)
        index.write_text(packages)
        digest, size = sha256(packages.encode()).hexdigest(), len(packages.encode())
        now = datetime.now(timezone.utc)
        (self._suite / "Release").write_text(
            f"Label: Test\nSuite: unstable\nCodename: sid\nComponents: main\n"
            f"Date: {format_datetime(now + begins, usegmt=True)}\n"
            f"Valid-Until: {format_datetime(now + ends, usegmt=True)}\n"
            f"SHA256:\n {digest} {size} {index.relative_to(self._suite)}\n"
        )
        return self._suite / "Release"

    def sign(self, *options: str) -> None:
        """Sign the index."""
        gpg(
            self._keys,
            *options,
            "--clearsign",
            "--output",
            str(self._suite / "InRelease"),
            str(self._suite / "Release"),
        )


@pytest.fixture(params=["strict", "lenient"])
def repository(request: pytest.FixtureRequest, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A repository, on a system whose configuration of apt is lenient, and on one where it is not."""
    if request.param == "lenient":
        (tmp_path / "lenient.conf").write_text(LENIENT)
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "lenient.conf"))
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)  # gpgv may run as another user
    return Archive(tmp_path / "archive", keys)


def update(tmp_path: Path, source: Source) -> None:
    with apt.private(tmp_path / "own", source):
        pass


def test_a_signed_index_is_taken(repository: Archive, tmp_path: Path) -> None:
    repository.write()
    repository.sign()
    update(tmp_path, repository.source)


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (timedelta(-30), timedelta(-3), r"is expired \(invalid since (2d 23h|3d)"),
        (timedelta(3), timedelta(30), r"is not valid yet \(invalid for another (2d 23h|3d)"),
    ],
)
def test_an_index_out_of_its_time_is_refused_in_one_line(
    repository: Archive, tmp_path: Path, begins: timedelta, ends: timedelta, said: str
) -> None:
    repository.write(begins=begins, ends=ends)
    repository.sign()
    with pytest.raises(StepFailed, match=rf"^apt-get update: .*Release file for file:\S+ {said}") as caught:
        update(tmp_path, repository.source)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_without_a_signature_is_refused(repository: Archive, tmp_path: Path) -> None:
    repository.write()
    with pytest.raises(StepFailed, match=r"^apt-get update: apt-get failed: E: .* is not signed"):
        update(tmp_path, repository.source)


def test_a_changed_index_is_refused(repository: Archive, tmp_path: Path) -> None:
    release = repository.write()
    repository.sign()
    signed = release.with_name("InRelease")
    signed.write_text(signed.read_text().replace("Label: Test", "Label: Tess"))
    with pytest.raises(StepFailed, match=r"^apt-get update: apt-get failed: E: "):
        update(tmp_path, repository.source)


def test_a_weak_signature_is_refused(repository: Archive, tmp_path: Path) -> None:
    repository.write()
    repository.sign("--allow-weak-digest-algos", "--digest-algo", "SHA1")
    with pytest.raises(StepFailed, match=r"^apt-get update: apt-get failed: E: "):
        update(tmp_path, repository.source)


def test_dependencies_are_resolved_as_if_nothing_was_installed(repository: Archive, tmp_path: Path) -> None:
    """Not even the C library, whose version here is not the one of this suite."""
    named = {"daemon": "libc6 (= 1.0), either | other", "either": "", "libc6": "", "other": "", "alone": "missing"}
    stanza = "Package: {}\nVersion: 1.0\nArchitecture: all\nDepends: {}\nFilename: ./{}.deb\nSize: 1\nSHA256: 00\n"
    packages = [stanza.format(name, needs, name).replace("Depends: \n", "") for name, needs in named.items()]
    repository.write(packages="\n".join(packages))
    repository.sign()
    with apt.private(tmp_path / "own", repository.source) as private:
        assert private.with_dependencies("daemon") == {"daemon", "either", "libc6"}
        for name in ("alone", "unknown"):
            with pytest.raises(StepFailed, match=r"^apt-get install: apt-get failed: E: "):
                private.with_dependencies(name)


@needs_apt
def test_nothing_of_a_lenient_system_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lenient.conf").write_text(LENIENT + 'Acquire::gpgv::Options { "--ignore-time-conflict"; };\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "lenient.conf"))
    apt.PrivateApt(tmp_path / "own", Source("file:/nowhere", ("unstable",), ("main",)))
    command = ["apt-config", "-c", str(tmp_path / "own" / "apt.conf"), "dump"]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = dict(line.rstrip(";").split(" ", 1) for line in dump.splitlines())
    for name in ("InsecureRepositories", "WeakRepositories", "DowngradeToInsecureRepositories"):
        assert values[f"Acquire::Allow{name}"] == '"false"'
    assert values["APT::Get::AllowUnauthenticated"] == '"false"'
    assert values["Acquire::Check-Date"] == values["Acquire::Check-Valid-Until"] == '"true"'
    assert values["APT::Hashes::SHA1::Untrusted"] == '"true"'
    cleared = [value for name, value in values.items() if "Min-ValidTime" in name or "gpgv" in name]
    assert set(cleared) == {'""'}
