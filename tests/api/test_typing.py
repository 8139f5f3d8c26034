"""Type checkers find mistakes in a program that uses the package, and nothing in one without."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import asport_sync
from tests.support.certificates import self_signed, write_private

HERE = Path(__file__).resolve().parent
PACKAGES = Path(asport_sync.__file__).resolve().parents[1]
# Kept between runs: with it a run takes a second, without it a quarter of a minute.
CACHE = HERE.parents[1] / "build" / "mypy-of-programs"

RIGHT = (HERE / "right_program.py").read_text(encoding="utf-8")
# Each marked line is a mistake, and the only one in it.
WRONG = """\
from asport_sync import Client, Server
from asport_sync import AuthenticationFailed  # wrong: a former name

client = Client(server="a:1", local="b:2", uuid="u", password="p")
Client(server="a:1", local="b:2", uuid="u", pasword="p")  # wrong: a misspelled key
Client(server="a:1", local="b:2", uuid="u", timeout=[8])  # wrong: a list is no duration
Client(server="a:1", local="b:2", uuid="u", timeout=None)  # wrong: there is a default
Client(server="a:1", local="b:2", uuid="u", network="tpc")  # wrong: no such word
Client(server="a:1", local="b:2", uuid="u", proxies=[])  # wrong: a key of the server
Client(server="a:1", local="b:2", uuid="u", alpn="asport")  # wrong: text is no list
Client(server="a:1", local="b:2", uuid="u", certificates={"path": []})  # wrong: a misspelled key of a table
Client("a:1", local="b:2", uuid="u")  # wrong: by keyword only
Client(server="a:1", uuid="u", tunnels={"web": {"lokal": "b:2"}})  # wrong: a misspelled key of a tunnel
Client(server="a:1", uuid="u", tunnels={"web": {"max_workers": 1}})  # wrong: a key of the whole client
Server("[::]:443", certificate="c", private_key="k", proxies=[{"users": {"u": "p"}}])
Server("[::]:443", certificate="c", private_key="k", proxies=[{}])  # wrong: no users
Server("[::]:443", certificate="c", private_key="k", proxies=[{"users": {"u": 1}}])  # wrong: no password
Server("[::]:443", certificate="c", private_key="k", proxies=[{"users": {}, "allow_port": 1}])  # wrong: misspelled
Server("[::]:443", certificate="c", private_key="k", proxies=[], congestion_control="vegas")  # wrong: no such word
client.wait_ready("10s")  # wrong: seconds are a number
client.configuration  # wrong: no such attribute
"""
MISTAKES = {number for number, line in enumerate(WRONG.splitlines(), 1) if "# wrong: " in line}


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def lines_by_mypy(program: str, folder: Path) -> dict[int, str]:
    """What mypy says of a program: the first error of each line."""
    (folder / "program.py").write_text(program)
    options = ("--strict", "--follow-imports=silent", "--config-file=", "--no-error-summary", f"--cache-dir={CACHE}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # tests in other processes use the same cache
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("-m", "mypy", *options, "program.py", folder=folder, MYPYPATH=str(PACKAGES))
    assert done.stderr == ""
    said = re.findall(r"^program\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert (done.returncode == 0) == (not said), done.stdout
    return {int(line): text for line, text in reversed(said)}


def lines_by_pyright(program: str, folder: Path) -> dict[int, str]:
    """What pyright says of a program: the first error of each line."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: there is no package of node for this machine")
    (folder / "program.py").write_text(program)
    options = {"include": ["program.py"], "extraPaths": [str(PACKAGES)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    arguments = ("--outputjson", "--pythonpath", sys.executable, "--project", str(folder))
    done = run("-m", "pyright", *arguments, folder=folder, PYRIGHT_PYTHON_IGNORE_WARNINGS="1")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["summary"]["filesAnalyzed"] == 1
    said = [each for each in result["generalDiagnostics"] if each["severity"] == "error"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in reversed(said)}


Checker = Callable[[str, Path], "dict[int, str]"]
CHECKERS: list[Checker] = [lines_by_mypy, lines_by_pyright]


@pytest.mark.parametrize("lines", CHECKERS)
def test_a_right_program_passes(tmp_path: Path, lines: Checker) -> None:
    assert lines(RIGHT, tmp_path) == {}


def test_the_right_program_runs(tmp_path: Path) -> None:
    made = self_signed(tmp_path / "made")
    write_private(tmp_path / "fullchain.pem", made.certificate.read_bytes())
    write_private(tmp_path / "privkey.pem", made.private_key.read_bytes())
    write_private(tmp_path / "password", b"a password\n")
    done = run("-W", "error", str(HERE / "right_program.py"), str(tmp_path), folder=tmp_path, PYTHONPATH=str(PACKAGES))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("lines", CHECKERS)
def test_mistakes_are_found(tmp_path: Path, lines: Checker) -> None:
    found = lines(WRONG, tmp_path)
    assert {number: found.get(number) for number in MISTAKES ^ set(found)} == {}
