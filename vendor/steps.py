"""What every step of the native build shares: one way to fail, to report and to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class StepFailed(Exception):
    """One way of getting the library did not work; the text is one line saying why. The next way may be tried."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output
        """What the command that failed wrote to standard error, where one did and there is no log of it."""


class Refused(Exception):
    """What is there must not be used; the text is one line with what to do. No other way is tried in its place."""


class ToolMissing(Refused):
    """A program is not installed that every machine can have; the text is its name, a need of packages.json."""


def say(line: str) -> None:
    """Report progress on standard error, where pip and make show or keep it; standard output stays machine-readable."""
    print(f"ngtcp2: {line}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout: float = 600,
) -> str:
    """Run a command to its end and return what it wrote to standard output.

    Args:
        command: Program and arguments; never a shell line.
        cwd: Folder to run in.
        env: The whole environment; ``None`` is the current one. The locale is always C, as answers are parsed.
        log: File that receives both output streams; the returned text is then empty.
        timeout: Seconds after which the command is killed.

    Raises:
        StepFailed: The program is missing, took too long or returned non-zero; names the last line it wrote.
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
    """The last line that is not empty, which is where most tools put their reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
