"""A client finds the certificate authorities of every kind of system, and connects to no server without any.

Each system is this machine's files with others in their place, in a mount namespace of the client's own.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asport_sync import Server
from asport_sync.host.authorities import BUNDLES, GNUTLS
from tests.e2e.tunnels import READY_TIMEOUT, client_options, command, server_options, write_config
from tests.support.certificates import Authority, Certificate
from tests.support.process import Process
from tests.support.services import Address

END = 30.0

# A mount namespace without the certificates of this machine. $1: the file to put in their place; $2: its content, or
# empty; $3: a folder for the changes.
SYSTEM = """
mount --make-rprivate /
mount -t tmpfs tmpfs "$3"
for each in etc var; do
    mkdir "$3/$each" "$3/$each.work"
    mount -t overlay -o "lowerdir=/$each,upperdir=$3/$each,workdir=$3/$each.work" overlay "/$each"
done
rm -rf /etc/ssl /etc/pki /etc/ca-certificates /var/lib/ca-certificates
if [ -n "$2" ]; then
    mkdir -p "$(dirname "$1")"
    cp "$2" "$1"
fi
shift 3
exec "$@"
"""

# Without a certifi that the tests have installed.
WITHOUT_CERTIFI = "import sys; sys.modules['certifi'] = None; from asport_sync.cli import main; sys.exit(main())"


@functools.cache
def unavailable() -> str | None:
    """Why there can be no such namespace; None: there can."""
    program = ["unshare", "--mount", "sh", "-ec", SYSTEM, "sh", "", "", "/mnt", "true"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=END)
    return done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else None


def with_system(folder: Path, place: Path, content: Path | None, argv: list[str]) -> list[str]:
    """The command line of a program on a system with this one file."""
    if (reason := unavailable()) is not None:
        pytest.skip(f"no mount namespace with other certificates: {reason}")
    changes = folder / "changes"
    changes.mkdir()
    arguments = [str(place), str(content or ""), str(changes), *argv]
    return ["unshare", "--mount", "sh", "-ec", SYSTEM, "sh", *arguments]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def issued(tmp_path: Path) -> Certificate:
    """A certificate of a private authority."""
    return Authority().issue(tmp_path / "issued")


@pytest.fixture
def server(issued: Certificate) -> Iterator[Address]:
    with Server(**server_options(issued)) as running:
        yield running.address


@pytest.fixture
def client_file(tmp_path: Path, issued: Certificate, server: Address) -> Path:
    """A client that trusts the system's authorities, and no other."""
    options = client_options(issued, server, ("127.0.0.1", 9))
    del options["certificates"]
    return write_config(tmp_path, "client", options)


def connects(argv: list[str], **environment: str) -> str:
    """Runs a client until its port is public; returns where it says its authorities are from."""
    with Process(argv, name="client", environment=environment) as client:
        client.wait_for("is public on port", READY_TIMEOUT)
        return client.wait_for("the system's certificate authorities: (.*)", READY_TIMEOUT)[1]


def run(file: Path) -> list[str]:
    return command("client", "run", "-vv", "-c", str(file))


@pytest.mark.parametrize("place", [each for each in BUNDLES if each.parts[1] in ("etc", "var")], ids=str)
def test_the_bundle_of_a_distribution(place: Path, client_file: Path, issued: Certificate, tmp_path: Path) -> None:
    """The GnuTLS of this machine may have one of them as its default store."""
    source = connects(with_system(tmp_path, place, issued.trusted, run(client_file)))
    assert source in (str(place), GNUTLS)


def test_certifi(client_file: Path, issued: Certificate, tmp_path: Path) -> None:
    (tmp_path / "certifi.py").write_text(f"def where():\n    return {str(issued.trusted)!r}\n")
    argv = with_system(tmp_path, Path("/none"), None, run(client_file))
    assert connects(argv, PYTHONPATH=str(tmp_path)) == str(issued.trusted)


def test_a_file_of_the_environment(client_file: Path, issued: Certificate) -> None:
    source = connects(run(client_file), SSL_CERT_FILE=str(issued.trusted))
    assert source == f"SSL_CERT_FILE={issued.trusted}"


def test_a_folder_of_the_environment(client_file: Path, issued: Certificate, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "12345678.0").symlink_to(issued.trusted)
    assert connects(run(client_file), SSL_CERT_DIR=str(folder)) == f"SSL_CERT_DIR={folder}"


def test_the_environment_replaces_those_of_the_system(client_file: Path, issued: Certificate, tmp_path: Path) -> None:
    """The server is known to the system, and not to the authority that the environment names."""
    other = Authority().issue(tmp_path / "other")
    argv = with_system(tmp_path, BUNDLES[0], issued.trusted, run(client_file))
    with Process(argv, name="client", environment={"SSL_CERT_FILE": str(other.trusted)}) as client:
        client.wait_for("server certificate rejected", READY_TIMEOUT)
        assert "is public" not in client.output()


@pytest.mark.parametrize("action", ["run", "check"])
def test_none_is_an_error_and_no_connection(action: str, client_file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", WITHOUT_CERTIFI, "client", action, "-c", str(client_file)]
    with Process(with_system(tmp_path, Path("/none"), None, argv), name="client") as client:
        assert client.wait(END) == 1
        (line,) = client.output().splitlines()
        assert re.search("certificates: no certificate authority to verify the server with: .*ca-certificates", line)


def test_the_doctor_says_where_they_are_from(client_file: Path, issued: Certificate, tmp_path: Path) -> None:
    argv = command("doctor", "client", "--json", "-c", str(client_file))
    with Process(argv, name="doctor", environment={"SSL_CERT_FILE": str(issued.trusted)}) as doctor:
        doctor.wait(END)
        found = {each["id"]: each for each in json.loads(doctor.output())["findings"]}
    assert found["authorities"]["found"] == f"of the system: SSL_CERT_FILE={issued.trusted}"
    assert found["certificate"]["state"] == "ok"


def test_the_doctor_says_that_there_are_none(client_file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", WITHOUT_CERTIFI, "doctor", "client", "--json", "-c", str(client_file)]
    with Process(with_system(tmp_path, Path("/none"), None, argv), name="doctor") as doctor:
        assert doctor.wait(END) == 1
        found = {each["id"]: each for each in json.loads(doctor.output())["findings"]}
    assert "no certificate authority" in found["trust-unusable"]["found"]
    assert found["handshake"]["state"] == "skipped"
