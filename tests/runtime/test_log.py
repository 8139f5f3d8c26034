"""The commands' log: lines leave through a thread of their own, whatever becomes of who reads them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator

import pytest

from asport_sync.runtime.log import DescriptorHandler, Formatter
from tests.support.waiting import wait_until

TIMEOUT = 10.0
SMALLEST_PIPE = 4096  # bytes: a page


def shown(text: str, *arguments: object, **fields: object) -> list[str]:
    """What the formatter makes of a record, without time and level."""
    record = logging.makeLogRecord(
        {"name": "asport_sync.part", "levelname": "INFO", "msg": text, "args": arguments, **fields}
    )
    return [line.split(" ", 2)[2] for line in Formatter().format(record).split("\n")]


class Pipe:
    """A pipe that holds little, with a log into it."""

    def __init__(self, max_lines: int) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
        self.handler = DescriptorHandler(self.writer, max_lines)
        self.handler.setFormatter(logging.Formatter("%(message)s"))
        self.log = logging.Logger("test")
        self.log.addHandler(self.handler)

    def fill(self) -> bytes:
        """Leaves no room in it; returns what was written."""
        written = b""
        os.set_blocking(self.writer, False)
        for piece in (b"x" * SMALLEST_PIPE, b"x"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    written += piece[: os.write(self.writer, piece)]
        os.set_blocking(self.writer, True)
        return written

    def read(self, size: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < size:
            data += os.read(self.reader, size - len(data))
        return data

    def read_line(self) -> str:
        data = b""
        while not data.endswith(b"\n"):
            data += self.read(1)
        return data[:-1].decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(max_lines=10)
    yield made
    os.close(made.reader)  # lets a thread go that is still writing
    made.handler.close()
    made.handler._thread.join(TIMEOUT)
    os.close(made.writer)


def test_lines_leave_in_order(pipe: Pipe) -> None:
    for number in range(10):
        pipe.log.warning("line %d", number)
        assert pipe.read_line() == f"line {number}"


def test_a_line_that_cannot_be_formatted_is_told_in_one_and_nobody_waits(
    pipe: Pipe, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe.log.info("%d connections", "many")
    line = pipe.read_line()
    assert re.match(r"cannot format the log line of .*test_log\.py:\d+: TypeError\(", line), line
    assert capfd.readouterr().err == ""  # written at once, it would wait for who reads stderr


def test_nobody_waits_for_a_reader_and_what_is_missing_is_told(pipe: Pipe) -> None:
    filling = pipe.fill()
    for number in range(100):
        pipe.log.warning("line %d", number)
    pipe.read(len(filling))
    number = written = 0
    while number < 100:  # one of the last may find room, if the thread has taken the first only then
        line = pipe.read_line()
        if dropped := re.match(r"(\d+) log lines dropped", line):
            number += int(dropped[1])
        else:
            assert line == f"line {number}"
            number, written = number + 1, written + 1
    assert number == 100
    assert 10 <= written <= 11  # those that may wait, and the one that is being written
    pipe.log.warning("goes on")
    assert pipe.read_line() == "goes on"


def test_the_end_does_not_wait_for_a_reader(pipe: Pipe) -> None:
    pipe.fill()
    pipe.log.warning("nobody will read this")
    pipe.handler.close()
    assert pipe.handler._thread.is_alive()  # still inside its write
    pipe.log.warning("nor this")


def test_the_end_waits_for_lines_that_leave(pipe: Pipe) -> None:
    for number in range(5):
        pipe.log.warning("line %d", number)
    pipe.handler.close()
    assert [pipe.read_line() for _ in range(5)] == [f"line {number}" for number in range(5)]


def test_a_reader_that_is_gone_is_no_error_and_costs_nothing(pipe: Pipe) -> None:
    reader, writer = pipe.reader, os.dup(pipe.writer)
    os.close(reader)
    pipe.log.warning("nobody is there")
    wait_until(lambda: pipe.handler._written == 1, TIMEOUT, "the line was tried")
    pipe.handler.close()
    wait_until(lambda: not pipe.handler._thread.is_alive(), TIMEOUT, "the thread has ended")
    pipe.reader = writer  # for the fixture to close


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    filling = pipe.fill()
    os.set_blocking(pipe.writer, False)
    pipe.log.warning("waits")
    pipe.read(len(filling))
    assert pipe.read_line() == "waits"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\tb\x00\x7f", r"a\x09b\x00\x7f"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\u061c\u200e\u200f", r"\u061c\u200e\u200f"),
        ("é 你好 😀 \\x41", "é 你好 😀 \\x41"),
    ],
)
def test_no_control_character_gets_through(text: str, escaped: str) -> None:
    assert shown("peer: %s", text) == [f"part: peer: {escaped}"]
    assert shown(text) == [f"part: {escaped}"]
    assert shown("failed", exc_info=(ValueError, ValueError(text), None)) == [
        "part: failed",
        f"part: ValueError: {escaped}",
    ]


def test_every_control_character_is_escaped() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    bidirectional = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    for line in shown("%s", every):
        for character in line:
            assert unicodedata.category(character) != "Cc", hex(ord(character))
            assert unicodedata.bidirectional(character) not in bidirectional, hex(ord(character))


def test_a_line_break_begins_a_line_that_says_where_it_is_from() -> None:
    for line_break in ("\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028"):
        assert shown("one%stwo", line_break) == ["part: one", "part: two"]
