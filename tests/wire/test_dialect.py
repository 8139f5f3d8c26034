"""The mode byte, in every dialect and for every value."""

from __future__ import annotations

import pytest

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import (
    Dialect,
    ForwardMode,
    UdpMode,
    decode_mode,
    dialect_of_hint,
    encode_mode,
    hint,
    meanings,
)

NOTHING = ForwardMode(False, None)
TCP = ForwardMode(True, None)
UDP_NATIVE = ForwardMode(False, UdpMode.NATIVE)
UDP_QUIC = ForwardMode(False, UdpMode.QUIC)
BOTH_NATIVE = ForwardMode(True, UdpMode.NATIVE)
BOTH_QUIC = ForwardMode(True, UdpMode.QUIC)

DRAFT = [TCP, UDP_NATIVE, UDP_QUIC, BOTH_NATIVE, BOTH_QUIC, None, None, None]
FLAGS = [NOTHING, TCP, UDP_NATIVE, BOTH_NATIVE, NOTHING, TCP, UDP_QUIC, BOTH_QUIC]


@pytest.mark.parametrize("byte", range(8))
def test_draft(byte: int) -> None:
    expected = DRAFT[byte]
    if expected is None:
        with pytest.raises(RemoteProtocolError, match=f"mode is {byte}, expected 0 to 4 in dialect 'draft'"):
            decode_mode(byte, Dialect.DRAFT)
    else:
        assert decode_mode(byte, Dialect.DRAFT) == (expected, Dialect.DRAFT)
        assert encode_mode(expected, Dialect.DRAFT) == byte


@pytest.mark.parametrize("byte", range(8))
def test_flags(byte: int) -> None:
    assert decode_mode(byte, Dialect.FLAGS) == (FLAGS[byte], Dialect.FLAGS)


@pytest.mark.parametrize(("mode", "byte"), [(TCP, 1), (UDP_NATIVE, 2), (BOTH_NATIVE, 3), (UDP_QUIC, 6), (BOTH_QUIC, 7)])
def test_flags_are_written_without_stray_bits(mode: ForwardMode, byte: int) -> None:
    assert encode_mode(mode, Dialect.FLAGS) == byte


@pytest.mark.parametrize("ambiguous", [Dialect.DRAFT, Dialect.FLAGS])
@pytest.mark.parametrize("byte", range(8))
def test_auto_takes_the_dialect_the_byte_belongs_to(byte: int, ambiguous: Dialect) -> None:
    only = {0: Dialect.DRAFT, 4: Dialect.DRAFT, 5: Dialect.FLAGS, 6: Dialect.FLAGS, 7: Dialect.FLAGS}
    used = only.get(byte, ambiguous)
    expected = (DRAFT if used is Dialect.DRAFT else FLAGS)[byte]
    assert decode_mode(byte, Dialect.AUTO, ambiguous) == (expected, used)


def test_auto_takes_ambiguous_bytes_for_draft_unless_told() -> None:
    assert decode_mode(1, Dialect.AUTO) == (UDP_NATIVE, Dialect.DRAFT)
    assert decode_mode(2, Dialect.AUTO) == (UDP_QUIC, Dialect.DRAFT)


def test_ambiguous_plays_no_part_outside_auto() -> None:
    assert decode_mode(1, Dialect.DRAFT, Dialect.FLAGS) == (UDP_NATIVE, Dialect.DRAFT)
    assert decode_mode(1, Dialect.FLAGS, Dialect.DRAFT) == (TCP, Dialect.FLAGS)


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("byte", [-1, 8, 9, 128, 255])
def test_no_dialect_knows_more_than_7(byte: int, dialect: Dialect) -> None:
    with pytest.raises(RemoteProtocolError, match=f"mode is {byte}, expected 0 to 7"):
        decode_mode(byte, dialect)


def test_the_ambiguous_dialect_must_be_one_of_the_two() -> None:
    with pytest.raises(LocalProtocolError, match="expected 'draft' or 'flags'"):
        decode_mode(3, Dialect.AUTO, Dialect.AUTO)


@pytest.mark.parametrize("dialect", Dialect)
def test_asking_for_no_network_is_refused(dialect: Dialect) -> None:
    with pytest.raises(LocalProtocolError, match="no network"):
        encode_mode(NOTHING, dialect)


def test_auto_writes_only_what_both_dialects_read_alike() -> None:
    assert encode_mode(BOTH_NATIVE, Dialect.AUTO) == 3
    for mode in (TCP, UDP_NATIVE, UDP_QUIC, BOTH_QUIC):
        with pytest.raises(LocalProtocolError, match="expected the server's dialect, not 'auto'"):
            encode_mode(mode, Dialect.AUTO)


@pytest.mark.parametrize(
    ("mode", "text"),
    [(NOTHING, "no network"), (TCP, "tcp"), (UDP_QUIC, "udp quic"), (BOTH_NATIVE, "tcp and udp native")],
)
def test_mode_as_text(mode: ForwardMode, text: str) -> None:
    assert str(mode) == text


def test_words_of_the_configuration() -> None:
    assert [dialect.value for dialect in Dialect] == ["draft", "flags", "auto"]
    assert [mode.value for mode in UdpMode] == ["native", "quic"]


@pytest.mark.parametrize("byte", range(8))
def test_a_byte_has_two_meanings_only_where_the_dialects_differ(byte: int) -> None:
    found = meanings(byte, Dialect.AUTO)
    if byte in (1, 2):
        assert found == ((FLAGS[byte], Dialect.FLAGS), (DRAFT[byte], Dialect.DRAFT))
    else:
        assert found == (decode_mode(byte, Dialect.AUTO),)
    for settled in (Dialect.DRAFT, Dialect.FLAGS):
        assert meanings(byte, Dialect.AUTO, settled) == (decode_mode(byte, Dialect.AUTO, settled),)


@pytest.mark.parametrize("byte", [1, 2])
@pytest.mark.parametrize("dialect", [Dialect.DRAFT, Dialect.FLAGS])
def test_a_dialect_that_is_configured_has_one_meaning(byte: int, dialect: Dialect) -> None:
    for ambiguous in (None, Dialect.DRAFT, Dialect.FLAGS):
        assert meanings(byte, dialect, ambiguous) == (decode_mode(byte, dialect),)


@pytest.mark.parametrize("dialect", Dialect)
def test_a_byte_that_means_nothing_has_no_meanings(dialect: Dialect) -> None:
    with pytest.raises(RemoteProtocolError):
        meanings(8, dialect)


@pytest.mark.parametrize("dialect", [Dialect.DRAFT, Dialect.FLAGS])
@pytest.mark.parametrize("byte", range(8))
def test_a_hint_is_given_where_it_is_needed_and_says_the_dialect(byte: int, dialect: Dialect) -> None:
    given = hint(byte, dialect)
    assert len(given) == (1 if byte in (1, 2) else 0)
    assert dialect_of_hint(given + b"and more") == (dialect if given else None)


def test_what_is_no_hint_is_none() -> None:
    assert hint(1, Dialect.AUTO) == b""
    assert [dialect_of_hint(behind) for behind in (b"", b"\x00", b"\x03", b"\xff\x01")] == [None] * 4


def test_a_meaning_names_its_dialect() -> None:
    assert [str(meaning) for meaning in meanings(2, Dialect.AUTO)] == [
        "udp native (dialect 'flags')",
        "udp quic (dialect 'draft')",
    ]
