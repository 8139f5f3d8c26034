"""Programs that are unpacked, with ``/usr`` as they expect it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import daemons
from vendor import cache


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program that prints a file of its package, and its account; only its owner can look into it."""
    (tmp_path / "cache").mkdir(0o700)
    monkeypatch.setenv("ASPORT_CACHE", str(tmp_path / "cache"))
    usr = tmp_path / "new" / "usr"
    for path, text in (
        ("sbin/asport-daemon", "#!/bin/sh\ncat /usr/share/asport-daemon\nid -u\necho $0 $1\n"),
        ("share/asport-daemon", "a file\n"),
        ("bin/true", ""),
    ):
        (usr / path).parent.mkdir(parents=True)
        (usr / path).write_text(text)
        (usr / path).chmod(0o755)
    return cache.publish(tmp_path / "new", daemons.place())


@pytest.mark.parametrize("as_nobody", [False, True])
def test_an_unpacked_program_finds_its_files(unpacked: Path, as_nobody: bool) -> None:
    done = subprocess.run(
        daemons.argv("asport-daemon", "an argument", as_nobody=as_nobody), capture_output=True, text=True, check=False
    )
    user = daemons.NOBODY if as_nobody else os.geteuid()
    assert (done.stdout, done.stderr) == (f"a file\n{user}\n/usr/sbin/asport-daemon an argument\n", "")
    assert not Path("/usr/sbin/asport-daemon").exists()


def test_a_changed_one_is_not_used(unpacked: Path) -> None:
    (unpacked / "usr/share/asport-daemon").write_text("another file\n")
    with pytest.raises(
        pytest.skip.Exception, match=r"^asport-daemon is not installed: python -m tests\.support\.daemons"
    ):
        daemons.argv("asport-daemon")


def test_one_that_others_may_write_to_is_not_used(unpacked: Path) -> None:
    (unpacked / "usr").chmod(0o777)
    with pytest.raises(pytest.skip.Exception, match=r"^asport-daemon is not used: .* other users may write to it"):
        daemons.argv("asport-daemon")


def test_an_installed_program_is_preferred(unpacked: Path) -> None:
    assert (unpacked / "usr/bin/true").exists()
    found, *arguments = daemons.argv("true", "an argument")
    assert (Path(found).name, arguments) == ("true", ["an argument"])
