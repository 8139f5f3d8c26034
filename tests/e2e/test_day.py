"""docs/day.md: every command, in the order of the page, with real processes on loopback."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.console import Command, File, Shell, matches, parts_of
from tests.support.ports import free_port
from tests.support.process import REPOSITORY
from tests.support.waiting import NeverHappened, wait_until

PAGE = REPOSITORY / "docs" / "day.md"

# As the page has them. The test has others, in the same order.
PORTS = ("4433", "8080", "8081", "8082", "9464", "30001", "30002", "30003", "30004")
HOME, RUNTIME = "/home/alice", "/run/user/1000"

# Commands that only look. They are repeated until they show what the page shows: a person looks again, too.
LOOKS = re.compile(r"(?:asport-sync (?:status|list)|curl|cat|grep|tail)\b(?!.*&)")
LOOK_TIMEOUT = 60.0  # seconds until they do; only a failure waits so long

# What varies -> what is compared instead, in this order. Addresses keep their IP address.
VARYING = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}": "TIME",
    rf"(?<=127\.0\.0\.\d:)(?!(?:{'|'.join(PORTS)})\b)\d+": "PORT",
    r"(?<=pid )\d+": "PID",
    r"(?<=B) +\d+$": "  MTU",
    r"\b\d+(?:\.\d+)? m?s\b": "DURATION",
    r"(?<=up )\d+[dhms](?: \d+[hms])?(?=:)|(?<=  )\d+[dhms](?: \d+[hms])?(?=  )": "DURATION",
    r"(?<=\()\d+[dhms](?: \d+[hms])?(?= ago\)$)": "DURATION",
    r"\b\d+(?:\.\d+)? (?:[KMGT]i)?B\b": "SIZE",
    r"\b\d+ bytes\b": "SIZE",
    r"\b\d+(?:\.\d+)? [kMG]?bit\b": "RATE",
    r"\b\d+\.\d\d %": "LOSS",
}


def masked(line: str) -> str:
    for pattern, name in VARYING.items():
        line = re.sub(pattern, name, line)
    return line


def replaced(text: str, others: Mapping[str, str]) -> str:
    """A text with other ports and folders."""
    for one, other in others.items():
        text = re.sub(rf"(?<![\d.]){re.escape(one)}(?!\d)", other, text)
    return text


def home_with_the_command(folder: Path) -> Path:
    """A home in which ``asport-sync`` is installed."""
    program = folder / "home" / ".local" / "bin" / "asport-sync"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\n\nfrom asport_sync.cli import main\n\nsys.exit(main())\n")
    program.chmod(0o755)
    return folder / "home"


@pytest.mark.timeout(600)
def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    for tool in ("bash", "curl", "openssl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if importlib.util.find_spec("prometheus_client") is None:
        pytest.skip("prometheus-client is not installed")
    parts = list(parts_of(PAGE.read_text(encoding="utf-8")))
    assert len(parts) > 50
    assert {port for part in parts for port in re.findall(r"(?<=127\.0\.0\.1:)\d+", part.text)} <= {*PORTS}
    home, runtime = home_with_the_command(tmp_path), tmp_path / "run"
    runtime.mkdir(mode=0o700)
    here = dict(zip(PORTS, sorted(str(free_port()) for _ in PORTS), strict=True))
    there = {str(runtime): RUNTIME, str(home): HOME, **{number: port for port, number in here.items()}}
    environment = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join([str(home / ".local" / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "XDG_RUNTIME_DIR": str(runtime),
    }
    with Shell(home, environment) as shell:
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            if isinstance(part, File):
                (home / "day" / part.name).write_text(replaced(part.text, here))
            else:
                may_fail = isinstance(following, Command) and following.text == "echo $?"
                execute(shell, part, may_fail=may_fail, here=here, there=there)
        assert shell.run("jobs -p") == (0, "")


def execute(
    shell: Shell, command: Command, *, may_fail: bool, here: Mapping[str, str], there: Mapping[str, str]
) -> None:
    """Executes a command; a look is repeated until it shows what the page shows."""
    status, output = 0, ""

    def is_as_shown() -> bool:
        nonlocal status, output
        status, output = shell.run(replaced(command.text, here))
        output = replaced(output, there)
        return (may_fail or status == 0) and matches(command.output, output, masked)

    looks = LOOKS.match(command.text) is not None
    try:
        wait_until(is_as_shown, LOOK_TIMEOUT if looks else 0.0, command.text)
    except NeverHappened:
        expected, shown = ([masked(line) for line in text.splitlines()] for text in (command.output, output))
        different = "\n".join(difflib.unified_diff(expected, shown, "the page", "here", lineterm=""))
        raise AssertionError(
            f"{PAGE.name}, line {command.line}: {command.text}\nexit status {status}\n{different}\n{output}"
        ) from None
