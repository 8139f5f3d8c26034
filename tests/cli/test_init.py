"""The command ``init``: what it writes and prints. That the result runs is in tests/e2e/test_trust.py."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from asport_sync.cli import main
from asport_sync.config import HostPort, load_client, load_server, parse_uri
from asport_sync.config.formats import parse
from asport_sync.config.ports import PortSet
from asport_sync.errors import AsportError, ConfigError
from asport_sync.runtime import files
from asport_sync.trust import create_server
from tests.config.test_schema import problems
from tests.support.certificates import pin_of

FILES = {"server.yaml", "client.yaml", "certificate.pem", "private_key.pem"}


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "example.org", "--directory", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each.name for each in tmp_path.iterdir()} == FILES
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
    uri = parse_uri(said["uri"])
    assert uri.server == HostPort("example.org", 443)
    assert said["pin"] == pin_of(tmp_path / "certificate.pem")

    server = load_server(tmp_path / "server.yaml")
    (user,) = server.proxies[0].users
    assert (user.uuid, user.password, user.name) == (uri.uuid, uri.password, "first")
    assert server.server == HostPort("::", 443)
    assert server.proxies[0].allow_ports == PortSet([(30000, 32767)])
    for side in ("server", "client"):
        text = (tmp_path / f"{side}.yaml").read_text()
        assert text.startswith(f"# yaml-language-server: $schema={side}.schema.json\n")
        assert not problems(side, parse(text, ".yaml", side).tree)

    (client,) = load_client(tmp_path / "client.yaml").tunnels.values()
    assert (client.uuid, client.password, client.server) == (uri.uuid, uri.password, uri.server)
    assert client.tls.certificates.pins == uri.pins
    assert client.tls.certificates.pins_only


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.org", x509.DNSName("example.org")),
        ("192.0.2.1", x509.IPAddress(ipaddress.ip_address("192.0.2.1"))),
        ("2001:db8::1", x509.IPAddress(ipaddress.ip_address("2001:db8::1"))),
        ("[2001:db8::1]", x509.IPAddress(ipaddress.ip_address("2001:db8::1"))),
        ("müller.example", x509.DNSName("xn--mller-kva.example")),
        (f"{'a' * 60}.{'b' * 60}.example", x509.DNSName(f"{'a' * 60}.{'b' * 60}.example")),
    ],
)
def test_the_certificate(tmp_path: Path, host: str, name: x509.GeneralName) -> None:
    created = create_server(host, 4433, directory=tmp_path, days=10)
    found = x509.load_pem_x509_certificate(created.certificate.read_bytes())
    assert list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [name]
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    now = datetime.datetime.now(datetime.timezone.utc)
    assert now + datetime.timedelta(days=9) < created.not_after < now + datetime.timedelta(days=11)
    assert f"valid until {created.not_after:%Y-%m-%d}" in created.server_file.read_text()
    (client,) = load_client(created.client_file).tunnels.values()
    assert client.server == created.uri.server == parse_uri(created.uri.reveal()).server


@pytest.mark.parametrize("existing", sorted(FILES))
def test_nothing_is_overwritten(tmp_path: Path, existing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / existing).symlink_to("nowhere")
    assert main(["init", "example.org", "--directory", str(tmp_path)]) == 1
    assert f"{tmp_path / existing}: exists already, and nothing is overwritten" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == [existing]


def test_all_existing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["init", "example.org", "--directory", str(tmp_path)]
    assert main(arguments) == 0
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 1
    (said,) = capsys.readouterr().err.splitlines()
    names, _, advice = said.removeprefix("asport-sync: ").partition(": ")
    assert set(names.split(", ")) == {str(tmp_path / name) for name in FILES}
    assert advice == "exist already, and nothing is overwritten: choose another directory"
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_file_made_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.yaml").write_text("precious")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ConfigError, match=r"client\.yaml: exists already, and nothing is overwritten"):
        create_server("example.org", directory=tmp_path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("client.yaml", "precious")]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of the files cannot be written."""
    written = []

    def write(descriptor: int, content: bytes) -> int:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return os.write(descriptor, content)

    monkeypatch.setattr(files, "_write", write)
    with pytest.raises(OSError, match="No space left"):
        create_server("example.org", directory=tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_created(tmp_path: Path) -> None:
    create_server("example.org", directory=tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_each_server_has_secrets_of_its_own(tmp_path: Path) -> None:
    one, two = (create_server("example.org", directory=tmp_path / name).uri for name in "ab")
    assert one.uuid != two.uuid
    assert one.password != two.password
    assert one.pins != two.pins


def test_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "example.org", "--port", "4433", "--directory", str(tmp_path), "--user", "alice"]) == 0
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line.startswith("asport://"))
    assert parse_uri(line).server == HostPort("example.org", 4433)
    assert said.out.count(parse_uri(line).password) == 1
    assert said.err == ""
    assert load_server(tmp_path / "server.yaml").proxies[0].users[0].name == "alice"


def test_the_qr_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "example.org", "--directory", str(tmp_path), "--qr"]) == 0
    out = capsys.readouterr().out
    code = out[out.index("asport://") :].partition("\n\n")[2]
    assert len(code.splitlines()) > 20
    assert set(code) <= set(" \n█▀▄") or "\x1b[" in code


def test_the_qr_code_without_segno(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    assert main(["init", "example.org", "--directory", str(tmp_path), "--qr"]) == 1
    assert "--qr needs the package segno: pip install 'asport-sync[qr]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(AsportError, match="install cryptography"):
        create_server("example.org", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["0.0.0.0"], "clients cannot connect to 0.0.0.0"),
        (["::"], "clients cannot connect to ::"),
        (["-- x"], "neither a DNS name nor an IP address"),
        (["https://example.org"], "not the URL"),
        (["example.org:443"], "is not an IPv6 address"),
        (["example.org", "--port", "0"], "from 1 to 65535"),
        (["example.org", "--days", "0"], "from 1 to 36500"),
        (["example.org", "--user", "a b"], "is not a name of a user"),
        (["example.org", "--user", "00112233-4455-6677-8899-aabbccddeeff"], "a UUID is not a name of a user"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host, *options = arguments
    assert main(["init", *options, "--directory", str(tmp_path), "--", host]) == 1
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
