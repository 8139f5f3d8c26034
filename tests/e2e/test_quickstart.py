"""docs/quickstart.md: every command but those of the installation, with a home for each machine."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_day import home_with_the_command, masked, replaced
from tests.support.console import Command, File, Shell, matches, parts_of
from tests.support.ports import free_port
from tests.support.process import REPOSITORY
from tests.support.sanitized import takes_shells
from tests.support.terminal import Terminal, rendered
from tests.support.waiting import NeverHappened, wait_until

PAGE = REPOSITORY / "docs" / "quickstart.md"
HOST, PORT, RUNTIME = "example.org", "4433", "/run/user/1000"
# What the commands make up, as the page has it, and where their output has it.
MADE_UP = {r"asport://\S+[^'\s]": "a URI", rf"(?<=http://{HOST}:)\d+": "a public port"}
# Commands that run until Ctrl-C, in a terminal of their own.
FOREGROUND = re.compile(r"asport-sync (?:server run|expose)\b")

TIMEOUT = 60.0  # seconds until a command has printed what the page shows; only a failure waits so long
MAX_TYPED = 480
"""Characters: two minutes at the speed of an average typist, 48 words of five per minute. The URI is pasted."""


def sections() -> dict[str, list[File | Command]]:
    """The commands of the page below each of its headings."""
    _, *texts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {text.partition("\n")[0]: list(parts_of(text)) for text in texts}
    return {heading: parts for heading, parts in found.items() if parts}


def test_the_installation_is_that_of_the_readme() -> None:
    """Which is executed on a bare machine by .ci/run, and checked by tests/test_documentation.py.

    The folder is another one, because that of the README needs root.
    """
    commands = [part.text for part in sections()["Installation, on both machines"]]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    try_it, install = re.findall(r"^```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[:2]
    assert try_it.startswith(f"{commands[0]} &&")
    assert commands[1:] == install.replace("/opt/asport", "~/asport").splitlines()[:3]


def test_it_is_typed_in_two_minutes() -> None:
    typed = {
        heading: sum(len(re.sub(r"asport://[^']*", "", part.text)) for part in parts)
        for heading, parts in sections().items()
    }
    assert typed["Installation, on both machines"] + sum(typed.values()) <= MAX_TYPED


@takes_shells
def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    for tool in ("bash", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    text = PAGE.read_text(encoding="utf-8")
    here = {found[0]: "" for pattern in MADE_UP for found in [re.search(pattern, text)] if found is not None}
    assert len(here) == len(MADE_UP)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    here |= {HOST: "localhost", PORT: str(free_port()), RUNTIME: str(runtime)}
    parts = sections()
    assert list(parts) == ["Installation, on both machines", "On the server", "On your machine", "Anywhere"]
    del parts["Installation, on both machines"]
    with contextlib.ExitStack() as machines:
        terminals = []
        for heading, commands in parts.items():
            home = home_with_the_command(tmp_path / heading.replace(" ", "-"))
            shell = machines.enter_context(Shell(home, environment_of(home, runtime)))
            for command in commands:
                assert isinstance(command, Command)
                if FOREGROUND.match(command.text):
                    terminal = machines.enter_context(in_a_terminal(shell, command, here))
                    terminals.append(terminal)
                    compare(command, functools.partial(text_on, terminal), here)
                else:
                    status, output = shell.run(replaced(command.text, here))
                    compare(command, functools.partial(str, output), here)
                    assert status == 0
        assert len(terminals) == 2
        for terminal in reversed(terminals):
            terminal.type("\x03")
            assert terminal.wait(TIMEOUT) == 0


def environment_of(home: Path, runtime: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join([str(home / ".local" / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "XDG_RUNTIME_DIR": str(runtime),
    }


def in_a_terminal(shell: Shell, command: Command, here: dict[str, str]) -> Terminal:
    """What the shell would run until Ctrl-C, with its variables and in its working directory."""
    _, variables = shell.run("export -p")
    _, directory = shell.run("pwd")
    script = f"{variables}\ncd '{directory.strip()}'\nexec {replaced(command.text, here)}"
    return Terminal(["bash", "--noprofile", "--norc", "-c", script], columns=200)


def text_on(terminal: Terminal) -> str:
    return rendered(terminal.shown())


def compare(command: Command, look: Callable[[], str], here: dict[str, str]) -> None:
    """Waits until a command has printed what the page shows, and notes what it has made up."""

    def is_as_shown() -> bool:
        output = look().rstrip()
        for pattern in MADE_UP:
            made_up = re.search(pattern.replace(HOST, here[HOST]), output)
            on_the_page = re.search(pattern, command.output)
            if made_up is not None and on_the_page is not None:
                here[on_the_page[0]] = made_up[0]
        there = {text: on_the_page for on_the_page, text in here.items() if text}
        return matches(command.output, replaced(output, there), masked_dates)

    try:
        wait_until(is_as_shown, TIMEOUT, command.text)
    except NeverHappened:
        raise AssertionError(f"{PAGE.name}, line {command.line}: {command.text}\n{look()}") from None


def masked_dates(line: str) -> str:
    return re.sub(r"(?<=until )\d{4}-\d\d-\d\d", "DATE", masked(line))
