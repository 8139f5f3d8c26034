"""The URI of a server: every form, what is said about others, and that no part of a secret is shown."""

from __future__ import annotations

import traceback
import urllib.parse
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.config import ClientConfig, HostPort, ServerUri, parse_uri
from asport_sync.config.uri import LONGEST_URI, MAX_PINS
from asport_sync.errors import ConfigError

UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
PIN = bytes(range(0xA0, 0xC0))
WRITTEN_PIN = "sha256//oKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr8="
PLAIN = f"asport://{UUID}:password@example.org:443"


def test_the_whole_form() -> None:
    assert parse_uri(f"{PLAIN}?pin={WRITTEN_PIN}") == ServerUri(UUID, "password", HostPort("example.org", 443), (PIN,))


def test_without_a_pin() -> None:
    assert parse_uri(PLAIN).pins == ()


@pytest.mark.parametrize(
    "query",
    [
        f"pin={urllib.parse.quote(WRITTEN_PIN, safe='')}",
        f"pin={PIN.hex()}",
        f"pin={PIN.hex().upper()}",
    ],
)
def test_other_forms_of_the_pin(query: str) -> None:
    assert parse_uri(f"{PLAIN}?{query}").pins == (PIN,)


def test_several_pins() -> None:
    assert parse_uri(f"{PLAIN}?pin={WRITTEN_PIN}&pin={'00' * 32}").pins == (PIN, bytes(32))


@pytest.mark.parametrize(
    ("written", "server"),
    [
        ("192.0.2.1:1", HostPort("192.0.2.1", 1)),
        ("[2001:DB8::1]:65535", HostPort("2001:db8::1", 65535)),
        ("[::ffff:192.0.2.1]:443", HostPort("::ffff:c000:201", 443)),
        ("xn--mller-kva.example:443", HostPort("xn--mller-kva.example", 443)),
    ],
)
def test_hosts(written: str, server: HostPort) -> None:
    found = parse_uri(f"asport://{UUID}:password@{written}").server
    assert (found.ip, found.port) == (server.ip, server.port)
    assert found.ip is not None or found.host == server.host


@pytest.mark.parametrize("text", [f" {PLAIN}\n", PLAIN.replace("asport:", "ASPORT:"), f"{PLAIN}/", f"{PLAIN}/?"])
def test_what_is_ignored(text: str) -> None:
    assert parse_uri(text) == parse_uri(PLAIN)


def test_a_colon_in_the_password_needs_no_encoding() -> None:
    assert parse_uri(PLAIN.replace("password", "a:b")).password == "a:b"


@given(password=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_every_password_is_read_as_it_was_written(password: str) -> None:
    uri = ServerUri(UUID, password, HostPort("2001:db8::1", 443), (PIN, bytes(range(32))))
    assert parse_uri(uri.reveal()) == uri


@given(st.text() | st.text(alphabet="asport:/@?pin=&%#[]0123456789abcdef-.").map(lambda text: f"asport://{text}"))
def test_any_text_is_a_uri_or_an_error(text: str) -> None:
    try:
        uri = parse_uri(text)
    except ConfigError:
        return
    assert parse_uri(uri.reveal()) == uri


SECRET = "swordfish"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a URI, asport://"),
        (SECRET, "expected a URI, asport://"),
        (f"https://{UUID}:{SECRET}@example.org:443", "expected a URI, asport://"),
        (f"asport:{UUID}:{SECRET}@example.org:443", "expected a URI, asport://"),
        (f"asport://{UUID}:{SECRET} x@example.org:443", "have to be percent-encoded"),
        (f"asport://{UUID}:{SECRET}ä@example.org:443", "have to be percent-encoded"),
        (f"asport://{UUID}:{SECRET}\x1b@example.org:443", "have to be percent-encoded"),
        (f"asport://{UUID}:{SECRET}#@example.org:443", "in a password it is %23"),
        (f"asport://{UUID}:x/{SECRET}@example.org:443", "in a password / is %2F"),
        (f"asport://{UUID}:x@x/{SECRET}@example.org:443", "in a password / is %2F"),
        (f"asport://{UUID}:x?{SECRET}@example.org:443", "no @ before its host"),
        (f"asport://{UUID}:x@{SECRET}@example.org:443", "in a password it is %40"),
        (f"asport://{UUID}:x@{SECRET}?@example.org:443", "has no port"),
        (f"asport://{UUID}:{SECRET}", "no @ before its host"),
        (f"asport://{UUID}@example.org:443", "has no password"),
        (f"asport://{UUID}:@example.org:443", "an empty password is not allowed"),
        (f"asport://{SECRET}:{UUID}@example.org:443", "expected a UUID"),
        (f"asport://:{SECRET}@example.org:443", "expected a UUID"),
        (f"asport://{UUID}:{SECRET}%@example.org:443", "a % without two digits"),
        (f"asport://{UUID}:{SECRET}%4@example.org:443", "a % without two digits"),
        (f"asport://{UUID}:{SECRET}|@example.org:443", "must be percent-encoded"),
        (f"asport://{UUID}:{SECRET}%FF@example.org:443", "not percent-encoded UTF-8"),
        (f"asport://{UUID}:{SECRET}@example.org", "has no port"),
        (f"asport://{UUID}:{SECRET}@example.org:0", "port is not from 1 to 65535"),
        (f"asport://{UUID}:{SECRET}@example.org:65536", "port is not from 1 to 65535"),
        (f"asport://{UUID}:{SECRET}@example.org:443x", "expected HOST:PORT"),
        (f"asport://{UUID}:{SECRET}@:443", "expected HOST:PORT"),
        (f"asport://{UUID}:{SECRET}@2001:db8::1:443", "expected HOST:PORT"),
        (f"asport://{UUID}:{SECRET}@[2001:db8::g]:443", "expected HOST:PORT"),
        (f"asport://{UUID}:{SECRET}@[::1:443", "expected HOST:PORT"),
        (f"asport://{UUID}:{SECRET}@[:::1]:443", "neither a DNS name nor an IP address"),
        (f"asport://{UUID}:{SECRET}@-x:443", "neither a DNS name nor an IP address"),
        (f"asport://{UUID}:{SECRET}@192.0.2.300:443", "neither a DNS name nor an IP address"),
        (f"asport://{UUID}:{SECRET}@example.org:443?", None),
        (f"asport://{UUID}:{SECRET}@example.org:443?pins={WRITTEN_PIN}", "nothing but pin=..."),
        (f"asport://{UUID}:{SECRET}@example.org:443?local=8080", "nothing but pin=..."),
        (f"asport://{UUID}:{SECRET}@example.org:443?pin={WRITTEN_PIN}&", "nothing but pin=..."),
        (f"asport://{UUID}:{SECRET}@example.org:443?pin", "nothing but pin=..."),
        (f"asport://{UUID}:{SECRET}@example.org:443?pin=", "the URI's pin: "),
        (f"asport://{UUID}:{SECRET}@example.org:443?pin=sha256//x", "expected 44 characters of base64"),
        (f"asport://{UUID}:x@example.org:443?pin={SECRET}", "expected sha256// and base64"),
        (f"asport://{UUID}:x@example.org:443?pin=%ZZ{SECRET}", "a % without two digits"),
        (f"{PLAIN}?{'&'.join([f'pin={WRITTEN_PIN}'] * (MAX_PINS + 1))}", f"at most {MAX_PINS} pins"),
        (f"asport://{UUID}:{SECRET * LONGEST_URI}@example.org:443", f"longer than {LONGEST_URI} characters"),
    ],
)
def test_what_is_refused(text: str, problem: str | None) -> None:
    if problem is None:
        assert parse_uri(text).pins == ()
        return
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)
    assert problem in str(caught.value)
    captured = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    # The first frame is this function's.
    shown = "".join(str(caught.value) + "".join(str(frame.locals) for frame in captured.stack[1:]))
    assert SECRET not in shown
    assert caught.value.__context__ is None


def test_the_password_is_not_shown() -> None:
    uri = parse_uri(f"asport://{UUID}:{SECRET}@example.org:443?pin={WRITTEN_PIN}")
    assert SECRET not in repr(uri)
    assert str(uri) == f"asport://{UUID}:...@example.org:443?pin={WRITTEN_PIN}"
    assert SECRET not in repr(uri.reveal())
    assert SECRET not in repr(uri.options())


def test_a_client_of_a_uri_with_a_pin() -> None:
    tunnel = ClientConfig.from_options(local=8080, **parse_uri(f"{PLAIN}?pin={WRITTEN_PIN}").options()).tunnels[""]
    assert (tunnel.uuid, tunnel.password, tunnel.server) == (UUID, "password", HostPort("example.org", 443))
    assert tunnel.tls.certificates.pins == (PIN,)
    assert tunnel.tls.certificates.pins_only
    assert not tunnel.tls.skip_certificate_verification


def test_a_client_of_a_uri_without_a_pin() -> None:
    tls = ClientConfig.from_options(local=8080, **parse_uri(PLAIN).options()).tunnels[""].tls
    assert not tls.certificates.pins_only
    assert not tls.skip_certificate_verification
