"""Which ngtcp2 is linked: the order of the ways, and what is said when one or all of them fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vendor.programs import answer_pkg_config
from vendor import apt, ngtcp2, pinned, static_build
from vendor.apt import Source
from vendor.distribution import Distribution, detect
from vendor.ngtcp2 import LibraryMissing
from vendor.static_build import Origin
from vendor.steps import Refused, StepFailed, ToolMissing

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")
RECENT = {"gnutls": "3.7.9", "libngtcp2": "1.11.0", "libngtcp2_crypto_gnutls": "1.11.0"}
BACKPORTS = "sudo apt-get install --yes -t bookworm-backports libngtcp2-dev libngtcp2-crypto-gnutls-dev"

COMMAND = (
    "Run: sudo apt-get update && sudo apt-get install --yes --no-install-recommends "
    "gcc libc6-dev make pkg-config libgnutls28-dev python3-dev"
)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The ways that were tried; fetching and building "work" until a test says otherwise."""
    order: list[str] = []

    def tarball(distribution: Distribution, root: Path) -> Path:
        order.append("pinned release")
        return tmp_path / "fetched.tar.xz"

    def from_path(path: Path) -> Origin:
        order.append("given source")
        return Origin(path, "1.25.0", "bb")

    def build(origin: Origin, **rest: object) -> Path:
        return tmp_path / "built" / origin.version

    found: Callable[[], ngtcp2.Library] = ngtcp2.system

    def system() -> ngtcp2.Library:
        order.append("system library")
        return found()

    monkeypatch.setattr(pinned, "tarball", tarball)
    monkeypatch.setattr(static_build, "from_path", from_path)
    monkeypatch.setattr(static_build, "build", build)
    monkeypatch.setattr(ngtcp2, "system", system)
    monkeypatch.setattr(apt, "system_sources", lambda: [Source("http://mirror.test/debian", ("bookworm",), ("main",))])
    return order


def fail(problem: str) -> Callable[..., object]:
    def failing(*arguments: object, **rest: object) -> object:
        raise StepFailed(problem)

    return failing


def test_the_pinned_release_comes_first(tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    library = ngtcp2.choose({}, DEBIAN_12)
    folder = tmp_path / "built" / "1.24.0"
    assert tried == ["pinned release"]
    assert library == ngtcp2.Library(
        origin="bundled",
        version="1.24.0",
        compile_args=(f"-I{folder}/include", "-I/include/gnutls"),
        archives=(f"{folder}/lib/libngtcp2_crypto_gnutls.a", f"{folder}/lib/libngtcp2.a"),
        link_args=("-lgnutls",),
        licence=folder / "COPYING",
    )


def test_the_system_comes_next(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    monkeypatch.setattr(static_build, "build", fail("configure failed: see some.log"))
    library = ngtcp2.choose({}, DEBIAN_12)
    assert tried == ["pinned release", "system library"]
    assert (library.origin, library.version, library.archives, library.licence) == ("system", "1.11.0", (), None)
    # The helper stands before the library it calls.
    assert library.link_args == ("-llibngtcp2_crypto_gnutls", "-llibngtcp2", "-lgnutls")
    assert capfd.readouterr().err.splitlines() == [
        "ngtcp2: pinned release: configure failed: see some.log",
        "ngtcp2: using system ngtcp2 1.11.0",
        "ngtcp2: warning: fell back to the system's ngtcp2 1.11.0, for the reason above; old releases have known "
        "faults: ASPORT_NGTCP2=bundled makes this an error, ASPORT_NGTCP2=system states that it is intended",
    ]
    assert library.description == "system, fallback"
    # Where it was asked for, it is no fallback.
    assert ngtcp2.choose({"ASPORT_NGTCP2": "system"}, DEBIAN_12).description == "system"
    assert "warning" not in capfd.readouterr().err


def test_when_all_fail_every_reason_and_the_commands_are_told(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, gnutls="3.7.9", libngtcp2="0.12.1", libngtcp2_crypto_gnutls="0.12.1")
    monkeypatch.setattr(pinned, "tarball", fail("apt-get update: apt-get failed: E: no network"))
    with pytest.raises(LibraryMissing) as caught:
        ngtcp2.choose({}, DEBIAN_12)
    lines = str(caught.value).splitlines()
    assert "pinned release: apt-get update: apt-get failed: E: no network" in lines
    assert "system library: libngtcp2 0.12.1 is too old (1.11 or later is needed)" in lines
    assert any("http://mirror.test/debian bookworm-backports main" in line for line in lines)
    assert f"  {BACKPORTS}" in lines


def test_system_is_the_system_alone(tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_pkg_config(monkeypatch, tmp_path, gnutls="3.7.9", libngtcp2="1.11.0")
    with pytest.raises(
        LibraryMissing, match=r"libngtcp2_crypto_gnutls \(its development files\) is not installed"
    ) as caught:
        ngtcp2.choose({"ASPORT_NGTCP2": "system"}, DEBIAN_12)
    assert tried == ["system library"]
    assert BACKPORTS in str(caught.value)


def test_bundled_leaves_out_the_system(tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    monkeypatch.setattr(pinned, "tarball", fail("no apt on this system"))
    with pytest.raises(LibraryMissing, match="pinned release: no apt on this system"):
        ngtcp2.choose({"ASPORT_NGTCP2": "bundled"}, DEBIAN_12)
    assert "system library" not in tried


def test_a_given_source_is_used(tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    library = ngtcp2.choose({"ASPORT_NGTCP2_SOURCE": "/some/ngtcp2.tar.xz"}, DEBIAN_12)
    assert (tried, library.origin, library.version) == (["given source"], "bundled", "1.25.0")


def test_a_given_source_that_fails_is_not_replaced(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    monkeypatch.setattr(static_build, "from_path", fail("/some/folder does not exist"))
    with pytest.raises(LibraryMissing, match="ASPORT_NGTCP2_SOURCE: /some/folder does not exist"):
        ngtcp2.choose({"ASPORT_NGTCP2_SOURCE": "/some/folder"}, DEBIAN_12)
    assert tried == []


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"gnutls": "3.7.2"}, r"GnuTLS 3\.7\.2 is too old \(3\.7\.3 or later is needed\)"),
        ({}, r"GnuTLS \(its development files\) is not installed"),
    ],
)
def test_without_gnutls_nothing_is_tried(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str], problem: str
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **versions)
    with pytest.raises(LibraryMissing, match=problem) as caught:
        ngtcp2.choose({}, DEBIAN_12)
    assert tried == []
    assert str(caught.value).endswith(f". {COMMAND}")


def test_without_pkg_config_it_is_named(tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PKG_CONFIG", str(tmp_path / "pkg-config"))
    with pytest.raises(LibraryMissing, match="pkg-config is not installed"):
        ngtcp2.choose({}, DEBIAN_12)
    assert tried == []


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Refused("the cache is not used: remove it"), "the cache is not used: remove it"),
        (ToolMissing("make"), f"make is not installed. {COMMAND}"),
    ],
)
def test_what_the_user_can_mend_does_not_end_in_an_old_library(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: Exception, said: str
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)

    def build(*arguments: object, **rest: object) -> object:
        raise problem

    monkeypatch.setattr(static_build, "build", build)
    with pytest.raises(LibraryMissing) as caught:
        ngtcp2.choose({}, DEBIAN_12)
    assert str(caught.value) == said
    assert tried == ["pinned release"]


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"ASPORT_NGTCP2": "static"}, "ASPORT_NGTCP2=static: expected one of auto, bundled, system"),
        ({"ASPORT_NGTCP2": "system", "ASPORT_NGTCP2_SOURCE": "/some"}, "exclude each other"),
    ],
)
def test_contradictions_are_refused(tried: list[str], env: dict[str, str], problem: str) -> None:
    with pytest.raises(LibraryMissing, match=problem):
        ngtcp2.choose(env, DEBIAN_12)
    assert tried == []


def test_the_command_prints_words_for_a_compiler(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_pkg_config(monkeypatch, tmp_path, **RECENT)
    for name in ("ASPORT_NGTCP2", "ASPORT_NGTCP2_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "built" / "1.24.0"
    assert ngtcp2.main(["--cflags"]) == 0
    assert capsys.readouterr().out == f"-I{folder}/include -I/include/gnutls\n"
    assert ngtcp2.main(["--libs"]) == 0
    assert capsys.readouterr().out == f"{folder}/lib/libngtcp2_crypto_gnutls.a {folder}/lib/libngtcp2.a -lgnutls\n"
    assert ngtcp2.main([]) == 0
    assert capsys.readouterr().out.startswith("origin: bundled\nversion: 1.24.0\n")
