"""What killed test runs leave of a service manager, and who removes it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.service_manager import FOLDER_PREFIX, remove_abandoned_folders


def ended_pid() -> int:
    """The pid of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_folders_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ended_pid()
    abandoned = tmp_path / f"{FOLDER_PREFIX}{gone}-abc"
    kept = [
        tmp_path / f"{FOLDER_PREFIX}{os.getpid()}-abc",  # a run that goes on
        tmp_path / f"{FOLDER_PREFIX}private-service",
        tmp_path / f"other-{gone}-abc",
    ]
    for folder in (abandoned, *kept):
        (folder / "mount").mkdir(parents=True)
        (folder / "machine-id").write_text("content")
    (link := tmp_path / f"{FOLDER_PREFIX}{gone}-link").symlink_to(kept[0])
    # Nothing of another user's.
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    remove_abandoned_folders(tmp_path)
    assert abandoned.exists()
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    remove_abandoned_folders(tmp_path)
    assert not abandoned.exists()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, link])
    assert all((folder / "machine-id").exists() for folder in kept)
