"""The scripts of ``asport-sync completion``, in the shells that they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asport_sync.cli import completion, main

# Completes a line as bash does when the user presses Tab, and prints what is offered.
PRESS_TAB = """
source "$1"
read -ra COMP_WORDS <<< "$2"
[[ $2 == *" " ]] && COMP_WORDS+=("")
COMP_LINE=$2 COMP_POINT=${#2} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
[[ $(complete -p asport-sync) =~ -F\\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" asport-sync "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
LINES = [
    ("asport-sync conf", ["config"]),
    ("asport-sync config ", ["show", "schema", "example", "convert"]),
    ("asport-sync config show cl", ["client"]),
    ("asport-sync server run --log-f", ["--log-format"]),
    ("asport-sync server run --log-format ", ["text", "json"]),
    ("asport-sync client check -c clie", ["client.yaml"]),
]


@pytest.fixture
def scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """The scripts by shell."""
    made = {}
    for shell in completion.SHELLS:
        assert main(["completion", shell]) == 0
        made[shell] = tmp_path / f"script.{shell}"
        made[shell].write_text(capsys.readouterr().out)
    (tmp_path / "client.yaml").touch()
    return made


@pytest.mark.parametrize(("line", "offered"), LINES)
def test_bash(scripts: dict[str, Path], line: str, offered: list[str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", PRESS_TAB, "bash", scripts["bash"], line],
        cwd=scripts["bash"].parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(scripts: dict[str, Path]) -> None:
    for line, offered in LINES[:-1]:  # file names need fish's own functions, which not every installation finds
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {scripts['fish']}; complete -C {line!r}"],
            cwd=scripts["fish"].parent,
            env=os.environ | {"HOME": str(scripts["fish"].parent)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert sorted(each.split("\t")[0] for each in done.stdout.splitlines()) == sorted(offered)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(scripts: dict[str, Path]) -> None:
    """That zsh can read the script: its completion needs a terminal."""
    done = subprocess.run(["zsh", "-n", scripts["zsh"]], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_there(scripts: dict[str, Path]) -> None:
    for path in scripts.values():
        text = path.read_text()
        words = ("client", "systemd", "log-level", "--log-format", "convert", "expose", "doctor", "rotate")
        assert all(each in text for each in words)


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == (
        "asport-sync: the package shtab is not installed: pip install 'asport-sync[completion]'\n"
    )


def test_a_shtab_that_does_not_know_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complete(parser: object, shell: str) -> str:
        raise NotImplementedError(f"shell ({shell}) must be in bash,zsh,tcsh")

    monkeypatch.setattr("shtab.complete", complete)
    assert main(["completion", "fish"]) == 1
    assert capsys.readouterr().err == (
        "asport-sync: the installed release of shtab does not know fish: "
        "pip install --upgrade 'asport-sync[completion]'\n"
    )
