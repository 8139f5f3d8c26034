"""What comes from the network before anything is verified: answers to the probe, certificates."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.config import written_pin
from asport_sync.doctor.certificate import Chain
from asport_sync.doctor.reachability import negotiated
from tests.doctor.faults import negotiation
from tests.support.certificates import Certificate, pin_of

OURS, THEIRS = b"ours....", b"theirs.."
PROBE = b"\xc0\x1a\x2a\x3a\x4a\x08" + THEIRS + b"\x08" + OURS


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_versions_are_read(versions: list[int]) -> None:
    assert negotiated(negotiation(PROBE, *versions), OURS, THEIRS) == tuple(versions)


@given(st.binary(max_size=100))
def test_anything_else_is_no_version_negotiation(data: bytes) -> None:
    assert negotiated(data, OURS, THEIRS) is None


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_answer(place: int, change: int) -> None:
    answer = bytearray(negotiation(PROBE, 1, 2))
    answer[place % len(answer)] ^= change
    found = negotiated(bytes(answer), OURS, THEIRS)
    assert found is None or len(found) == 2


def test_an_answer_without_versions() -> None:
    assert negotiated(negotiation(PROBE), OURS, THEIRS) is None
    assert negotiated(negotiation(PROBE, 1)[:-1], OURS, THEIRS) is None


def test_a_chain_is_read(certificate: Certificate) -> None:
    der = x509.load_pem_x509_certificate(certificate.certificate.read_bytes()).public_bytes(Encoding.DER)
    chain = Chain(der * 3)
    assert len(chain.certificates) == 3
    assert chain.pin is not None
    assert written_pin(chain.pin) == pin_of(certificate.certificate)
    assert Chain.of_file(certificate.certificate.read_bytes()).certificates == chain.certificates[:1]
    assert chain.is_for("LOCALHOST.")
    assert chain.is_for("127.0.0.1")
    assert not chain.is_for("example.org")


def look(chain: Chain) -> None:
    """Uses everything of it."""
    assert isinstance(chain.shown_names, str)
    assert isinstance(chain.issuer, str)
    assert chain.issuer.isprintable()
    assert chain.shown_names.isprintable()
    assert chain.pin is None or len(chain.pin) == 32
    assert (chain.first_moment is None) == (chain.last_moment is None)
    chain.is_for("localhost")


@given(st.binary(max_size=200))
def test_a_chain_that_is_none(content: bytes) -> None:
    look(Chain(content))


@given(st.data())
def test_a_changed_certificate(certificate: Certificate, data: st.DataObject) -> None:
    der = bytearray(x509.load_pem_x509_certificate(certificate.certificate.read_bytes()).public_bytes(Encoding.DER))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    look(Chain(bytes(der)))
