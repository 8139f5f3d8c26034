"""Single values: every accepted form, every refused one."""

from __future__ import annotations

import datetime
import ipaddress
import math
import os
import pickle
import re
import resource
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.config import (
    ClientConfig,
    HostPort,
    PortRange,
    PortSet,
    ServerConfig,
    bad_value,
    choices,
    durations,
    hosts,
    machine,
    paths,
    ports,
    rates,
    values,
    without_effect,
)
from asport_sync.config.bad_value import BadValue, KeyPath
from asport_sync.config.hosts import UnixSocket

from .samples import UUID, client, server

MINUTE, HOUR, DAY = 60, 3600, 86400
# Python refuses to write out a number of so many digits, also in an error text.
HUGE = pytest.param(16**5000, id="huge")


# --- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("  2 min  5 sec ", 125),
        ("1000000ns", 0.001),
        ("1000us", 0.001),
        ("1m", 60),
        ("1M", 30.44 * DAY),
        ("1y", 365.25 * DAY),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert durations.duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("units", "seconds"),
    [
        ("nanos nsec ns", 1e-9),
        ("usec us", 1e-6),
        ("millis msec ms", 1e-3),
        ("seconds second secs sec s", 1),
        ("minutes minute mins min m", MINUTE),
        ("hours hour hrs hr h", HOUR),
        ("days day d", DAY),
        ("weeks week w", 7 * DAY),
        ("months month M", 30.44 * DAY),
        ("years year y", 365.25 * DAY),
    ],
)
def test_every_unit_of_duration(units: str, seconds: float) -> None:
    count = 20_000_000 if seconds < 1 else 3
    for unit in units.split():
        assert durations.duration(f"{count}{unit}") == pytest.approx(count * seconds, rel=1e-12), unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10, r'with a unit, such as "10s", not 10'),
        ("10", r'with a unit, such as "10s", not "10"'),
        (0, r'with a unit, such as "10s", not 0'),
        (2.5, r"with a unit"),
        ("1.5s", r'whole numbers only, so "1500ms"'),
        ("10 parsecs", r'"parsecs" is not one of ns, us, ms'),
        ("10S", r'"S" is not one of'),
        ("", r'expected a duration, such as "10s"'),
        ("s", r"expected a duration"),
        ("10s 5", r"expected a duration"),
        ("-10s", r"expected a duration"),
        ("\u0663s", r"expected a duration"),
        ("0s", r"from 1ms to 100years"),
        ("999us", r"from 1ms to 100years"),
        ("101years", r"from 1ms to 100years"),
        ("99999999999999999999y", r"from 1ms to 100years"),
        (True, r"expected a duration"),
        (["10s"], r"not a list"),
        (None, r"not nothing"),
    ],
)
def test_refused_duration(value: object, text: str) -> None:
    with pytest.raises(BadValue, match=text):
        durations.duration(value)


@pytest.mark.parametrize("seconds", [8, 0.25, 1e9])
def test_a_program_gives_seconds(seconds: float) -> None:
    assert durations.duration(seconds, bare_seconds=True) == seconds


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, math.nan, math.inf, HUGE, True])
def test_a_program_gives_bad_seconds(seconds: float) -> None:
    with pytest.raises(BadValue):
        durations.duration(seconds, bare_seconds=True)


# --- plain values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [("a b", "a b"), (12345, "12345"), (True, "true"), (False, "false")])
def test_text(value: object, text: str) -> None:
    assert values.text(value) == text


@pytest.mark.parametrize("value", [1.0, None, [], {}, b"x", datetime.date(2024, 1, 1), "\ud800", HUGE])
def test_refused_text(value: object) -> None:
    with pytest.raises(BadValue):
        values.text(value)


@pytest.mark.parametrize("value", [True, 1, "true", "ON", "Yes", "1"])
def test_true(value: object) -> None:
    assert values.boolean(value) is True


@pytest.mark.parametrize("value", [False, 0, "false", "OFF", "No", "0"])
def test_false(value: object) -> None:
    assert values.boolean(value) is False


@pytest.mark.parametrize("value", [2, 1.0, "", "y", "enabled", None, []])
def test_refused_boolean(value: object) -> None:
    with pytest.raises(BadValue, match="expected true or false"):
        values.boolean(value)


@pytest.mark.parametrize(("value", "number"), [(5, 5), ("5", 5), ("+5", 5), (5.0, 5), (1, 1), (9, 9)])
def test_integer(value: object, number: int) -> None:
    assert values.integer(value, 1, 9) == number


@pytest.mark.parametrize("value", [0, 10, "0", 5.5, True, "5 ", "", "5x", "\u0665", None, [], math.inf, math.nan, HUGE])
def test_refused_integer(value: object) -> None:
    with pytest.raises(BadValue, match="expected a whole number from 1 to 9"):
        values.integer(value, 1, 9)


def test_a_size_with_a_unit_is_explained() -> None:
    with pytest.raises(BadValue, match='of bytes from 1 to 9, not "8MiB": no unit may follow the number'):
        values.integer("8MiB", 1, 9, "bytes")


def test_packet_size_is_cut_to_what_a_packet_can_hold() -> None:
    assert values.packet_size(65507) == 65507
    assert values.packet_size(65536) == 65507


@pytest.mark.parametrize(
    ("meanings", "words"),
    [
        (choices.NETWORKS, {"tcp": "tcp", "UDP": "udp", "Both": "both", "tcpudp": "both", "tcp_udp": "both"}),
        (choices.NETWORKS, {"tcp-udp": "both", "ALL": "both"}),
        (choices.UDP_FORWARD_MODES, {"native": "native", "QUIC": "quic"}),
        (choices.CONGESTION_CONTROLS, {"BBR": "bbr", "cubic": "cubic", "reno": "new_reno", "NewReno": "new_reno"}),
        (choices.CONGESTION_CONTROLS, {"new_reno": "new_reno"}),
        (choices.PROXY_PROTOCOLS, {"none": "none", "disable": "none", "Disabled": "none", "off": "none", "V1": "v1"}),
        (choices.PROXY_PROTOCOLS, {"v2": "v2"}),
        (choices.LOG_LEVELS, {"OFF": "off", "error": "error", "Warn": "warn", "info": "info", "debug": "debug"}),
        (choices.LOG_LEVELS, {"trace": "trace"}),
        (choices.DIALECTS, {"auto": "auto", "Draft": "draft", "flags": "flags"}),
    ],
)
def test_choice(meanings: dict[str, str], words: dict[str, str]) -> None:
    assert {word: choices.choice(word, meanings) for word in words} == words


@pytest.mark.parametrize("value", ["", "tcp ", "sctp", 1, True, None, ["v1"], 1.5])
def test_refused_choice(value: object) -> None:
    with pytest.raises(BadValue, match="expected one of tcp, udp, both, not"):
        choices.choice(value, choices.NETWORKS)


@pytest.mark.parametrize(
    ("value", "network"),
    [("tcp", "tcp"), (["tcp", "udp"], "both"), (["UDP", "TCP"], "both"), (["udp"], "udp"), (["both", "tcp"], "both")],
)
def test_networks(value: object, network: str) -> None:
    assert choices.networks(value) == network


@pytest.mark.parametrize(("value", "within"), [([], ()), (["tcp", "x"], (1,)), ([["tcp"]], (0,)), ({}, ())])
def test_refused_networks(value: object, within: KeyPath) -> None:
    with pytest.raises(BadValue) as caught:
        choices.networks(value)
    assert caught.value.within == within


def test_client_dialect() -> None:
    assert choices.client_dialect("FLAGS") == "flags"
    assert choices.client_dialect("draft") == "draft"
    with pytest.raises(BadValue, match='"draft" or "flags", not "auto"'):
        choices.client_dialect("auto")
    with pytest.raises(BadValue, match="expected one of"):
        choices.client_dialect("old")


@pytest.mark.parametrize(
    "text",
    [UUID, UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", f"URN:UUID:{UUID.upper()}"],
)
def test_uuid(text: str) -> None:
    assert values.identifier(text) == uuid.UUID(UUID)


def test_uuid_of_a_program_or_of_digits() -> None:
    assert values.identifier(uuid.UUID(UUID)) == uuid.UUID(UUID)
    assert values.identifier(12345678123456781234567812345678).hex == "12345678123456781234567812345678"


@pytest.mark.parametrize("text", ["", UUID[:-1], UUID + "0", "0-" + UUID[2:], f"{{{UUID}", 5, UUID + "\n", "hunter2"])
def test_refused_uuid(text: str) -> None:
    """The value isn't shown: a password may stand in its place."""
    with pytest.raises(BadValue) as caught:
        values.identifier(text)
    assert caught.value.problem == 'expected a UUID, such as "00112233-4455-6677-8899-aabbccddeeff"'


def test_protocols() -> None:
    assert values.protocols(["h3", "asport"]) == ("h3", "asport")
    assert values.protocols(("h3",)) == ("h3",)


@pytest.mark.parametrize(
    ("value", "within"),
    [("h3", ()), ([], ()), ([""], (0,)), (["h3", "x" * 256], (1,)), ([1.5], (0,)), ({}, ()), (None, ())],
)
def test_refused_protocols(value: object, within: KeyPath) -> None:
    with pytest.raises(BadValue) as caught:
        values.protocols(value)
    assert caught.value.within == within


def test_file_path() -> None:
    assert paths.file_path("a/b", Path("/etc")) == Path("/etc/a/b")
    assert paths.file_path("/a/b", Path("/etc")) == Path("/a/b")
    assert paths.file_path(Path("a"), None) == Path("a")


def test_path_of_a_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/unit")
    for directory in (None, Path("/etc")):
        assert paths.file_path("credential:alice.password", directory) == Path("/run/credentials/unit/alice.password")
    assert paths.file_path(Path("credential:x"), Path("/etc")) == Path("/etc/credential:x")
    for name in ("", ".", "..", "a/b", "/etc/passwd"):
        with pytest.raises(BadValue, match="expected the name of a credential"):
            paths.file_path(f"credential:{name}", None)


@pytest.mark.parametrize("place", [None, ""])
def test_a_credential_where_systemd_gave_none(monkeypatch: pytest.MonkeyPatch, place: str | None) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if place is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", place)
    with pytest.raises(BadValue, match="CREDENTIALS_DIRECTORY is not set"):
        paths.file_path("credential:alice.password", None)


@pytest.mark.parametrize("value", ["", "a\0b", None, [], 1.5])
def test_refused_file_path(value: object) -> None:
    with pytest.raises(BadValue):
        paths.file_path(value, None)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("example.org:443", "example.org", 443, "example.org:443"),
        ("Example.ORG.:1", "Example.ORG.", 1, "Example.ORG.:1"),
        ("my_host:65535", "my_host", 65535, "my_host:65535"),
        ("192.0.2.1:80", "192.0.2.1", 80, "192.0.2.1:80"),
        ("[2001:DB8::1]:80", "2001:db8::1", 80, "[2001:db8::1]:80"),
        ("2001:db8::1:80", "2001:db8::1", 80, "[2001:db8::1]:80"),
        (":::80", "::", 80, "[::]:80"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
        ("bücher.example:80", "xn--bcher-kva.example", 80, "xn--bcher-kva.example:80"),
    ],
)
def test_host_port(text: str, host: str, port: int, written: str) -> None:
    parsed = hosts.host_port(text)
    assert parsed == HostPort(host, port)
    assert str(parsed) == written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("example.org", 'expected "host:port"'),
        (":443", 'expected "host:port"'),
        ("[2001:db8::1]", "the port is missing"),
        ("2001:db8::1", "the port is missing"),
        ("example.org:", '"" is not a port'),
        ("example.org:https", '"https" is not a port from 1 to 65535'),
        ("example.org:65536", "is not a port"),
        ("example.org:0", "port 0 cannot be connected to"),
        ("example.org:-1", "is not a port"),
        ("example.org: 1", "is not a port"),
        ("https://example.org:443", "not the URL"),
        ("[::1:443", "is not an IPv6 address"),
        ("[example.org]:443", "is not an IPv6 address"),
        ("a:b:443", "is not an IPv6 address"),
        ("256.0.0.1:1", "is not an IPv4 address"),
        ("10.1:1", "is not an IPv4 address"),
        ("two words:1", "is neither a DNS name nor an IP address"),
        ("-x:1", "is neither"),
        ("a..b:1", "is neither"),
        ("x" * 64 + ":1", "is neither"),
        ("x." * 130 + ":1", "is neither"),
        ("ü" * 300 + ":1", "is neither"),
        ("ü" * 70 + ":1", "is not a DNS name"),
        (443, "not 443"),
        (None, "not nothing"),
        (("example.org", 70000), "from 0 to 65535"),
    ],
)
def test_refused_host_port(value: object, text: str) -> None:
    with pytest.raises(BadValue, match=text):
        hosts.host_port(value)


def test_host_port_of_a_program() -> None:
    assert hosts.host_port(("::1", 80)) == HostPort("::1", 80)
    assert hosts.host_port(HostPort("h", 80)) == HostPort("h", 80)


def test_ip_port_takes_port_0_but_no_name() -> None:
    assert hosts.ip_port("[::]:443") == HostPort("::", 443)
    assert hosts.ip_port("127.0.0.1:0") == HostPort("127.0.0.1", 0)
    assert hosts.ip_port("127.0.0.1:0").ip == ipaddress.ip_address("127.0.0.1")
    with pytest.raises(BadValue, match='"localhost" is a name'):
        hosts.ip_port("localhost:443")


@pytest.mark.parametrize(
    ("value", "addresses", "written"),
    [
        ("localhost:22", [HostPort("localhost", 22)], "localhost:22"),
        (("::1", 22), [HostPort("::1", 22)], "[::1]:22"),
        (8080, [HostPort("127.0.0.1", 8080), HostPort("::1", 8080)], "localhost:8080"),
        ("8080", [HostPort("127.0.0.1", 8080), HostPort("::1", 8080)], "localhost:8080"),
        (["10.0.0.1:80", "b:81"], [HostPort("10.0.0.1", 80), HostPort("b", 81)], "10.0.0.1:80, b:81"),
        (["a:1", ("b", 2), "a:1"], [HostPort("a", 1), HostPort("b", 2)], "a:1, b:2"),
        (
            ["a:1", 2, "127.0.0.1:3"],
            [HostPort("a", 1), HostPort("127.0.0.1", 2), HostPort("::1", 2), HostPort("127.0.0.1", 3)],
            "a:1, localhost:2, 127.0.0.1:3",
        ),
        ("unix:/run/app.sock", [UnixSocket("/run/app.sock")], "unix:/run/app.sock"),
        ("unix:app.sock", [UnixSocket("/etc/asport/app.sock")], "unix:/etc/asport/app.sock"),
        ("unix:./@app", [UnixSocket("/etc/asport/@app")], "unix:/etc/asport/@app"),
        ("unix:@app", [UnixSocket("@app")], "unix:@app"),
        (f"unix:/{106 * 'x'}", [UnixSocket(f"/{106 * 'x'}")], f"unix:/{106 * 'x'}"),
    ],
)
def test_local(value: object, addresses: list[object], written: str) -> None:
    parsed = hosts.local(value, Path("/etc/asport"))
    assert list(parsed.addresses) == addresses
    assert str(parsed) == written
    assert hosts.local(parsed) is parsed


def test_a_relative_unix_socket_of_a_program_stays_relative() -> None:
    assert hosts.local("unix:app.sock").addresses == (UnixSocket("app.sock"),)


def test_the_first_host_of_local_is_an_attribute() -> None:
    local = hosts.local(["10.0.0.1:80", "b:81"])
    assert (local.host, local.port, local.is_unix) == ("10.0.0.1", 80, False)
    unix = hosts.local("unix:@app")
    assert unix.is_unix
    assert not hasattr(unix, "host")
    assert not hasattr(unix, "port")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("example.org", 'expected "host:port"'),
        (0, "from 1 to 65535, not 0"),
        ("70000", "from 1 to 65535, not 70000"),
        (True, 'a port, "unix:/path", or a list of hosts or ports, not true'),
        (80.5, "not 80.5"),
        ({}, "not a table"),
        ([], "not an empty list"),
        (["a:1", "b"], 'expected "host:port"'),
        ([["a:1"]], "not a list"),
        (["unix:/run/app.sock", "a:1"], "a unix socket cannot be one of several addresses"),
        ("unix:", "expected the path of a socket"),
        ("unix:@", "expected the path of a socket"),
        ("unix:/a\0b", "expected the path of a socket"),
        (f"unix:/{107 * 'x'}", "the path of a socket has at most 107 bytes on this system, not 108"),
        (f"unix:/{54 * 'ä'}", "the path of a socket has at most 107 bytes on this system, not 109"),
        (f"unix:@{107 * 'x'}", "the name of an abstract socket has at most 107 bytes on this system, not 108"),
    ],
)
def test_refused_local(value: object, text: str) -> None:
    with pytest.raises(BadValue, match=text):
        hosts.local(value)


def test_ip() -> None:
    assert hosts.ip("::") == hosts.ip("[::]") == ipaddress.IPv6Address("::")
    assert hosts.ip("192.0.2.1") == ipaddress.IPv4Address("192.0.2.1")
    assert hosts.ip(ipaddress.IPv4Address("192.0.2.1")) == ipaddress.IPv4Address("192.0.2.1")


@pytest.mark.parametrize("value", ["[192.0.2.1]", "localhost", "", "[::", "1.2.3", 4, 1.5, None])
def test_refused_ip(value: object) -> None:
    with pytest.raises(BadValue):
        hosts.ip(value)


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (2024, (2024, 2024)),
        ([2000, 3000], (2000, 3000)),
        ((2000, 3000), (2000, 3000)),
        ({"start": 1, "end": 65535}, (1, 65535)),
        (PortRange(5, 5), (5, 5)),
    ],
)
def test_port_range(value: object, found: tuple[int, int]) -> None:
    assert ports.port_range(value) == found


@pytest.mark.parametrize(
    ("value", "text", "within"),
    [
        ("2024", "write it without quotes", ()),
        ("2000-3000", r"expected a port, \[start, end\] or", ()),
        (0, "expected a port from 1 to 65535, not 0", ()),
        (65536, "expected a port from 1 to 65535", ()),
        (True, "expected a port from 1 to 65535, not true", ()),
        (20.0, "expected a port", ()),
        ([1], "a range has two ports, not 1", ()),
        ([1, 2, 3], "a range has two ports, not 3", ()),
        ([1, "2"], "expected a port from 1 to 65535", (1,)),
        ([3, 2], "starts at 3, above its end 2", ()),
        ({"start": 1}, "end is missing", ()),
        ({"start": 1, "end": 0}, "expected a port from", ("end",)),
        ({"start": 1, "end": 2, "step": 1}, "unknown key", ("step",)),
        (None, "expected a port", ()),
    ],
)
def test_refused_port_range(value: object, text: str, within: KeyPath) -> None:
    with pytest.raises(BadValue, match=text) as caught:
        ports.port_range(value)
    assert caught.value.within == within


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10, '"10mbit"'),
        (10.0, '"10mbit"'),
        ("10", 'write "10mbit" for bits per second, or "10mbyte"'),
        ("10M", 'write "10mbit" for bits per second, or "10mbyte"'),
        ("10Kbps", 'write "10kbit" for bits per second, or "10kbyte"'),
        ("10mbit/s", 'write "10mbit" for bits per second'),
        ("1.5mbit", '"1500kbit" for 1.5 Mbit/s'),
        ("7kbit", "from 8kbit to 100gbit"),
        ("0kbit", "from 8kbit to 100gbit"),
        ("101gbit", "from 8kbit to 100gbit"),
        ("mbit", "expected a rate"),
        ("-1mbit", "expected a rate"),
        (True, "expected a rate"),
        (None, "expected a rate"),
    ],
)
def test_refused_rate(value: object, text: str) -> None:
    with pytest.raises(BadValue, match=re.escape(text)) as caught:
        rates.bandwidth({"out": value})
    assert caught.value.within == ("out",)


@pytest.mark.parametrize("written", ["8kbit", "64kbit", "1500kbit", "10mbit", "1gbit", "100gbit", "off"])
def test_rates_are_written_as_they_are_read(written: str) -> None:
    assert rates.written_rate(rates.rate(written)) == written
    assert str(rates.bandwidth({"in": written, "out": "1mbyte"})) == f"in {written}, out 8mbit"


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (2024, [(2024, 2024)]),
        ({"start": 1000, "end": 2000}, [(1000, 2000)]),
        ([1000, 2000], [(1000, 1000), (2000, 2000)]),
        ([[1000, 2000]], [(1000, 2000)]),
        ([(1000, 2000), 5], [(5, 5), (1000, 2000)]),
        ([{"start": 7, "end": 9}, 10, [1, 3]], [(1, 3), (7, 10)]),
        ([], []),
        (PortSet([(3, 4)]), [(3, 4)]),
    ],
)
def test_port_set(value: object, ranges: list[tuple[int, int]]) -> None:
    assert list(ports.port_set(value).ranges) == ranges


@pytest.mark.parametrize(
    ("value", "text", "within"),
    [
        ("2024", r"expected a port, \{start, end\} or a list of them, not \"2024\": write it without quotes", ()),
        ((1000, 2000), r"a tuple could mean a range or single ports", ()),
        ([1, 0], "expected a port from 1", (1,)),
        ([1, [5]], "a range has two ports", (1,)),
        ([1, {"start": 2, "end": "3"}], "expected a port from 1", (1, "end")),
        ([[[1, 2]]], "a range has two ports", (0,)),
        (True, "expected a port from 1", ()),
        (None, "expected a port", ()),
    ],
)
def test_refused_port_set(value: object, text: str, within: KeyPath) -> None:
    with pytest.raises(BadValue, match=text) as caught:
        ports.port_set(value)
    assert caught.value.within == within


single_ports = st.integers(1, 60)
ranges = st.lists(st.tuples(single_ports, single_ports), max_size=8)


@given(ranges, single_ports, single_ports)
def test_port_set_is_the_set_of_its_ports(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    members = {port for low, high in pairs for port in range(low, high + 1)}
    made = PortSet(pairs)
    assert list(made) == sorted(members)
    assert len(made) == len(members)
    assert bool(made) == bool(members)
    assert {port for port in range(70) if port in made} == members
    assert set(made.intersection(start, end)) == {port for port in members if start <= port <= end}
    assert all(after.start > before.end + 1 for before, after in zip(made.ranges, made.ranges[1:], strict=False))
    same = PortSet([(port, port) for port in sorted(members, reverse=True)])
    assert made == same
    assert hash(made) == hash(same)


def test_port_set_keeps_ranges_not_ports() -> None:
    everything = PortSet([(1, 65535)])
    assert everything.ranges == (PortRange(1, 65535),)
    assert len(everything) == 65535
    assert 65535 in everything
    assert 65536 not in everything
    assert "443" not in everything
    assert everything.intersection(10, 9) == PortSet()


def test_port_set_is_immutable_and_can_be_written_out() -> None:
    made = PortSet([(3, 3), (1000, 2000)])
    with pytest.raises(AttributeError):
        made.ranges = ()  # type: ignore[misc]
    assert str(made) == "3, 1000-2000"
    assert str(PortSet()) == "no port"
    assert repr(made) == "PortSet([(3, 3), (1000, 2000)])"
    assert pickle.loads(pickle.dumps(made)) == made


def test_ephemeral_ports_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "40000\t50000\n")
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.ephemeral_ports() == PortSet([(40000, 50000)])


@pytest.mark.parametrize("content", ["", "x y", None])
def test_ephemeral_ports_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    def read(path: Path, **arguments: Any) -> str:
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.ephemeral_ports() == PortSet([(32768, 60999)])
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert machine.ephemeral_ports() == PortSet([(49152, 65535)])


@pytest.mark.parametrize(("processors", "workers"), [(1, 0), (2, 0), (3, 3), (64, 64)])
def test_spare_workers(monkeypatch: pytest.MonkeyPatch, processors: int, workers: int) -> None:
    """Those that this process may use count, not those of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert machine.spare_workers() == workers
    for side in (client_config, server_config):
        assert side().workers == workers
        assert side(max_workers=7).workers == 7
        assert side(relay="engine").workers == 0
        assert side(relay="engine", max_workers=7).workers == 0
        assert side(relay="workers").workers == machine.WORKERS
        assert side(relay="workers", max_workers=7).workers == 7


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({}, []),
        ({"relay": "engine"}, []),
        ({"relay": "engine", "max_workers": 0}, []),
        ({"relay": "engine", "max_workers": 3}, ["max_workers"]),
        ({"relay": "workers", "max_workers": 0}, ["relay"]),
        ({"relay": "workers", "max_workers": 1}, []),
    ],
)
def test_relay_and_max_workers_that_contradict_each_other(options: dict[str, object], without: list[str]) -> None:
    assert [name for name, _ in without_effect(client_config(**options))] == without


@pytest.mark.parametrize(
    ("memory", "address_space", "group", "share"),
    [
        (64 << 30, resource.RLIM_INFINITY, "max", 1 << 30),
        (2 << 30, resource.RLIM_INFINITY, "max", 512 << 20),
        (64 << 30, 1 << 30, "max", 256 << 20),
        (64 << 30, resource.RLIM_INFINITY, str(800 << 20), 200 << 20),
        (64 << 30, resource.RLIM_INFINITY, None, 1 << 30),
        (128 << 20, resource.RLIM_INFINITY, "max", 64 << 20),
    ],
)
def test_memory_to_receive(
    monkeypatch: pytest.MonkeyPatch, memory: int, address_space: int, group: str | None, share: int
) -> None:
    """A quarter of the smallest limit, within bounds."""

    def read(path: Path, **_: object) -> str:
        if group is None:
            raise FileNotFoundError(path)
        return group

    monkeypatch.setattr(os, "sysconf", lambda name: memory // 4096 if name == "SC_PHYS_PAGES" else 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (address_space, address_space))
    monkeypatch.setattr(Path, "read_text", read)
    assert machine.memory_to_receive() == share


def client_config(**options: object) -> ClientConfig:
    return ClientConfig.from_options(**client(), **options)


def server_config(**options: object) -> ServerConfig:
    return ServerConfig.from_options(**server(), **options)


# --- error texts -----------------------------------------------------------------------------------------------------


def test_dotted_keys() -> None:
    assert bad_value.dotted(("proxies", 0, "users", UUID)) == f"proxies[0].users.{UUID}"
    assert bad_value.dotted(("a.b", "c d")) == '"a.b"."c d"'
    assert bad_value.dotted(()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("bücher", '"bücher"'),
        ("a\x1b[0m\n", '"a\\x1b[0m\\n"'),
        ("\ud800", '"\\ud800"'),
        ("x" * 61, '"' + "x" * 57 + '..."'),
        (10**41, "a number of more than 40 digits"),
        (True, "true"),
        (1.5, "1.5"),
        ([1], "a list"),
        ({}, "a table"),
        (None, "nothing"),
        (datetime.time(1, 2), "a date or time"),
        (b"x", "a Python bytes"),
    ],
)
def test_shown_values(value: object, text: str) -> None:
    assert bad_value.shown(value) == text
