"""Reads and writes the URI that tells a client its server, user and pins.

``asport://UUID:PASSWORD@HOST:PORT?pin=sha256//BASE64`` (RFC 3986). Pure functions, any thread. No error shows any part
of the text: where a character of the password is not percent-encoded, each part may contain some of it.
"""

from __future__ import annotations

import re
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import Final

from asport_sync.config import hosts, passwords, values
from asport_sync.config.bad_value import BadValue
from asport_sync.config.hosts import HostPort
from asport_sync.config.pins import PIN_PREFIX, written_pin
from asport_sync.config.pins import pins as parsed_pins
from asport_sync.config.ports import HIGHEST_PORT, LOWEST_PORT
from asport_sync.config.reader import bare
from asport_sync.errors import ConfigError
from asport_sync.hidden import HiddenText

SCHEME: Final = "asport://"
LONGEST_URI: Final = 8192
"""Characters: what software for URIs accepts in any case; a QR code has room for fewer."""
MAX_PINS: Final = 16
"""More than anyone needs to replace a key, and few enough for the longest URI."""

_SCHEME_NAME: Final = "asport:"
_FORM: Final = f"{SCHEME}UUID:PASSWORD@HOST:PORT?pin={PIN_PREFIX}..."
# RFC 3986: what each part may contain besides percent-encoded bytes.
_UNRESERVED: Final = r"A-Za-z0-9._~\-"
_SUB_DELIMITERS: Final = r"!$&'()*+,;="
_USER_PART: Final = re.compile(rf"(?:[{_UNRESERVED}{_SUB_DELIMITERS}:]|%[0-9A-Fa-f]{{2}})*", re.ASCII)
_QUERY: Final = re.compile(rf"(?:[{_UNRESERVED}{_SUB_DELIMITERS}:@/?]|%[0-9A-Fa-f]{{2}})*", re.ASCII)
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)


def is_uri(text: str) -> bool:
    """Returns whether a text is meant as a URI: what lacks the slashes is a malformed one, and no file or target."""
    return text[: len(_SCHEME_NAME)].lower() == _SCHEME_NAME


@dataclass(frozen=True, slots=True)
class ServerUri:
    """What a URI says. Immutable.

    Attributes:
        uuid: The user.
        password: The user's password; not shown by ``repr`` and ``str``.
        server: Host and port of the server.
        pins: SHA-256 hashes of public keys, one of which the server must have; empty: its certificate is verified
            with the system's certificate authorities.
    """

    uuid: uuid.UUID
    password: str = field(repr=False)
    server: HostPort
    pins: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        """Returns the URI without the password, for logs."""
        return self._written("...")

    def reveal(self) -> str:
        """Returns the whole URI, which :func:`parse_uri` reads. It holds a secret, and ``repr`` does not show it."""
        return HiddenText(self._written(urllib.parse.quote(self.password, safe="")))

    def options(self) -> dict[str, object]:
        """Returns the keys of a client's configuration that follow from the URI, all but ``local``.

        If there are pins, they are the only verification.
        """
        options: dict[str, object] = {
            "server": tuple(self.server),
            "uuid": self.uuid,
            "password": HiddenText(self.password),
        }
        if self.pins:
            options["certificates"] = {"pins": [written_pin(pin) for pin in self.pins], "pins_only": True}
        return options

    def _written(self, password: str) -> str:
        # "/", "+" and "=" may be in a query as they are, so that a pin can be copied from here to a configuration.
        query = "&".join(f"pin={written_pin(pin)}" for pin in self.pins)
        return f"{SCHEME}{self.uuid}:{password}@{self.server}{query and '?'}{query}"


def parse_uri(text: str) -> ServerUri:
    """Returns what a URI says.

    Args:
        text: The URI. White space around it, such as the end of a line, is ignored.

    Raises:
        ConfigError: It is not such a URI. The error and its traceback contain no part of it.
    """
    text = HiddenText(text.strip())  # hidden from tracebacks with local variables
    try:
        return _parse(text)
    except ConfigError as error:
        problem = bare(error)
    raise problem


def _parse(text: str) -> ServerUri:
    if len(text) > LONGEST_URI:
        raise BadValue(f"the URI is longer than {LONGEST_URI} characters")
    if text[: len(SCHEME)].lower() != SCHEME:
        raise BadValue(f"expected a URI, {_FORM}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise BadValue("the URI contains characters that have to be percent-encoded: %20 for a space, %C3%A4 for ä")
    before, marked, _ = text[len(SCHEME) :].partition("#")
    if marked:
        raise BadValue(f"expected no # in the URI: in a password it is %23; {_form_of_encoding()}")
    authority, _, query = before.partition("?")
    authority, _, path = authority.partition("/")
    if path:
        raise BadValue(f"expected {_FORM}, without a path: in a password / is %2F; {_form_of_encoding()}")
    user, at, place = authority.rpartition("@")
    if not at:
        raise BadValue(f"the URI has no @ before its host, or a / or ? in the password: expected {_FORM}")
    if "@" in user:
        raise BadValue(f"the URI has more than one @: in a password it is %40; {_form_of_encoding()}")
    identifier, colon, password = user.partition(":")
    if not colon:
        raise BadValue(f"the URI has no password: expected {_FORM}")
    return ServerUri(
        uuid=_uuid(_decoded(identifier, _USER_PART, "UUID")),
        password=_password(_decoded(password, _USER_PART, "password")),
        server=_server(place),
        pins=_pins(query),
    )


def _form_of_encoding() -> str:
    return "a password is percent-encoded as in every URI"


def _decoded(text: str, allowed: re.Pattern[str], what: str) -> str:
    if not allowed.fullmatch(text):
        raise BadValue(f"the {what} in the URI has a character that must be percent-encoded, or a % without two digits")
    try:
        return HiddenText(urllib.parse.unquote(text, errors="strict"))
    except UnicodeDecodeError:
        raise BadValue(f"the {what} in the URI is not percent-encoded UTF-8") from None


def _uuid(written: str) -> uuid.UUID:
    try:
        return values.identifier(written)
    except BadValue as error:
        raise BadValue(f"before the : of the URI: {error.problem}") from None


def _password(written: str) -> str:
    try:
        return passwords.secret(written)
    except BadValue as error:
        raise BadValue(f"the URI's password: {error.problem}") from None


def _server(place: str) -> HostPort:
    found = _HOST_PORT.fullmatch(place)
    if not found:
        raise BadValue(
            "expected HOST:PORT after the @ of the URI, such as example.org:443 or [2001:db8::1]:443; names in their "
            "ASCII form (xn--...)"
        )
    if found[2] is None:
        raise BadValue(f"the URI has no port: expected {_FORM}")
    try:
        host = hosts.host(found[1])
    except BadValue:  # its text shows the host
        raise BadValue("after the @ of the URI is neither a DNS name nor an IP address") from None
    port = int(found[2])
    if not LOWEST_PORT <= port <= HIGHEST_PORT:
        raise BadValue(f"the URI's port is not from {LOWEST_PORT} to {HIGHEST_PORT}")
    return HostPort(host, port)


def _pins(query: str) -> tuple[bytes, ...]:
    if not query:
        return ()
    written = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if name != "pin" or not equals:
            raise BadValue("expected nothing but pin=... after the ? of the URI, several of them with & between")
        written.append(_decoded(value, _QUERY, "pin"))
    if len(written) > MAX_PINS:
        raise BadValue(f"expected at most {MAX_PINS} pins in the URI, not {len(written)}")
    try:
        return parsed_pins(written)
    except BadValue as error:
        raise BadValue(f"the URI's pin: {error.problem}") from None
