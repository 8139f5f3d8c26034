"""Setting up the machine: what is missing is installed where that is allowed, and named where it is not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vendor import cache, machine, system_kind
from vendor.distribution import Distribution, detect
from vendor.steps import StepFailed, run

DEBIAN_12 = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The needs that are met; a test takes away what it wants to be missing."""
    met = set(machine.PROBES)

    def probe(need: str) -> Callable[[], bool]:
        return lambda: need in met

    monkeypatch.setattr(machine, "PROBES", {need: probe(need) for need in machine.PROBES})
    monkeypatch.setattr(machine, "detect", lambda: DEBIAN_12)
    return met


def test_nothing_is_done_where_nothing_is_missing(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "install", None)
    monkeypatch.setattr(machine, "privilege", None)
    assert machine.main() == 0
    assert capfd.readouterr() == ("", "")


def test_without_privilege_the_command_is_told(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    installed -= {"gnutls", "ip"}
    monkeypatch.setattr(machine, "privilege", lambda: None)
    assert machine.main() == 1
    assert capfd.readouterr().err == (
        "missing on this machine: gnutls, ip. Run: "
        "sudo apt-get update && sudo apt-get install --yes --no-install-recommends libgnutls28-dev iproute2\n"
    )


@pytest.mark.parametrize("works", [True, False])
def test_with_privilege_it_is_installed(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], works: bool
) -> None:
    installed.remove("python-headers")
    asked: list[Sequence[str]] = []

    def install(distribution: Distribution, needs: Sequence[str], prefix: Sequence[str]) -> None:
        asked.append([*prefix, *distribution.package_names(needs)])
        if works:
            installed.update(needs)

    monkeypatch.setattr(machine, "privilege", lambda: ["sudo", "-n"])
    monkeypatch.setattr(machine, "install", install)
    assert machine.main() == (0 if works else 1)
    assert asked == [["sudo", "-n", "python3-dev"]]
    assert ("PYTHON=..." in capfd.readouterr().err) is not works


@pytest.mark.parametrize("works", [True, False])
def test_what_one_target_needs_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], works: bool
) -> None:
    met: set[str] = set()
    monkeypatch.setattr(machine, "PROBES", {"compiler": lambda: False})  # not asked for now
    monkeypatch.setattr(machine, "EXTRA_PROBES", {"clang": lambda: "clang" in met})
    monkeypatch.setattr(machine, "detect", lambda: DEBIAN_12)
    monkeypatch.setattr(machine, "privilege", list)
    monkeypatch.setattr(machine, "install", lambda distribution, needs, prefix: met.update(needs if works else ()))
    assert machine.main(["clang"]) == 0
    told = "missing on this machine: clang" in capfd.readouterr().err
    assert told is not works


def test_what_the_distribution_lacks_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "EXTRA_PROBES", {"systemd": lambda: False})
    monkeypatch.setattr(machine, "detect", lambda: detect("ID=alpine\nVERSION_ID=3.20\n"))
    monkeypatch.setattr(machine, "privilege", list)
    monkeypatch.setattr(machine, "install", None)
    assert machine.main(["systemd"]) == 0
    assert capfd.readouterr().err == "missing on this machine: systemd; Alpine Linux 3.20 has no package\n"


def test_lists_are_refreshed_and_packages_installed_without_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    class Done:
        returncode = 100

    def note(command: list[str], **rest: object) -> Done:
        calls.append(command)
        return Done()

    monkeypatch.setattr(subprocess, "run", note)
    machine.install(DEBIAN_12, ["gnutls"], ["sudo", "-n"])
    start = ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    # The lists could not be refreshed (100), and it is tried all the same.
    assert calls == [
        [*start, "update"],
        [*start, "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "libgnutls28-dev"],
    ]


def test_the_real_probes_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter that runs this is complete enough to run it, and an empty PATH has no tools."""
    assert machine.has_program("sh")
    assert not machine.has_program("no-such-program", "nor-this-one")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not machine.has_compiler()


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert cache.folder({"ASPORT_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}) == Path("/own")
    assert cache.folder({"ASPORT_CACHE": "", "XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/asport-sync")
    assert cache.folder({"XDG_CACHE_HOME": "relative"}) == Path("/home/user/.cache/asport-sync")
    assert cache.folder({}) == Path("/home/user/.cache/asport-sync")


def test_unpacked_packages_are_found_where_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/some-triplet/pkgconfig"
    folder.mkdir(parents=True)
    text = "prefix=/usr\nexec_prefix=${prefix}\nlibdir=${prefix}/lib/some-triplet\n"
    for name in ("libngtcp2", "libngtcp2_crypto_gnutls"):
        (folder / f"{name}.pc").write_text(system_kind.relocated(text, tmp_path))
        assert (folder / f"{name}.pc").read_text() == text.replace("=/usr", f"={tmp_path}/usr")
    own = {"LDFLAGS": "-Wl,-O1"}
    assert system_kind.environment(tmp_path, own) == {
        "PKG_CONFIG_PATH": str(folder),
        "LDFLAGS": f"-Wl,-rpath,{folder.parent} -Wl,-O1",
    }
    with pytest.raises(StepFailed, match="no pkg-config files below"):
        system_kind.environment(tmp_path / "empty", own)


def test_a_command_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(StepFailed, match=r"^sh failed: the reason$"):
        run(["sh", "-c", "echo noise; echo first >&2; echo the reason >&2; exit 3"])
    with pytest.raises(StepFailed, match=r"^sh failed with status 3$"):
        run(["sh", "-c", "exit 3"])
    with pytest.raises(StepFailed, match=r"^no-such-program is not installed$"):
        run(["no-such-program"])
    with pytest.raises(StepFailed, match=r"^sleep took longer than 0 s$"):
        run(["sleep", "60"], timeout=0.01)
