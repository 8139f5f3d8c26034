"""The pinned release: the ways to get its tarball, and that its hash alone decides whether it is used."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vendor.programs import put_program
from tests.vendor.test_static_build import make_source, pack
from vendor import apt, ngtcp2, pinned, static_build
from vendor.apt import Source
from vendor.distribution import Distribution, detect
from vendor.pinned import Release
from vendor.steps import Refused, StepFailed

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")
UBUNTU = detect("ID=ubuntu\nVERSION_ID=24.04\nVERSION_CODENAME=noble\n")
FEDORA = detect("ID=fedora\nVERSION_ID=42\n")
MIRROR = "http://mirror.test/debian"
HELPER = apt.HELPER


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that upstream's server publishes. It is empty."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_address[1]}/ngtcp2-1.24.0.tar.xz"
        monkeypatch.setattr(Release, "address", address)
        try:
            yield folder
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tarball of a made-up release that is pinned."""
    tarball = pack(make_source(tmp_path / "made"), tmp_path / "made" / "ngtcp2-1.24.0.tar.xz")
    monkeypatch.setattr(pinned, "RELEASE", Release("1.24.0", hashlib.sha256(tarball.read_bytes()).hexdigest()))
    return tarball


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of this machine's mirror, by address without ``http://``. It has none."""
    folder = tmp_path / "mirror"
    body = f"""echo "$*" >> {tmp_path}/calls
for file; do address=$target target=$file; done
cp "{folder}/${{address#http://}}" "$target" 2>/dev/null && exit
echo "E: Failed to fetch $address  404  Not Found" >&2
echo "E: Download Failed" >&2
exit 100"""
    monkeypatch.setattr(apt, "HELPER", str(put_program(tmp_path / "bin", "apt-helper", body)))
    put_program(tmp_path / "bin", "apt-get", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(apt, "system_sources", lambda: [Source(f"{MIRROR}/", ("bookworm", "noble"), ("main",))])
    return folder


def serve(mirror: Path, content: Path, component: str = "main") -> None:
    file = mirror / f"mirror.test/debian/pool/{component}/n/ngtcp2/ngtcp2_1.24.0.orig.tar.xz"
    file.parent.mkdir(parents=True)
    shutil.copy(content, file)


def calls(tmp_path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len((tmp_path / "calls").read_text().splitlines())
    return 0


def fetched(tmp_path: Path, distribution: Distribution = DEBIAN_12) -> Path:
    """The tarball in the cache, which is the only thing that was put there."""
    root = tmp_path / "cache"
    file = pinned.tarball(distribution, root)
    assert file == root / "sources" / "ngtcp2-1.24.0.tar.xz"
    assert sorted(entry.name for entry in root.iterdir()) == ["lock", "sources"]
    return file


def test_it_comes_from_the_mirror_whatever_suites_it_is_in(release: Path, mirror: Path, tmp_path: Path) -> None:
    """No index is needed, so it does not matter whether one has expired."""
    serve(mirror, release)
    assert fetched(tmp_path).read_bytes() == release.read_bytes()
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert f"download-file {MIRROR}/pool/main/n/ngtcp2/ngtcp2_1.24.0.orig.tar.xz " in call


def test_it_is_fetched_once(release: Path, mirror: Path, tmp_path: Path) -> None:
    serve(mirror, release)
    assert fetched(tmp_path) == fetched(tmp_path)
    assert calls(tmp_path) == 1


def test_another_component_of_the_mirror(release: Path, mirror: Path, tmp_path: Path) -> None:
    serve(mirror, release, "universe")
    assert fetched(tmp_path, UBUNTU).read_bytes() == release.read_bytes()


@pytest.mark.parametrize("distribution", [DEBIAN_12, FEDORA], ids=["not on the mirror", "no apt"])
def test_upstream_comes_next(release: Path, upstream: Path, tmp_path: Path, distribution: Distribution) -> None:
    shutil.copy(release, upstream)
    assert fetched(tmp_path, distribution).read_bytes() == release.read_bytes()


def test_another_file_is_never_used(release: Path, mirror: Path, upstream: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(release.read_bytes() + b"x")
    serve(mirror, other)
    shutil.copy(other, upstream / release.name)
    root = tmp_path / "cache"
    with pytest.raises(StepFailed) as caught:
        pinned.tarball(DEBIAN_12, root)
    assert str(caught.value).count("another file, with another SHA-256") == 2
    assert sorted(entry.name for entry in root.iterdir()) == ["lock"]


def test_without_a_network_one_line_says_where_to_put_it(release: Path, upstream: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with pytest.raises(StepFailed) as caught:
        pinned.tarball(DEBIAN_12, root)
    wanted = f"{MIRROR}/pool/main/n/ngtcp2/ngtcp2_1.24.0.orig.tar.xz"
    assert str(caught.value) == (
        f"{release.name} could not be fetched (apt: Failed to fetch {wanted}  404  Not Found; upstream: File not found)"
        f": fetch {pinned.RELEASE.address} on another machine and put it into {root}/sources, or name it in "
        "ASPORT_NGTCP2_SOURCE"
    )
    # What the line says works, whatever the file's mode.
    (root / "sources").mkdir()
    Path(shutil.copy(release, root / "sources")).chmod(0o666)
    attempts = calls(tmp_path)
    assert fetched(tmp_path).read_bytes() == release.read_bytes()
    assert calls(tmp_path) == attempts


@pytest.mark.parametrize("sums", [False, True], ids=["put by hand", "fetched"])
def test_it_is_checked_before_each_use(
    release: Path, mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], sums: bool
) -> None:
    serve(mirror, release)
    file = fetched(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    record = file.with_name(f"{file.name}.sha256")
    if sums:  # those of the changed file
        record.write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    else:
        record.unlink()
    assert fetched(tmp_path).read_bytes() == release.read_bytes()
    assert f"{file} is not used: its SHA-256 is not that of ngtcp2 1.24.0" in capfd.readouterr().err


def test_a_cache_that_others_may_write_to_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(Refused, match="other users may write to it"):
        pinned.tarball(DEBIAN_12, tmp_path / "cache")


def test_the_same_file_named_in_the_environment_is_the_same_build(release: Path, mirror: Path, tmp_path: Path) -> None:
    serve(mirror, release)
    origins = (ngtcp2.pinned_release(DEBIAN_12, tmp_path / "cache"), static_build.from_path(release))
    first, second = (static_build.cache_key(origin, "3.7.9", "x86_64", "") for origin in origins)
    assert first == second


@pytest.mark.skipif(not Path(HELPER).is_file(), reason=f"there is no {HELPER}")
def test_the_real_program_of_apt(
    release: Path, tmp_path: Path, upstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "HELPER", HELPER)
    address = pinned.RELEASE.address.rpartition("/")[0]
    monkeypatch.setattr(apt, "system_sources", lambda: [Source(address, ("bookworm",), ("main",))])
    file = tmp_path / "fetched"
    with pytest.raises(StepFailed, match=rf"^Failed to fetch {address}/pool/main/n/ngtcp2/name +404"):
        apt.fetch_source(DEBIAN_12, "ngtcp2", "name", file)
    pool = upstream / "pool" / "main" / "n" / "ngtcp2"
    pool.mkdir(parents=True)
    shutil.copy(release, pool / "name")
    apt.fetch_source(DEBIAN_12, "ngtcp2", "name", file)
    assert file.read_bytes() == release.read_bytes()
