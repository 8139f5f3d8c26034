"""The command ``doctor``: where its configuration comes from, what it prints, its exit status."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from asport_sync import Server
from asport_sync.cli import main
from asport_sync.config import parse_uri
from asport_sync.doctor import CHECKS, PROBLEMS, path
from tests.doctor.faults import answering
from tests.e2e.tunnels import PASSWORD, USER, client_options, command, server_options, write_config
from tests.support.certificates import Certificate, pin_of
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import TcpEcho

SECRET = PASSWORD.replace(" ", "%20")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements, and no configuration but the test's."""
    monkeypatch.setattr(path, "_DURATION", 0.1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.delenv("ASPORT_URI", raising=False)


def uri_of(certificate: Certificate, server: Server, password: str = SECRET) -> str:
    return f"asport://{USER}:{password}@127.0.0.1:{server.address[1]}?pin={pin_of(certificate.certificate)}"


def test_a_file(certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(**server_options(certificate)) as server, TcpEcho() as local:
        options = client_options(certificate, server.address, local.address, network="tcp")
        write_config(tmp_path, "client", options)
        assert main(["doctor", "client"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "0 problems found"
        for line in lines[:-1]:
            assert re.fullmatch(r"(ok|skipped) +[a-z-]+[0-9]? +\S.*", line)
            assert line.split()[1] in CHECKS
        options["tunnels"] = {"web": {"password": "wrong"}}
        write_config(tmp_path, "client", options)
        assert main(["doctor", "client"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("error")]
    assert lines[place].startswith("error    authentication-failed web: authentication failed")
    assert lines[place + 1] == f"         what to do: {PROBLEMS['authentication-failed'].cure}"
    assert lines[-1] == "1 problem found"


@pytest.mark.parametrize("place", ["argument", "variable", "input"])
def test_a_uri(
    certificate: Certificate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with Server(**server_options(certificate)) as server:
        uri = uri_of(certificate, server)
        assert parse_uri(uri).password == PASSWORD
        arguments = {"argument": ["-c", uri], "variable": [], "input": ["-c", "-"]}[place]
        if place == "variable":
            monkeypatch.setenv("ASPORT_URI", uri)
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{uri}\n" if place == "input" else ""))
        assert main(["doctor", "client", *arguments, "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert (result["side"], result["problems"]) == ("client", 0)
    states = {each["id"]: each["state"] for each in result["findings"]}
    assert states["local"] == "skipped"
    assert states["tcp"] == states["certificate"] == "ok"
    figures = {each["id"]: each["figures"] for each in result["findings"]}
    assert set(figures["path"]) >= {"rtt", "min_rtt", "mtu"}
    assert figures["tcp"]["rate"] > 0
    assert figures["local"] == {}
    assert PASSWORD not in output.out + output.err
    assert SECRET not in output.out + output.err


@pytest.mark.parametrize("network", ["", "tcp"])
def test_a_uri_and_a_service_that_has_tcp_only(
    certificate: Certificate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    with Server(**server_options(certificate)) as server, TcpEcho() as local:
        monkeypatch.setenv("ASPORT_LOCAL", f"127.0.0.1:{local.address[1]}")
        if network:
            monkeypatch.setenv("ASPORT_NETWORK", network)
        assert main(["doctor", "client", "-c", uri_of(certificate, server)]) == 0
    output = capsys.readouterr().out
    assert "accepts TCP connections" in output
    assert ("no program has the UDP port" in output) == (not network)


@pytest.mark.parametrize(
    ("network", "tunnel", "variable", "cure"),
    [
        ("both", "", "", "start the service; or, if it has TCP only, set network: tcp in other.json"),
        ("both", "web", "", "start the service; or, if it has TCP only, set tunnels.web.network: tcp in other.json"),
        ("udp", "", "both", "start the service; or, if it has TCP only, set ASPORT_NETWORK to tcp"),
        ("udp", "", "", "start the service, or correct the key local"),
    ],
)
def test_the_cure_fits_where_the_network_is_from(
    certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network: str,
    tunnel: str,
    variable: str,
    cure: str,
) -> None:
    closed = ("127.0.0.1", free_port())
    options = client_options(certificate, closed, closed, network=network)
    if tunnel:
        options["tunnels"] = {tunnel: {name: options.pop(name) for name in ("local", "network")}}
    if variable:
        monkeypatch.setenv("ASPORT_NETWORK", variable)
    write_config(tmp_path, "other", options)
    assert main(["doctor", "client", "-c", "other.json"]) == 1
    assert re.search(rf"warning +local-udp .*\n +what to do: {re.escape(cure)}\n", capsys.readouterr().out)


def test_a_file_comes_before_the_variable(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASPORT_URI", "no URI")
    closed = ("127.0.0.1", free_port())
    file = write_config(tmp_path, "other", client_options(certificate, closed, closed))
    assert main(["doctor", "client", "-c", str(file)]) == 1
    assert "udp-closed" in capsys.readouterr().out


def test_json(certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(tmp_path, "server", server_options(certificate))
    file.chmod(0o644)
    assert main(["doctor", "server", "--json"]) == 1
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (result["side"], result["problems"]) == ("server", 1)
    for each in result["findings"]:
        assert set(each) == {"id", "state", "found", "cure", "tunnel", "figures"}
        assert each["id"] in (CHECKS if each["state"] in ("ok", "skipped") else PROBLEMS)
    (problem,) = [each for each in result["findings"] if each["state"] == "warning"]
    assert problem["id"] == "files-exposed"


@pytest.mark.parametrize(
    "arguments",
    [
        ["client"],
        ["client", "-c", "none.yaml"],
        ["client", "-c", f"asport://{USER}:{SECRET}@"],
        ["client", "-c", "-"],
        ["server", "-c", "wrong.json"],
    ],
    ids=" ".join,
)
def test_it_cannot_run(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.json").write_text("{}")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["doctor", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("asport-sync: ")
    assert SECRET not in output.err


def test_an_interrupt(certificate: Certificate, tmp_path: Path) -> None:
    """In the midst of the slowest step: a connection to a server that says nothing."""
    with answering(lambda _: None) as silent:
        file = write_config(tmp_path, "client", client_options(certificate, silent, silent, network="udp"))
        with Process(command("doctor", "client", "-c", str(file))) as process:
            process.wait_for("^ok +route ")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert "Traceback" not in process.output()


def test_cryptography_is_imported_for_certificates_only() -> None:
    program = "import sys, asport_sync.doctor, asport_sync.cli.main; sys.exit('cryptography' in sys.modules)"
    with Process([sys.executable, "-c", program]) as process:
        assert process.wait(60) == 0, process.output()


def test_texts_of_the_network_cannot_control_the_terminal(
    certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asport_sync.cli import doctor
    from asport_sync.doctor import Finding, State

    doctor._print(Finding("local", State.OK, "a \x1b[2J b"))
    assert "\x1b" not in capsys.readouterr().out
