"""The file of trust on first use."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from asport_sync.client.known_servers import KnownServers, default_path
from asport_sync.config import HostPort
from asport_sync.errors import CertificateError
from tests.support.certificates import Authority, pin_of, self_signed

SERVER = HostPort("example.org", 443)
OTHER = HostPort("2001:db8::1", 443)


class Chain:
    """The certificates that a server sends, and the pin of the first."""

    def __init__(self, directory: Path) -> None:
        made = Authority().issue(directory)
        chain = (made.certificate, made.trusted)
        self.der = b"".join(
            x509.load_pem_x509_certificate(each.read_bytes()).public_bytes(Encoding.DER) for each in chain
        )
        self.pin = pin_of(made.certificate)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> list[Chain]:
    return [Chain(tmp_path_factory.mktemp("chain")) for _ in range(2)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "known_servers"


def test_a_new_server_is_added_once(file: Path, chains: list[Chain]) -> None:
    known = KnownServers(file)
    assert known.check(SERVER, chains[0].der) == chains[0].pin
    assert known.check(SERVER, chains[0].der) is None
    assert KnownServers(file).check(SERVER._replace(host="EXAMPLE.org"), chains[0].der) is None
    assert known.check(OTHER, chains[1].der) == chains[1].pin
    assert file.read_text().splitlines()[1:] == [
        f"example.org:443 {chains[0].pin}",
        f"[2001:db8::1]:443 {chains[1].pin}",
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_changed_key_is_refused(file: Path, chains: list[Chain]) -> None:
    known = KnownServers(file)
    known.check(SERVER, chains[0].der)
    before = file.read_bytes()
    with pytest.raises(CertificateError) as caught:
        known.check(SERVER, chains[1].der)
    assert re.findall(r"sha256//\S{44}", str(caught.value)) == [chains[1].pin, chains[0].pin]
    assert f"({file}:2)" in str(caught.value)
    assert file.read_bytes() == before


def test_another_port_is_another_server(file: Path, chains: list[Chain]) -> None:
    known = KnownServers(file)
    known.check(SERVER, chains[0].der)
    assert known.check(SERVER._replace(port=444), chains[1].der) == chains[1].pin


def test_any_line_of_a_server_counts(file: Path, chains: list[Chain]) -> None:
    file.parent.mkdir()
    file.write_text("# mine\n\n" + "".join(f"example.org:443 {each.pin}  # {each.pin}\n" for each in chains))
    file.chmod(0o600)
    for each in chains:
        assert KnownServers(file).check(SERVER, each.der) is None


def test_a_line_without_its_end(file: Path, chains: list[Chain]) -> None:
    file.parent.mkdir()
    file.write_text(f"example.org:443 {chains[0].pin}")
    file.chmod(0o600)
    assert KnownServers(file).check(OTHER, chains[1].der) == chains[1].pin
    assert KnownServers(file).check(SERVER, chains[0].der) is None


@pytest.mark.parametrize(
    "line", ["example.org:443", "example.org sha256//x", "x sha256//x y", "example.org:443 sha256//x", "\xff"]
)
def test_an_unusable_file_trusts_nobody(file: Path, chains: list[Chain], line: str) -> None:
    file.parent.mkdir()
    file.write_bytes(b"# a comment\n" + line.encode("latin-1") + b"\n")
    file.chmod(0o600)
    with pytest.raises(CertificateError, match=f"{re.escape(str(file))}:2: expected HOST:PORT and a pin"):
        KnownServers(file).check(OTHER, chains[0].der)


def test_a_file_that_others_may_change_trusts_nobody(file: Path, chains: list[Chain]) -> None:
    known = KnownServers(file)
    known.check(SERVER, chains[0].der)
    file.chmod(0o666)
    with pytest.raises(CertificateError, match=r"cannot be verified: .* can be changed by everyone .* run chmod"):
        known.check(SERVER, chains[0].der)


def test_a_file_that_cannot_be_read_trusts_nobody(tmp_path: Path, chains: list[Chain]) -> None:
    for unusable in (tmp_path, tmp_path / "file" / "known"):
        (tmp_path / "file").touch()
        with pytest.raises(CertificateError, match="the server's key cannot be verified"):
            KnownServers(unusable).check(SERVER, chains[0].der)


def test_clients_share_the_file(file: Path, chains: list[Chain]) -> None:
    servers = [HostPort(f"server{number}", 443) for number in range(20)]
    threads = [threading.Thread(target=KnownServers(file).check, args=(each, chains[0].der)) for each in servers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(file.read_text().splitlines()[1:]) == sorted(f"{each} {chains[0].pin}" for each in servers)


@pytest.mark.parametrize("chain", [b"", b"0", b"no certificate"])
def test_a_server_without_certificate(file: Path, chain: bytes) -> None:
    with pytest.raises(CertificateError):
        KnownServers(file).check(SERVER, chain)
    assert not file.exists()


def test_the_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for state in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", state)
        assert default_path() == tmp_path / ".local" / "state" / "asport-sync" / "known_servers"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_path() == Path("/state/asport-sync/known_servers")


def test_a_self_signed_chain_of_one(file: Path, tmp_path: Path) -> None:
    made = self_signed(tmp_path / "one")
    der = x509.load_pem_x509_certificate(made.certificate.read_bytes()).public_bytes(Encoding.DER)
    assert KnownServers(file).check(SERVER, der) == pin_of(made.certificate)
