"""Converts single configuration values, as given by a file or a program, to the values that a configuration holds.

Pure functions: of files they read only the kernel's ephemeral port range and the memory limit of the process, of the
environment only the directory of systemd's credentials; no clock, no threads. Each takes a parsed scalar, list or table
and returns the value or raises :class:`BadValue`. They are as lenient as the reference implementation: text is accepted
for numbers and booleans, and whole numbers for text. Only port ranges require numbers.
"""

from __future__ import annotations

import binascii
import bisect
import contextlib
import ipaddress
import math
import os
import re
import resource
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenBytes, HiddenText

T = TypeVar("T")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
KeyPath = tuple[str | int, ...]
"""The path from the top of a configuration to a value: keys of tables and indices of lists."""

Network = Literal["tcp", "udp", "both"]
UdpForwardMode = Literal["native", "quic"]
CongestionControl = Literal["cubic", "new_reno", "bbr"]
ProxyProtocol = Literal["none", "v1", "v2"]
Relay = Literal["auto", "engine", "workers"]
LogFormat = Literal["text", "json"]
BalanceName = Literal["round_robin", "least_connections"]
Ready = Literal["started", "public"]
ControlSocket = Path | Literal["off"]
LogLevel = Literal["off", "error", "warn", "info", "debug", "trace"]
FixedDialectName = Literal["draft", "flags"]
"""Meaning of the mode byte in ClientHello: the draft's enumeration, or the bit mask of later releases."""
DialectName = Literal["draft", "flags", "auto"]
AmbiguousDialectName = Literal["both", "draft", "flags"]
"""How "auto" interprets a mode byte whose meaning depends on the dialect."""

SMALLEST_RECEIVE_MEMORY: Final = 64 << 20
_LARGEST_DEFAULT_MEMORY: Final = 1 << 30
# Characters or bytes: 32 hexadecimal digits have 128 bits, the length of a stateless reset token.
_SHORTEST_RESET_KEY: Final = 32
# Characters: with 6 bits each they have 96 bits, too many to guess.
_SHORTEST_TOKEN: Final = 16

NETWORKS: Final[Mapping[str, Network]] = {
    "tcp": "tcp",
    "udp": "udp",
    "both": "both",
    "tcpudp": "both",
    "tcp_udp": "both",
    "tcp-udp": "both",
    "all": "both",
}
UDP_FORWARD_MODES: Final[Mapping[str, UdpForwardMode]] = {"native": "native", "quic": "quic"}
RELAYS: Final[Mapping[str, Relay]] = {"auto": "auto", "engine": "engine", "workers": "workers"}
CONGESTION_CONTROLS: Final[Mapping[str, CongestionControl]] = {
    "bbr": "bbr",
    "cubic": "cubic",
    "new_reno": "new_reno",
    "newreno": "new_reno",
    "reno": "new_reno",
}
PROXY_PROTOCOLS: Final[Mapping[str, ProxyProtocol]] = {
    "none": "none",
    "v1": "v1",
    "v2": "v2",
    "disable": "none",
    "disabled": "none",
    "off": "none",
}
LOG_FORMATS: Final[Mapping[str, LogFormat]] = {"text": "text", "json": "json"}
READY: Final[Mapping[str, Ready]] = {"started": "started", "public": "public"}
LOG_LEVELS: Final[Mapping[str, LogLevel]] = {
    "off": "off",
    "error": "error",
    "warn": "warn",
    "info": "info",
    "debug": "debug",
    "trace": "trace",
}
BALANCES: Final[Mapping[str, BalanceName]] = {"round_robin": "round_robin", "least_connections": "least_connections"}
FIXED_DIALECTS: Final[Mapping[str, FixedDialectName]] = {"draft": "draft", "flags": "flags"}
DIALECTS: Final[Mapping[str, DialectName]] = {"auto": "auto", "draft": "draft", "flags": "flags"}
AMBIGUOUS_DIALECTS: Final[Mapping[str, AmbiguousDialectName]] = {"both": "both", "draft": "draft", "flags": "flags"}

LOWEST_PORT: Final = 1
"""Port 0 asks the kernel for any port; as a port to forward it would be a different one for TCP and for UDP."""
HIGHEST_PORT: Final = 65535

LONGEST_TUNNEL_NAME: Final = 64
"""Characters. Names are part of log lines, and of status lines, whose length is bounded."""

SHORTEST_DURATION: Final = 0.001
"""Seconds. No timer of a tunnel needs less, and zero would busy-loop or time out immediately."""
LONGEST_DURATION: Final = 100 * 365.25 * 86400
"""Seconds. Well below the maximum of locks and of the engine (292 years in nanoseconds)."""

SHORTEST_CHECK_INTERVAL: Final = 0.1
"""Seconds. A local service notices being checked more often."""

SHORTEST_SWITCHED: Final = 1.0
LONGEST_SWITCHED: Final = 9 * 3600.0
"""Seconds, for durations that may be off: the maximum of TCP keepalive on Linux, 32,767 seconds, rounded down."""

LONGEST_HTTP_PATH: Final = 2000
"""Characters: what web servers accept in any case."""
UNIX_PREFIX: Final = "unix:"
LONGEST_UNIX_PATH: Final = 107
"""Bytes: ``sun_path`` of ``struct sockaddr_un`` has 108, one of which is the NUL after a path or before an abstract
name."""
_LOCAL_FORMS: Final = 'expected "host:port", a port, "unix:/path", or a list of hosts or ports'

SLOWEST_RATE: Final = 1000
FASTEST_RATE: Final = 12_500_000_000
"""Bytes per second: 8 kbit/s and 100 Gbit/s, the maximum of the engine's buckets."""

SHORTEST_PROBING: Final = 0.1
LONGEST_PROBING: Final = 3600.0
"""Seconds of ``keep_alive``. Probes more often cost more than they tell; mappings of a NAT last no hour."""

LARGEST_UDP_PAYLOAD: Final = 65507
"""Bytes: 65,535 minus the IPv4 and UDP headers (RFC 768)."""


class BadValue(ConfigError):
    """A value is unusable. The text says what was expected; the caller that knows the place adds it.

    Attributes:
        within: The path from the value to the part that is wrong; empty for the value itself.
    """

    def __init__(self, problem: str, *within: str | int) -> None:
        super().__init__(problem, key=dotted(within) or None)
        self.within: KeyPath = within


def dotted(at: KeyPath) -> str:
    """Returns the text form of a key path, such as ``proxies[0].allow_ports``."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]{1,60}", part, re.ASCII) else shown(part)
            text += f".{name}" if text else name
    return text


# --- naming values in error texts -------------------------------------------------------------------------------------


def _is_date(value: object) -> bool:
    """Returns whether a parser made a date or time of it, without importing datetime."""
    return type(value).__module__ == "datetime"


def kind(value: object) -> str:
    """Returns the type of this value, for error texts. Never shows the value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    if _is_date(value):
        return "a date or time"
    return f"a Python {type(value).__name__}"


def printable(text: str) -> str:
    """Returns text with escapes for characters that are not printable or would control a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(value: object) -> str:
    """Returns a value for error texts, shortened. Not for secrets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return f'"{printable(short)}"'
    if isinstance(value, int):
        # Python refuses to convert numbers of more than 4300 digits.
        return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
    if isinstance(value, float):
        return repr(value)
    return kind(value)


def _each(elements: Iterable[object], parse: Callable[[object], T]) -> list[T]:
    """Returns the parsed elements of a list; errors name the element."""
    parsed = []
    for index, element in enumerate(elements):
        try:
            parsed.append(parse(element))
        except BadValue as error:
            raise BadValue(error.problem, index, *error.within) from None
    return parsed


# --- mappings ---------------------------------------------------------------------------------------------------------


class FrozenMap(Mapping[str, T]):
    """An immutable mapping in the order of its entries; hashable if its values are."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __repr__(self) -> str:
        return repr(self._entries)


# --- plain values -----------------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """Returns text; whole numbers and booleans become text, as in the reference implementation.

    Numbers with a fraction are rejected: programs differ in how they write them (1.0 or 1), which matters in a
    password. The error never shows the value, which may be a secret.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < 10**1000:
        return str(value)
    if not isinstance(value, str):
        quotes = ": write it in quotes" if isinstance(value, (int, float)) or _is_date(value) else ""
        raise BadValue(f"expected text, not {kind(value)}{quotes}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue("contains half of a surrogate pair, which UTF-8 cannot encode") from None
    return value


def secret(value: object) -> str:
    """Returns a password: non-empty text."""
    password = text(value)
    if not password:
        raise BadValue("an empty password is not allowed")
    return HiddenText(password)


def reset_key(value: object) -> bytes:
    """Returns a secret for stateless reset keys: text of at least 32 characters, or as many bytes."""
    given = value if isinstance(value, (bytes, bytearray)) else text(value)
    if len(given) < _SHORTEST_RESET_KEY:
        raise BadValue(f"shorter than {_SHORTEST_RESET_KEY} characters; generate one with: openssl rand -base64 32")
    return HiddenBytes(given.encode() if isinstance(given, str) else given)


def token(value: object) -> str:
    """Returns the token of a status address: printable ASCII of at least 16 characters, without spaces."""
    given = text(value)
    if not re.fullmatch(r"[!-~]*", given):
        raise BadValue("expected printable ASCII characters without spaces")
    if len(given) < _SHORTEST_TOKEN:
        raise BadValue(f"shorter than {_SHORTEST_TOKEN} characters; generate one with: openssl rand -base64 32")
    return HiddenText(given)


def boolean(value: object) -> bool:
    """Returns a boolean; also from 1 and 0 and the texts true, on, yes, 1, false, off, no, 0 in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return value == 1
    if isinstance(value, str):
        if value.lower() in ("true", "on", "yes", "1"):
            return True
        if value.lower() in ("false", "off", "no", "0"):
            return False
    raise BadValue(f"expected true or false, not {shown(value)}")


def integer(value: object, low: int, high: int, unit: str = "") -> int:
    """Returns a whole number from low to high, inclusive; also from text and from a float without a fraction."""
    expected = f"expected a whole number{unit and f' of {unit}'} from {low} to {high}"
    number: int
    if isinstance(value, bool):
        raise BadValue(f"{expected}, not {shown(value)}")
    if isinstance(value, int):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value):
        number = int(value)
    else:
        suffix = isinstance(value, str) and re.fullmatch(r"[0-9.]+ *[A-Za-z]+", value)
        raise BadValue(f"{expected}, not {shown(value)}{': no unit may follow the number' if suffix else ''}")
    if not low <= number <= high:
        raise BadValue(f"{expected}, not {shown(number)}")
    return number


def packet_size(value: object) -> int:
    """Returns the size in bytes of a buffer for one UDP packet, clamped to the maximum payload of 65,507."""
    return min(integer(value, 1, 2**63 - 1, "bytes"), LARGEST_UDP_PAYLOAD)


def choice(value: object, choices: Mapping[str, T]) -> T:
    """Returns the meaning of a word, in any case.

    Args:
        value: The word.
        choices: Every accepted word, in lower case, and its meaning. Errors list only words that are their own meaning.
    """
    if isinstance(value, (str, bool, int)):
        word = text(value)
        if word.lower() in choices:
            return choices[word.lower()]
    names = ", ".join(word for word, meaning in choices.items() if word == meaning)
    raise BadValue(f"expected one of {names}, not {shown(value)}")


def words(choices: Mapping[str, object]) -> str:
    """Returns the words that :func:`choice` accepts, as Markdown: those that are their own meaning, then the others."""
    names = ", ".join(f"`{word}`" for word, meaning in choices.items() if word == meaning)
    others = ", ".join(f"`{word}`" for word, meaning in choices.items() if word != meaning)
    return f"{names} (also {others})" if others else names


def networks(value: object) -> Network:
    """Returns a network from its name, or the union of a list of names."""
    if not isinstance(value, (list, tuple)):
        return choice(value, NETWORKS)
    if not value:
        raise BadValue('expected "tcp", "udp", "both" or a list of them, not an empty list')
    found = set(_each(value, lambda name: choice(name, NETWORKS)))
    return found.pop() if len(found) == 1 else "both"


def client_dialect(value: object) -> FixedDialectName:
    """Returns the dialect of a client. A client cannot learn its server's, so "auto" is rejected."""
    if choice(value, DIALECTS) == "auto":
        raise BadValue('a client cannot detect the dialect of its server: write "draft" or "flags", not "auto"')
    return choice(value, FIXED_DIALECTS)


def identifier(value: object) -> uuid.UUID:
    """Returns a UUID from its hyphenated, plain, braced or URN form in any case (RFC 9562, section 4).

    The error does not show the value: UUID and password are easily swapped.
    """
    if isinstance(value, uuid.UUID):
        return value
    hyphenated = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    forms = rf"[0-9a-f]{{32}}|{hyphenated}|\{{{hyphenated}\}}|urn:uuid:{hyphenated}"
    if not re.fullmatch(forms, text(value), re.IGNORECASE | re.ASCII):
        raise BadValue('expected a UUID, such as "00112233-4455-6677-8899-aabbccddeeff"')
    return uuid.UUID(text(value).lower())


def protocols(value: object) -> tuple[str, ...]:
    """Returns names of application protocols for ALPN, each of 1 to 255 bytes (RFC 7301, section 3.1).

    At least one: a QUIC handshake without any fails (RFC 9001, section 8.1).
    """
    if not isinstance(value, (list, tuple)):
        raise BadValue(f'expected a list, such as ["asport"], not {shown(value)}')
    if not value:
        raise BadValue('expected a list of at least one protocol, such as ["asport"], not an empty list')
    return tuple(_each(value, _protocol))


def _protocol(value: object) -> str:
    name = text(value)
    if not 1 <= len(name.encode()) <= 255:
        raise BadValue("expected a protocol name of 1 to 255 bytes")
    return name


PIN_PREFIX: Final = "sha256//"


def pins(value: object) -> tuple[bytes, ...]:
    """Returns the SHA-256 hashes of keys.

    An empty list is rejected: it would silently remove the protection.
    """
    example = f'["{PIN_PREFIX}..."], as asport-sync pin prints it'
    if not isinstance(value, (list, tuple)):
        raise BadValue(f"expected a list, such as {example}, not {kind(value)}")
    if not value:
        raise BadValue(f"expected at least one pin, such as {example}: to use none, omit the key")
    return tuple(_each(value, _pin))


def _pin(value: object) -> bytes:
    # Not shown in errors: it may be a private key pasted by mistake.
    written = text(value).strip()
    if written.startswith(PIN_PREFIX):
        encoded = written[len(PIN_PREFIX) :]
        if not re.fullmatch(r"[A-Za-z0-9+/]{43}=", encoded, re.ASCII):
            raise BadValue(f'expected 44 characters of base64, the last a "=", after {PIN_PREFIX}')
        return binascii.a2b_base64(encoded)
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{2}(:[0-9a-f]{2}){31}", written, re.IGNORECASE | re.ASCII):
        raise BadValue(f"expected {PIN_PREFIX} and base64, or the 64 hexadecimal digits of a SHA-256")
    return bytes.fromhex(written.replace(":", ""))


def written_pin(pin: bytes) -> str:
    """Returns a pin as text in a form that :func:`pins` accepts."""
    return PIN_PREFIX + binascii.b2a_base64(pin, newline=False).decode("ascii")


CREDENTIAL_PREFIX: Final = "credential:"


def credentials_directory() -> Path | None:
    """Returns the directory of this service's systemd credentials (``LoadCredential=`` and related options), if any."""
    place = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(place) if place else None


def file_path(value: object, directory: Path | None) -> Path:
    """Returns the path of a file.

    Args:
        value: Text, or a path object from a program. ``credential:NAME`` is a systemd credential.
        directory: Base of relative paths; None leaves them relative.
    """
    name = os.fspath(value) if isinstance(value, os.PathLike) else text(value)
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadValue("expected the path of a file")
    if isinstance(value, str) and name.startswith(CREDENTIAL_PREFIX):
        return _credential_path(name[len(CREDENTIAL_PREFIX) :])
    return directory / name if directory else Path(name)


def _credential_path(name: str) -> Path:
    directory = credentials_directory()
    if directory is None:
        raise BadValue(
            f"{CREDENTIAL_PREFIX} names a systemd credential, but CREDENTIALS_DIRECTORY is not set: "
            "add LoadCredential= to the unit"
        )
    if name in ("", ".", "..") or "/" in name:
        raise BadValue(f'expected the name of a credential after {CREDENTIAL_PREFIX}, without "/"')
    return directory / name


# --- durations --------------------------------------------------------------------------------------------------------

# Nanoseconds per unit. Months and years are Gregorian means, rounded as in the reference implementation.
_NANOSECONDS: Final[Mapping[str, int]] = {
    unit: nanoseconds
    for nanoseconds, units in {
        1: "nanos nsec ns",
        1_000: "usec us",
        1_000_000: "millis msec ms",
        1_000_000_000: "seconds second secs sec s",
        60_000_000_000: "minutes minute mins min m",
        3_600_000_000_000: "hours hour hrs hr h",
        86_400_000_000_000: "days day d",
        604_800_000_000_000: "weeks week w",
        2_630_016_000_000_000: "months month M",
        31_557_600_000_000_000: "years year y",
    }.items()
    for unit in units.split()
}


def duration(value: object, *, bare_seconds: bool = False) -> float:
    """Returns a duration in seconds.

    Args:
        value: One or more whole numbers, each with a unit, spaces allowed: "1h 30m", "500ms".
        bare_seconds: Whether a number without a unit is accepted as seconds. A program may pass one; in a file it would
            be ambiguous between seconds and milliseconds.
    """
    example = 'expected a duration, such as "10s", "500ms" or "1h 30m"'
    seconds: float
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not bare_seconds:
            hint = f'"{value}s"' if isinstance(value, int) and 0 < value < 10**9 else '"10s"'
            raise BadValue(f"expected a duration with a unit, such as {hint}, not {shown(value)}")
        seconds = float(value) if abs(value) < 10**40 else math.inf
    elif isinstance(value, str):
        seconds = _sum_of_parts(value, example) / 1e9
    else:
        raise BadValue(f"{example}, not {shown(value)}")
    if not SHORTEST_DURATION <= seconds <= LONGEST_DURATION:  # also False for NaN
        raise BadValue(f"expected a duration from 1ms to 100years, not {shown(value)}")
    return seconds


def check_interval(value: object, *, bare_seconds: bool = False) -> float:
    """Returns the time between two health checks in seconds, like :func:`duration`, but at least 100 ms."""
    seconds = duration(value, bare_seconds=bare_seconds)
    if seconds < SHORTEST_CHECK_INTERVAL:
        raise BadValue(f"expected a duration from 100ms to 100years, not {shown(value)}")
    return seconds


def keep_alive(value: object, *, bare_seconds: bool = False) -> float:
    """Returns the time in seconds after which a silent server is probed."""
    seconds = duration(value, bare_seconds=bare_seconds)
    if not SHORTEST_PROBING <= seconds <= LONGEST_PROBING:
        raise BadValue(f"expected a duration from 100ms to 1h, not {shown(value)}")
    return seconds


def off_or_duration(value: object, *, bare_seconds: bool = False) -> float:
    """Returns a duration in seconds that may be switched off: 0.0 for "off", false or 0, also as text."""
    if value is False or value == 0 or (isinstance(value, str) and value.lower() in ("off", "no", "false", "0", "0s")):
        return 0.0
    seconds = duration(value, bare_seconds=bare_seconds)
    if not SHORTEST_SWITCHED <= seconds <= LONGEST_SWITCHED:
        raise BadValue(f'expected "off", or a duration from 1s to 9h, not {shown(value)}')
    return seconds


def control_socket(value: object, directory: Path | None) -> ControlSocket:
    """Returns the path of a control socket, or "off"; that also for false, which "off" is in YAML."""
    if value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false")):
        return "off"
    if isinstance(value, bool):
        raise BadValue('expected the path of a socket, or "off"')
    return file_path(value, directory)


def _sum_of_parts(value: str, example: str) -> int:
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        raise BadValue(f'expected a duration with a unit, such as "{value.strip()[:9]}s", not {shown(value)}')
    if re.search(r"[0-9][.,][0-9]", value):
        raise BadValue(f'{example}, not {shown(value)}: whole numbers only, so "1500ms" for one and a half seconds')
    part = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]+)\s*")
    position = total = 0
    while match := part.match(value, position):
        number, unit = match.groups()
        if unit not in _NANOSECONDS:
            raise BadValue(
                f'{example}, not {shown(value)}: "{unit[:20]}" is not one of ns, us, ms, s, m, h, d, w, M, y'
            )
        total += int(number) * _NANOSECONDS[unit]
        position = match.end()
    if not value or position != len(value):
        raise BadValue(f"{example}, not {shown(value)}")
    return total


# --- bandwidth --------------------------------------------------------------------------------------------------------

# Bytes per second. Decimal prefixes, as everywhere in networking.
_RATES: Final[Mapping[str, int]] = {
    "kbit": 125,
    "mbit": 125_000,
    "gbit": 125_000_000,
    "kbyte": 1_000,
    "mbyte": 1_000_000,
    "gbyte": 1_000_000_000,
}


class Bandwidth(NamedTuple):
    """Limits on payload in bytes per second; 0: no limit.

    Attributes:
        inward: From visitors to the local service: ``in`` in a configuration.
        outward: From the local service to visitors: ``out`` in a configuration.
    """

    inward: int = 0
    outward: int = 0

    def __str__(self) -> str:
        return f"in {written_rate(self.inward)}, out {written_rate(self.outward)}"


def bandwidth(value: object) -> Bandwidth:
    """Returns the limits of both directions from a table of ``in`` and ``out``, of which one may be missing."""
    example = "expected a table of in and out, such as {in: 10mbit, out: 2mbit}"
    if isinstance(value, Bandwidth):
        return value
    if not isinstance(value, Mapping):
        raise BadValue(f"{example}, not {shown(value)}")
    if not value:
        raise BadValue(f"{example}, not an empty table")
    if unknown := [name for name in value if name not in ("in", "out")]:
        raise BadValue("unknown key: a bandwidth has in and out", str(unknown[0]))
    rates = []
    for name in ("in", "out"):
        try:
            rates.append(rate(value[name]) if name in value else 0)
        except BadValue as error:
            raise BadValue(error.problem, name) from None
    return Bandwidth(*rates)


def rate(value: object) -> int:
    """Returns bytes per second: a whole number with one unit, such as "10mbit" or "2mbyte"; 0 for "off" and false.

    A number without a unit is rejected, and so are units that some programs use for bits and others for bytes.
    """
    example = 'expected a rate, such as "10mbit" (bits per second), "2mbyte" (bytes per second) or "off"'
    if value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false")):
        return 0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        written = f"{value}" if isinstance(value, int) and 0 < value < 10**9 else "10"
        raise BadValue(
            f'expected a rate with a unit, such as "{written}kbit" or "{written}mbit" (bits per second), or '
            f'"{written}kbyte" (bytes per second), not {shown(value)}'
        )
    if not isinstance(value, str):
        raise BadValue(f"{example}, not {shown(value)}")
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*([A-Za-z/]*)\s*", value)
    if match is None:
        whole = ': whole numbers only, so "1500kbit" for 1.5 Mbit/s' if re.search(r"[0-9][.,][0-9]", value) else ""
        raise BadValue(f"{example}, not {shown(value)}{whole}")
    number, unit = match.groups()
    if unit.lower() not in _RATES:
        prefix = unit[:1].lower() if unit[:1].lower() in ("k", "m", "g") else "m"
        raise BadValue(
            f'{example}, not {shown(value)}: write "{number[:9]}{prefix}bit" for bits per second, or '
            f'"{number[:9]}{prefix}byte" for bytes per second'
        )
    found = int(number) * _RATES[unit.lower()]
    if not SLOWEST_RATE <= found <= FASTEST_RATE:
        raise BadValue(f"expected a rate from 8kbit to 100gbit, not {shown(value)}")
    return found


def written_rate(rate: int) -> str:
    """Returns a rate in bytes per second as :func:`rate` accepts it, in the largest unit of bits that divides it."""
    if rate == 0:
        return "off"
    for unit in ("gbit", "mbit", "kbit"):
        if rate % _RATES[unit] == 0:
            return f"{rate // _RATES[unit]}{unit}"
    return f"{rate * 8 / 1000:g}kbit"  # only a program can have set it


# --- addresses --------------------------------------------------------------------------------------------------------


class HostPort(NamedTuple):
    """A host and a port.

    Attributes:
        host: A DNS name in its ASCII form, or an IP address without brackets.
        port: 0 only if a server may let the system choose.
    """

    host: str
    port: int

    @property
    def ip(self) -> IPAddress | None:
        """The host as an IP address, or None if it is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixSocket(NamedTuple):
    """The address of a unix stream socket.

    Attributes:
        path: Its path, or ``@`` and the name of an abstract socket.
    """

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


LocalAddress = HostPort | UnixSocket
"""An address of a local service."""


@dataclass(frozen=True, slots=True)
class LocalTargets:
    """Where a local service is.

    Attributes:
        addresses: One unix socket, or one or more hosts with a port in the order in which they are tried. Never empty.
    """

    addresses: tuple[LocalAddress, ...]

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket, which carries no UDP."""
        return isinstance(self.addresses[0], UnixSocket)

    @property
    def host(self) -> str:
        """The first host. Raises AttributeError for a unix socket."""
        return self._first.host

    @property
    def port(self) -> int:
        """The port of the first host. Raises AttributeError for a unix socket."""
        return self._first.port

    @property
    def _first(self) -> HostPort:
        first = self.addresses[0]
        if isinstance(first, UnixSocket):
            raise AttributeError("a unix socket has neither host nor port")
        return first

    def __str__(self) -> str:
        parts: list[LocalAddress] = []
        rest = list(self.addresses)
        while rest:
            part = rest.pop(0)
            if rest and isinstance(part, HostPort) and (part, rest[0]) == _on_loopback(part.port):
                rest.pop(0)
                part = HostPort("localhost", part.port)
            parts.append(part)
        return ", ".join(map(str, parts))


def _on_loopback(port: int) -> tuple[HostPort, HostPort]:
    """Returns where a service listens that is known only by its port: without a look-up of ``localhost``."""
    return HostPort("127.0.0.1", port), HostPort("::1", port)


def ip(value: object) -> IPAddress:
    """Returns an IP address; an IPv6 address may be in brackets."""
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return value
    literal = text(value)
    try:
        if literal.startswith("[") and literal.endswith("]"):
            return ipaddress.IPv6Address(literal[1:-1])
        return ipaddress.ip_address(literal)
    except ValueError:
        raise BadValue(f'expected an IP address, such as "::" or "192.0.2.1", not {shown(value)}') from None


def host(value: object) -> str:
    """Returns a host: an IP address in canonical form without brackets, or a DNS name in its ASCII form."""
    raw = text(value)
    if "://" in raw:
        raise BadValue(f"expected a name or an IP address, not the URL {shown(raw)}")
    if ":" in raw or raw.startswith("["):
        try:
            return str(ipaddress.IPv6Address(raw[1:-1] if raw.startswith("[") and raw.endswith("]") else raw))
        except ValueError:
            raise BadValue(f"{shown(raw)} is not an IPv6 address") from None
    try:
        return str(ipaddress.IPv4Address(raw))
    except ValueError:
        pass
    name = raw
    if not raw.isascii() and len(raw) <= 253:
        try:
            name = raw.encode("idna").decode("ascii")
        except UnicodeError:
            raise BadValue(f"{shown(raw)} is not a DNS name") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > 254 or not all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}", label, re.ASCII) for label in labels):
        raise BadValue(f"{shown(raw)} is neither a DNS name nor an IP address")
    if labels[-1].isdigit():
        raise BadValue(f"{shown(raw)} is not an IPv4 address, and no DNS name ends in a number")
    return name


def tunnel_name(value: object) -> str:
    """Returns the name of a tunnel."""
    if not isinstance(value, str) or not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{LONGEST_TUNNEL_NAME}}}", value):
        raise BadValue(
            f"{shown(value)} is not a name of a tunnel: expected 1 to {LONGEST_TUNNEL_NAME} letters, digits, -, _ and ."
        )
    return value


def host_port(value: object) -> HostPort:
    """Returns host and port from "host:port", split at the last colon, or from a pair given by a program."""
    parsed = _split_port(value)
    if parsed.port < LOWEST_PORT:
        raise BadValue("port 0 cannot be connected to")
    return parsed


def local(value: object, directory: Path | None = None) -> LocalTargets:
    """Returns where a local service is.

    Args:
        value: "host:port" or a pair given by a program; a port: both loopback addresses; a list of these; or
            "unix:PATH", "unix:@NAME" for an abstract socket.
        directory: Relative paths start here; None leaves them relative to the working directory.
    """
    if isinstance(value, LocalTargets):
        return value
    if isinstance(value, str) and value.startswith(UNIX_PREFIX):
        return LocalTargets((_unix_socket(value[len(UNIX_PREFIX) :], directory),))
    if not isinstance(value, list):
        return LocalTargets(_local_hosts(value))
    if not value:
        raise BadValue(f"{_LOCAL_FORMS}, not an empty list")
    found = dict.fromkeys(address for addresses in _each(value, _local_hosts) for address in addresses)
    return LocalTargets(tuple(found))


def _local_hosts(value: object) -> tuple[HostPort, ...]:
    if isinstance(value, str) and value.startswith(UNIX_PREFIX):
        raise BadValue("a unix socket cannot be one of several addresses")
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal()):
        return _on_loopback(integer(value, LOWEST_PORT, HIGHEST_PORT))
    if not isinstance(value, (str, tuple)):
        raise BadValue(f"{_LOCAL_FORMS}, not {shown(value)}")
    return (host_port(value),)


def _unix_socket(path: str, directory: Path | None) -> UnixSocket:
    path = text(path)
    if path in ("", "@") or "\0" in path:
        raise BadValue(f'expected the path of a socket after {UNIX_PREFIX}, or "@" and the name of an abstract socket')
    if not path.startswith("@") and directory is not None:
        path = str(directory / path)
    length = len(os.fsencode(path))
    if length > LONGEST_UNIX_PATH:
        what = "name of an abstract socket" if path.startswith("@") else "path of a socket"
        raise BadValue(f"the {what} has at most {LONGEST_UNIX_PATH} bytes on this system, not {length}: {shown(path)}")
    return UnixSocket(path)


def http_path(value: object) -> str:
    """Returns what an HTTP request asks for: a path in its URL-encoded form, and a query if there is one."""
    path = text(value)
    if not re.fullmatch(rf"/[!-~]{{0,{LONGEST_HTTP_PATH - 1}}}", path):
        raise BadValue(
            f'expected a path such as "/health", URL-encoded and of at most {LONGEST_HTTP_PATH} characters, '
            f"not {shown(path)}"
        )
    return path


def ip_port(value: object) -> HostPort:
    """Returns address and port from "ip:port"; the host must be an IP address, the port may be 0."""
    parsed = _split_port(value)
    if parsed.ip is None:
        raise BadValue(f'expected an IP address and a port, such as "[::]:443": "{parsed.host}" is a name')
    return parsed


def _split_port(value: object) -> HostPort:
    expected = 'expected "host:port", such as "example.org:443" or "[2001:db8::1]:443"'
    if isinstance(value, tuple) and len(value) == 2:
        return HostPort(host(value[0]), integer(value[1], 0, HIGHEST_PORT))
    if not isinstance(value, str):
        raise BadValue(f"{expected}, not {shown(value)}")
    name, _, port = value.rpartition(":")
    if not name:
        raise BadValue(f"{expected}, not {shown(value)}")
    if "://" in value:
        raise BadValue(f"{expected}, not the URL {shown(value)}")
    try:
        parsed = host(name)
    except BadValue:
        if value.endswith("]") or HostPort(value, 0).ip is not None:
            raise BadValue(f"{expected}, not {shown(value)}: the port is missing") from None
        raise
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > HIGHEST_PORT:
        raise BadValue(f"{expected}: {shown(port)} is not a port from {LOWEST_PORT} to {HIGHEST_PORT}")
    return HostPort(parsed, int(port))


# --- ports ------------------------------------------------------------------------------------------------------------


class PortRange(NamedTuple):
    """Ports from start to end, inclusive.

    Attributes:
        start: The first port.
        end: The last port, not below ``start``.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return str(self.start) if self.start == self.end else f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class PortSet:
    """An immutable set of ports, stored as ranges: all 65,535 ports take one pair.

    Attributes:
        ranges: Ascending; neither overlapping nor adjacent, whatever the input.
    """

    ranges: tuple[PortRange, ...] = ()

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[PortRange] = []
        for start, end in sorted(ranges):
            if start > end:
                continue
            if merged and start <= merged[-1].end + 1:
                merged[-1] = PortRange(merged[-1].start, max(merged[-1].end, end))
            else:
                merged.append(PortRange(start, end))
        object.__setattr__(self, "ranges", tuple(merged))

    def __contains__(self, port: object) -> bool:
        if not isinstance(port, int):
            return False
        index = bisect.bisect_right(self.ranges, (port, HIGHEST_PORT)) - 1
        return index >= 0 and port <= self.ranges[index].end

    def __iter__(self) -> Iterator[int]:
        """Yields the ports in ascending order."""
        for start, end in self.ranges:
            yield from range(start, end + 1)

    def __len__(self) -> int:
        return sum(end - start + 1 for start, end in self.ranges)

    def intersection(self, start: int, end: int) -> PortSet:
        """Returns the ports of this set from start to end, inclusive; none if start is above end."""
        return PortSet((max(start, low), min(end, high)) for low, high in self.ranges)

    def __str__(self) -> str:
        return ", ".join(map(str, self.ranges)) or "no port"

    def __repr__(self) -> str:
        return f"PortSet({[tuple(each) for each in self.ranges]})"


ALL_PORTS: Final = PortRange(LOWEST_PORT, HIGHEST_PORT)


def port_range(value: object) -> PortRange:
    """Returns a range from a port, a [start, end] pair, or a table of ``start`` and ``end``."""
    return _range(value, "a port, [start, end] or {start, end}", pairs=True)


def port_set(value: object) -> PortSet:
    """Returns a set of ports.

    Args:
        value: A port, a table of ``start`` and ``end``, or a list of those and of [start, end] pairs. A list of two
            numbers is two ports; a tuple, which only a program can pass, is rejected as ambiguous.
    """
    if isinstance(value, PortSet):
        return value
    if isinstance(value, tuple):
        raise BadValue("a tuple could mean a range or single ports: write [(start, end)] or [port, port]")
    if isinstance(value, list):
        return PortSet(_each(value, port_range))
    return PortSet([_range(value, "a port, {start, end} or a list of them", pairs=False)])


def _range(value: object, forms: str, *, pairs: bool) -> PortRange:
    start: tuple[KeyPath, object]
    end: tuple[KeyPath, object]
    if isinstance(value, Mapping):
        if unknown := [name for name in value if name not in ("start", "end")]:
            raise BadValue("unknown key: a range of ports has start and end", str(unknown[0]))
        if missing := [name for name in ("start", "end") if name not in value]:
            raise BadValue(f"a range of ports needs start and end: {missing[0]} is missing")
        start, end = (("start",), value["start"]), (("end",), value["end"])
    elif isinstance(value, (list, tuple)) and pairs:
        if len(value) != 2:
            raise BadValue(f"expected {forms}: a range has two ports, not {len(value)}")
        start, end = ((0,), value[0]), ((1,), value[1])
    elif isinstance(value, int):
        start = end = ((), value)
    else:
        quotes = ": write it without quotes" if isinstance(value, str) and value.isdigit() else ""
        raise BadValue(f"expected {forms}, not {shown(value)}{quotes}")
    ports = []
    for within, port in (start, end):
        if isinstance(port, bool) or not isinstance(port, int) or not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise BadValue(f"expected a port from {LOWEST_PORT} to {HIGHEST_PORT}, not {shown(port)}", *within)
        ports.append(int(port))
    if ports[0] > ports[1]:
        raise BadValue(f"the range starts at {ports[0]}, above its end {ports[1]}")
    return PortRange(ports[0], ports[1])


WORKERS = 256
"""Default of max_workers with ``relay: workers``: 15 KiB and a thread each, and more run in turns on few processors."""


def spare_workers() -> int:
    """Returns the default of max_workers with ``relay: auto``.

    Threads that relay in addition to the engine's are worthwhile only with spare processors.
    """
    try:
        processors = len(os.sched_getaffinity(0))
    except OSError:  # refused, for example by a container's seccomp filter
        processors = os.cpu_count() or 1
    return processors if processors > 2 else 0


def memory_to_receive() -> int:
    """Returns the default of receive_memory: a quarter of the memory available to the process, from 64 MiB to 1 GiB."""
    available = [_LARGEST_DEFAULT_MEMORY * 4]
    with contextlib.suppress(OSError, ValueError):
        available.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            available.append(limit)
    with contextlib.suppress(OSError, ValueError):  # "max" means no limit
        available.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return max(SMALLEST_RECEIVE_MEMORY, min(available) // 4)


def ephemeral_ports() -> PortSet:
    """Returns the ports that the system assigns to outgoing connections: those that a server allows by default.

    On Linux from ``net.ipv4.ip_local_port_range``, with its default if that cannot be read; elsewhere 49152 to 65535.
    """
    if not sys.platform.startswith("linux"):
        return PortSet([(49152, 65535)])
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    return PortSet([(low, high)])
