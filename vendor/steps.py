"""Shared by all steps of the native build: how to fail, to report and to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class StepFailed(Exception):
    """One way of getting the library failed; the text is one line saying why. The next way may be tried."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output
        """Standard error of the command that failed; empty if there was none or its output is in a log."""


class Refused(Exception):
    """Something exists that must not be used; the text is one line saying what to do. No other way is tried."""


class ToolMissing(Refused):
    """A program that is available for every machine is not installed; the text is its name, as in packages.json."""


def say(line: str) -> None:
    """Report progress on standard error, which pip and make show or keep; standard output stays machine-readable."""
    print(f"ngtcp2: {line}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout: float = 600,
) -> str:
    """Run a command to completion and return its standard output.

    Args:
        command: Program and arguments; never a shell line.
        cwd: Folder to run in.
        env: The whole environment; ``None``: the current one. The locale is always C, as the output is parsed.
        log: File that receives both output streams; the returned text is then empty.
        timeout: Seconds after which the command is killed.

    Raises:
        StepFailed: The program is missing, took too long or returned non-zero; quotes its last line of output or names
            the log.
    """
    environment = {**(os.environ if env is None else env), "LC_ALL": "C"}
    name = Path(command[0]).name
    try:
        if log is None:
            done = subprocess.run(
                command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout
            )
            output, last = done.stdout, last_line(done.stderr) or last_line(done.stdout)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as stream:
                stream.write(f"$ {' '.join(command)}\n")
                stream.flush()
                done = subprocess.run(
                    command,
                    cwd=cwd,
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=timeout,
                )
            output, last = "", f"see {log}"
    except FileNotFoundError as error:
        raise StepFailed(f"{name} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"{name} took longer than {timeout:.0f} s") from error
    if done.returncode != 0:
        problem = f"{name} failed: {last}" if last else f"{name} failed with status {done.returncode}"
        raise StepFailed(problem, done.stderr or "")
    return output


def last_line(text: str) -> str:
    """Return the last non-empty line, where most tools put the reason of a failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
