"""Executes a transcript of a page, in a root with nothing installed: ``python3 -m tests.wheel.typed PAGE HEADING``.

A command that serves until Ctrl-C runs in a terminal of its own; the next ones begin when it has printed what the page
shows.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from tests.support.console import Command, Shell, matches, parts_of
from tests.support.terminal import Terminal, rendered
from tests.support.waiting import NeverHappened, wait_until

FOREGROUND = re.compile(r"\basport-sync expose\b")
TIMEOUT = 60.0  # seconds; only a failure takes so long
VARYING = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}": "TIME",
    r"\b\d+(?:\.\d+)? m?s\b": "DURATION",
    r"\b\d+(?:\.\d+)? (?:[KMGT]i)?B\b": "SIZE",
}


def masked(line: str) -> str:
    """A line without what is different each time."""
    for pattern, name in VARYING.items():
        line = re.sub(pattern, name, line)
    return line


def main(page: str, heading: str) -> None:
    """Raises AssertionError where a command prints something else."""
    section = re.search(rf"^### Debian {heading}\b.*\n((?:(?!#).*\n)*)", Path(page).read_text("utf-8"), re.MULTILINE)
    assert section is not None, f"{page} has no section about {heading}"
    home = Path.home()
    with contextlib.ExitStack() as ends, Shell(home, os.environ) as shell:
        for command in parts_of(section[1]):
            assert isinstance(command, Command)
            if FOREGROUND.search(command.text):
                path = shell.run("echo $PATH")[1].strip()
                arguments = ["bash", "--noprofile", "--norc", "-c", command.text]
                terminal = Terminal(arguments, environment={"PATH": path}, directory=home, columns=200)
                shown = ends.enter_context(terminal)
                try:
                    wait_until(
                        lambda shown=shown, command=command: matches(  # type: ignore[misc]
                            command.output, rendered(shown.shown()).rstrip(), masked
                        ),
                        TIMEOUT,
                        command.text,
                    )
                except NeverHappened:
                    raise AssertionError(f"{command.text}\n{rendered(shown.shown())}") from None
            else:
                status, output = shell.run(command.text)
                assert status == 0, f"{command.text}\n{output}"
                assert matches(command.output, output.rstrip(), masked), f"{command.text}\n{output}"
    print(f"{page}: {heading}: as shown")


if __name__ == "__main__":
    main(*sys.argv[1:])
