"""A terminal that a program under test runs in: what it shows, and what is typed there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.process import KILL_TIMEOUT, REPOSITORY
from tests.support.waiting import wait_until

COLUMNS = 80


class Terminal:
    """A pseudoterminal and the program that it controls, from ``__enter__`` to ``__exit__``. Used by one thread."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path = REPOSITORY,
        columns: int = COLUMNS,
    ) -> None:
        """Describe it; nothing is started yet.

        Args:
            argv: Program and arguments.
            environment: Variables added to those of the test's own environment.
            directory: Working directory.
            columns: Width of the terminal.
        """
        self._argv = list(argv)
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._environment = {**own, "TERM": "xterm", **(environment or {})}
        self._directory = directory
        self._columns = columns
        self._shown = b""

    def __enter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self._columns, 0, 0))
            self._process = subprocess.Popen(
                self._argv,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(KILL_TIMEOUT)
        self.hang_up()

    def shown(self) -> str:
        """Everything that was written to the terminal so far."""
        with contextlib.suppress(OSError):  # the program has ended
            while self._master >= 0 and select.select([self._master], [], [], 0)[0]:
                piece = os.read(self._master, 65536)
                if not piece:
                    break
                self._shown += piece
        return self._shown.decode("utf-8", "replace")

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until what was written matches ``pattern``."""
        found = wait_until(
            lambda: re.search(pattern, self.shown()), timeout, f"the terminal shows /{pattern}/", detail=self.shown
        )
        assert found is not None
        return found

    def type(self, text: str) -> None:
        """Type something; the character U+0003 is Ctrl-C."""
        os.write(self._master, text.encode())

    def hang_up(self) -> None:
        """Close the terminal. Idempotent."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself, and return its exit status."""
        wait_until(lambda: self.shown() and self._process.poll() is not None, timeout, "the program ends")
        return self._process.wait()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def rendered(shown: str) -> str:
    """What a terminal still shows of all that was written to it: not what a live line has replaced."""
    lines = [line.rpartition("\x1b[K")[2].strip("\r") for line in shown.split("\r\n")]
    return "".join(f"{line}\n" for line in lines if line)
