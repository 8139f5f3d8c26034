"""The table that ``asport-sync status`` prints."""

from __future__ import annotations

import dataclasses
import time

import pytest

from asport_sync.cli.table import bit_rate, columns, duration, size, text_of
from asport_sync.host.stats import Side
from tests.control.fake import ROW, FakeOperations


def test_a_client() -> None:
    operations = FakeOperations()
    operations.drops = {"packet_drop_socket": 3}
    before, _ = operations.snapshot()
    operations.tunnels = (dataclasses.replace(ROW, payload_sent=(1 << 30) + 125_000),)
    operations.time += 1
    text = text_of(operations.snapshot()[0], before)
    head, _, titles, row, *rest = text.splitlines()
    assert head == "client 1.2.3, pid 42, up 7s: everything is fine"
    cells = dict(zip(titles.split(), row.replace(" MiB", "MiB").replace(" GiB", "GiB").split(), strict=False))
    assert (cells["NAME"], cells["USER"], cells["PUBLIC"]) == ("web", "00112233", "192.0.2.1:30001")
    assert (cells["LOCAL"], cells["STATE"]) == ("127.0.0.1:8080", "public")
    for part in ("5/1000", "1 MiB", "1.0 GiB", "0 bit", "1 Mbit", "12.3 ms", "0.15 %", "121 KiB", "1452"):
        assert part in row, part
    assert (cells["NETWORK"], "BALANCE" in cells) == ("both", False)
    assert rest == [
        "",
        "latest errors:",
        "  web: no answer from the server",
        "",
        "dropped or refused since the start:",
        "  packet_drop_socket: 3",
    ]


def test_a_server() -> None:
    operations = FakeOperations(
        Side.SERVER, (dataclasses.replace(ROW, name="", local=None, error=None, state="public"),)
    )
    titles = text_of(operations.snapshot()[0]).splitlines()[2].split()
    assert titles[:5] == ["USER", "PUBLIC", "CLIENT", "NETWORK", "STATE"]


def test_clients_that_share_a_port() -> None:
    shared = dataclasses.replace(ROW, name="", network="tcp and udp native", balance="round_robin", peer="192.0.2.7:4")
    rows = (shared, dataclasses.replace(shared, id="other", balance=None, peer="192.0.2.8:4"))
    _, _, titles, *lines = text_of(FakeOperations(Side.SERVER, rows).snapshot()[0]).splitlines()
    place = titles.index("BALANCE")
    assert [line[place:].split()[0] for line in lines[:2]] == ["round_robin", "-"]
    assert "192.0.2.7:4  tcp and udp native  round_robin  public" in lines[0]


def test_how_long_ago_an_error_was() -> None:
    row = dataclasses.replace(ROW, error_at=time.time() - 125)
    assert "  web: no answer from the server (2m 5s ago)" in text_of(FakeOperations(tunnels=(row,)).snapshot()[0])


def test_what_is_not_running() -> None:
    operations = FakeOperations()
    operations.running = False
    assert text_of(operations.snapshot()[0]) == "client 1.2.3, pid 42: not running"


def test_no_terminal_is_commanded() -> None:
    operations = FakeOperations(tunnels=(dataclasses.replace(ROW, name="\x1b[2J", error="a\nb\x9b"),))
    assert text_of(operations.snapshot()[0]).isprintable() is False  # line breaks
    assert "\x1b" not in text_of(operations.snapshot()[0])
    assert "a\\x0ab\\x9b" in text_of(operations.snapshot()[0])


def test_columns() -> None:
    assert columns([["A", "LONG"], ["longer", "b"]]) == ["A       LONG", "longer  b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (150 << 10, "150 KiB"),
     (1 << 60, "1048576 TiB")],
)  # fmt: skip
def test_sizes(value: int | None, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0 bit"), (1500.0, "1.5 kbit"), (2e9, "2 Gbit")])
def test_rates(value: float | None, text: str) -> None:
    assert bit_rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90000, "1d 1h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
