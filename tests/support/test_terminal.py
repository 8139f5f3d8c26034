"""A terminal for programs under test shows what they write, and passes on what is typed."""

from __future__ import annotations

import sys

from tests.support.terminal import Terminal, rendered

TIMEOUT = 30.0
PROGRAM = """
import shutil, sys, time
print(sys.stdout.isatty(), shutil.get_terminal_size().columns)
print("a line", end="\\r\\x1b[Kanother line\\r", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_a_program_in_a_terminal() -> None:
    with Terminal([sys.executable, "-c", PROGRAM], columns=60) as terminal:
        terminal.wait_for("another line", TIMEOUT)
        assert rendered(terminal.shown()) == "True 60\nanother line\n"
        terminal.type("\x03")
        assert terminal.wait(TIMEOUT) == 7


def test_what_was_replaced_is_not_rendered() -> None:
    assert rendered("one\r\n\r\x1b[Ktwo\r\r\x1b[Kthree\r\n\r\x1b[Kfour\r") == "one\nthree\nfour\n"
