"""Pages whose commands can be typed: read from Markdown, executed by a shell, and compared with what they print.

A page has two kinds of blocks, and nothing else in fences or indented as code:

- ``yaml``: a file. Its first line is a comment with the file's name.
- ``console``: commands behind ``$``, with continuation lines behind ``>``, each followed by its output. Standard output
  and standard error are one. ``...`` on a line of its own is any number of lines, within a line any text.

A command has to exit with status 0, unless the next one is ``echo $?``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

COMMAND_TIMEOUT = 60.0  # seconds until a command has ended; only a failure waits so long
END_TIMEOUT = 10.0  # seconds that the processes of a shell have to end after SIGTERM
ANY = "..."


@dataclass(frozen=True)
class File:
    """A block that is a file.

    Attributes:
        line: Where it is on the page.
        name: Its name, relative to the working directory.
        text: Its content, with the comment that names it.
    """

    line: int
    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command, and what it prints.

    Attributes:
        line: Where it is on the page.
        text: What is typed.
        output: What the page shows below it.
    """

    line: int
    text: str
    output: str


class PageError(AssertionError):
    """A page with something that is not executed."""


def parts_of(text: str) -> Iterator[File | Command]:
    """The files and commands of a page, in its order.

    Raises:
        PageError: There is a block of another kind.
    """
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith(("    ", "\t", "~~~")) or (line.lstrip().startswith("```") and not line.startswith("```")):
            raise PageError(f"line {number}: only fenced blocks that begin at the margin are executed")
        if not line.startswith("```"):
            continue
        first = number
        while number < len(lines) and not lines[number].startswith("```"):
            number += 1
        if number == len(lines):
            raise PageError(f"line {first}: the block has no end")
        block = lines[first:number]
        number += 1
        if line == "```yaml":
            yield _file(first + 1, block)
        elif line == "```console":
            yield from _commands(first + 1, block)
        else:
            raise PageError(f"line {first}: {line!r} is neither a file (yaml) nor commands (console)")


def _file(line: int, block: list[str]) -> File:
    named = re.fullmatch(r"# ([\w.-]+)", block[0]) if block else None
    if named is None:
        raise PageError(f"line {line}: the first line of a file is a comment with its name, and nothing else")
    return File(line, named[1], "\n".join([*block, ""]))


def _commands(line: int, block: list[str]) -> Iterator[Command]:
    if not block or not block[0].startswith("$ "):
        raise PageError(f"line {line}: commands begin with '$ '")
    starts = [number for number, each in enumerate(block) if each.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(block)], strict=True):
        first, *rest = block[start:end]
        typed = [first.removeprefix("$ ")]
        while rest and rest[0].startswith("> "):
            typed.append(rest.pop(0).removeprefix("> "))
        yield Command(line + start, "\n".join(typed), "\n".join(rest))


def matches(expected: str, output: str, masked: Callable[[str], str] = str) -> bool:
    """Whether an output is what a page shows.

    Args:
        expected: What the page shows.
        output: What a command has printed.
        masked: Replaces what varies, in a line of either.
    """
    pattern = ""
    for line in expected.splitlines():
        if line == ANY:
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in _plain(masked(line)).split(ANY)) + r"\n"
    text = "".join(f"{_plain(masked(line))}\n" for line in output.splitlines())
    return re.fullmatch(pattern, text) is not None


def _plain(line: str) -> str:
    """A line without what aligns columns."""
    return re.sub(r" {2,}", "  ", line).rstrip()


class Shell:
    """A bash that executes one command after the other. All that it starts ends with it. Used by one thread."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Describe it; nothing is started yet.

        Args:
            directory: Working directory at the beginning.
            environment: All variables that it has.
        """
        self._directory = directory
        self._environment = dict(environment)
        self._mark = secrets.token_hex(16)
        self._status = 0

    def __enter__(self) -> Shell:
        # A process group of its own, which can be ended as a whole.
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            env=self._environment,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        deadline = time.monotonic() + END_TIMEOUT
        self._signal_group(signal.SIGTERM)
        while time.monotonic() < deadline and self._signal_group(0):
            self._process.poll()
            time.sleep(0.05)
        self._signal_group(signal.SIGKILL)
        self._process.wait(END_TIMEOUT)
        self._process.stdout.close()

    def _signal_group(self, number: int) -> bool:
        """Signals all processes; returns whether there are any."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            return True
        return False

    def run(self, command: str) -> tuple[int, str]:
        """Executes a command; returns its exit status and output."""
        assert self._process.stdin is not None
        # ``eval``, so that it has its own input and not what follows here; ``exit`` gives it the previous status.
        script = f"(exit {self._status}); eval {shlex.quote(command)} </dev/null\nprintf '\\n{self._mark} %d\\n' $?\n"
        self._process.stdin.write(script.encode())
        self._process.stdin.flush()
        output, status = self._read()
        self._status = status
        return status, output

    def _read(self) -> tuple[str, int]:
        assert self._process.stdout is not None
        end = re.compile(rf"\n{self._mark} (\d+)\n".encode())
        deadline = time.monotonic() + COMMAND_TIMEOUT
        read = b""
        while (found := end.search(read)) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"still runs after {COMMAND_TIMEOUT:g} s; its output: {read.decode()!r}")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise AssertionError(f"the shell has ended; its last output: {read.decode()!r}")
            read += piece
        return read[: found.start()].decode("utf-8", "replace"), int(found[1])
