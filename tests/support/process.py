"""Starting programs under test: their output is kept, and they never outlive the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]

# Seconds a program gets to end by itself after SIGTERM. Only a failure takes so long, or a machine so busy that
# programs wait for a processor most of the time.
STOP_TIMEOUT = 30.0
# Seconds the kernel gets to end a program after SIGKILL. Only a bug in the kernel, or one in the test, needs more.
KILL_TIMEOUT = 10.0
# Characters of output shown in a failure message; the end of a log says most.
SHOWN_OUTPUT = 6000


class ProcessError(AssertionError):
    """A program ended too early, or did not end when asked; the text holds the end of its output."""


class Process:
    """A program that runs from ``__enter__`` to ``__exit__``, ended by its pid and always reaped.

    Standard output and standard error go to one nameless temporary file: no thread has to read a pipe, and a program
    that writes a lot never blocks. Used by one thread.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path = REPOSITORY,
    ) -> None:
        """Describe the program; nothing is started yet.

        Args:
            argv: Program and arguments.
            name: What failure messages call it; default: the program's file name.
            environment: Variables added to those of the test's own environment.
            directory: Working directory. The default lets ``python -m asport_sync`` find this checkout.
        """
        self.argv = [os.fspath(part) for part in argv]
        self.name = name or Path(self.argv[0]).name
        # Seconds the program gets to end by itself, in ``__exit__`` too.
        self.stop_timeout = STOP_TIMEOUT
        self._environment = {**os.environ, **(environment or {})}
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._final_output = ""

    def __enter__(self) -> Process:
        self._output = tempfile.TemporaryFile()  # closed by stop()
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._directory,
            )
        except BaseException:
            self._output.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except ProcessError:
            # The test has failed already, and that failure says more than this one.
            if error is None:
                raise

    @property
    def pid(self) -> int:
        """The process id, valid until ``stop()``."""
        return self._running().pid

    def output(self) -> str:
        """Everything the program has written so far."""
        if self._output.closed:
            return self._final_output
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for(self, pattern: str, timeout: float = 20.0) -> re.Match[str]:
        """Wait until the output matches ``pattern`` (a regular expression, ``^`` and ``$`` match at each line).

        Raises:
            ProcessError: The program ended without writing it.
            NeverHappened: It still runs, but ``timeout`` seconds have passed.
        """
        expression = re.compile(pattern, re.MULTILINE)

        def look() -> re.Match[str] | None:
            ended = self._running().poll() is not None
            found = expression.search(self.output())
            if found is None and ended:
                raise ProcessError(f"{self.name} ended without writing /{pattern}/\n{self.description()}")
            return found

        found = wait_until(look, timeout, f"{self.name} writes /{pattern}/", detail=self.description)
        assert found is not None
        return found

    def check_running(self) -> None:
        """Raise ProcessError if the program has ended."""
        if self._running().poll() is not None:
            raise ProcessError(f"{self.name} ended too early\n{self.description()}")

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself, and return its exit status (negative: the signal that ended it).

        Raises:
            ProcessError: It still runs after ``timeout`` seconds.
        """
        try:
            return self._running().wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} still runs after {timeout:g} s\n{self.description()}") from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; a program that has ended already is left alone."""
        self._running().send_signal(number)

    def stop(self, timeout: float | None = None) -> int:
        """Ask the program to end (SIGTERM), reap it and return its exit status. May be called again.

        Args:
            timeout: Seconds it gets; default: ``stop_timeout``.

        Raises:
            ProcessError: It did not end in time; it has been killed and reaped by then.
        """
        timeout = self.stop_timeout if timeout is None else timeout
        process = self._running()
        obedient, lived = True, ""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                obedient, lived = False, _processor_time(process.pid)
                self.kill()
        self._close_output()
        if not obedient:
            raise ProcessError(f"{self.name} ignored SIGTERM for {timeout:g} s{lived}\n{self.description()}")
        return process.wait(KILL_TIMEOUT)

    def kill(self) -> None:
        """End the program at once (SIGKILL) and reap it."""
        process = self._running()
        process.kill()
        process.wait(KILL_TIMEOUT)

    def description(self) -> str:
        """Command line, state and the end of the output, for failure messages."""
        status = self._running().poll()
        state = f"running{_processor_time(self.pid)}" if status is None else f"ended with status {status}"
        output = self.output()
        cut = "...\n" if len(output) > SHOWN_OUTPUT else ""
        return f"{self.name}: {' '.join(self.argv)}\n({state})\n{cut}{output[-SHOWN_OUTPUT:]}"

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def _close_output(self) -> None:
        if not self._output.closed:
            self._final_output = self.output()
            self._output.close()


def _processor_time(pid: int) -> str:
    """Return how long a program's threads have run, and waited for a processor; empty where the kernel does not say.

    A program that is late because the machine is busy has waited about as long as it is late.
    """
    ran = waited = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            numbers = (task / "schedstat").read_text().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except OSError:  # without CONFIG_SCHED_INFO, or it has just ended
        return ""
    return f"; its threads have run {ran / 1e9:.1f} s and waited {waited / 1e9:.1f} s for a processor"
