"""The cache folder: what is in it is used only where nobody else may have changed it, and as it was published."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vendor import cache
from vendor.steps import Refused, StepFailed

STRANGER = 65534
"""A user that is not the one who runs the tests."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def loose_umask() -> Iterator[None]:
    """What is made is writable for the group, as with the umask of some distributions."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache folder, not made yet."""
    return tmp_path / "above" / "cache"


def publish(root: Path, name: str = "kind/built") -> Path:
    """Publish a folder with a file, a link and a folder in it."""
    with cache.locked(root), cache.scratch(root) as folder:
        finished = folder / "finished"
        (finished / "lib").mkdir(parents=True)
        (finished / "lib" / "library.a").write_text("code")
        (finished / "library.a").symlink_to("lib/library.a")
        return cache.publish(finished, root / name)


def test_what_was_published_is_kept(root: Path) -> None:
    place = publish(root)
    assert cache.kept(root, place)
    assert not cache.kept(root, root / "kind" / "other")
    assert sorted(entry.name for entry in root.iterdir()) == ["kind", "lock"]
    # In the format of sha256sum, for whoever wants to look.
    subprocess.run(["sha256sum", "--check", "--quiet", "built.sha256"], cwd=place.parent, check=True)


@pytest.mark.usefixtures("loose_umask")
def test_whatever_the_umask_is_nobody_else_may_write(root: Path) -> None:
    place = publish(root)
    assert cache.kept(root, place)
    made = [file for file in [root, *root.rglob("*")] if not file.is_symlink() and file.name != "lock"]
    assert [file for file in made if file.stat().st_mode & 0o022] == []


@pytest.mark.parametrize("name", ["file", "file/cache", "dangling"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with (
        pytest.raises(StepFailed, match=rf"cannot use the cache folder {tmp_path / name} \(.*\): .* ASPORT_CACHE$"),
        cache.locked(tmp_path / name),
    ):
        pass


def test_a_changed_file_is_noticed(root: Path) -> None:
    place = publish(root)
    (place / "lib" / "library.a").write_text("Code")
    assert not cache.kept(root, place)


@pytest.mark.parametrize("change", ["a file more", "a file less", "another link", "no sums"])
def test_any_other_change_is_noticed(root: Path, change: str) -> None:
    place = publish(root)
    if change == "a file more":
        (place / "header.h").touch(0o644)
    elif change == "a file less":
        (place / "lib" / "library.a").unlink()
    elif change == "another link":
        (place / "library.a").unlink()
        (place / "library.a").symlink_to("/somewhere/else")
    else:
        place.with_name("built.sha256").unlink()
    assert not cache.kept(root, place)
    assert cache.kept(root, publish(root))


PARTS = ["", "kind", "kind/built", "kind/built/lib", "kind/built/lib/library.a", "kind/built.sha256"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_what_others_may_write_to_is_refused(root: Path, part: str, bit: int) -> None:
    place = publish(root)
    file = root / part
    file.chmod(file.stat().st_mode | bit)
    with pytest.raises(Refused, match="other users may write to it") as caught:
        cache.kept(root, place)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file} is not used: ")
    assert f"remove {root}, or name another folder in ASPORT_CACHE" in line


@needs_root
@pytest.mark.parametrize("part", PARTS)
def test_what_belongs_to_somebody_else_is_refused(root: Path, part: str) -> None:
    place = publish(root)
    os.chown(root / part, STRANGER, STRANGER)
    with pytest.raises(Refused, match=f"belongs to user {STRANGER}, and user 0 is building"):
        cache.kept(root, place)


def test_nothing_is_put_into_a_folder_that_others_may_write_to(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o777)
    with pytest.raises(Refused, match=r"other users may write to it \(mode 0777\)"):
        publish(root)
    assert list(root.iterdir()) == []


def test_what_is_above_the_cache_is_the_users_choice(root: Path) -> None:
    root.parent.mkdir()
    root.parent.chmod(0o1777)
    assert cache.kept(root, publish(root))
