"""Local services become public with one command, or with one call."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import asport_sync
from asport_sync import HostPort, Server
from asport_sync.cli import main
from asport_sync.client.directory import MAX_REQUESTS
from asport_sync.config import ServerUri
from tests.e2e.tunnels import (
    PASSWORD,
    USER,
    client_options,
    command,
    server_options,
    write_config,
)
from tests.support.certificates import Certificate, pin_of
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.services import Address, TcpEcho, UdpEcho
from tests.support.terminal import Terminal
from tests.support.traffic import connect, echo, receive_exactly
from tests.support.waiting import wait_until

START = 60.0  # seconds in which a command must have printed something; it starts in a fraction of one
END = 60.0  # seconds in which a command must end once it is asked to


def uri_of(server: Server, certificate: Certificate, password: str = PASSWORD) -> str:
    """What ``asport-sync init`` prints."""
    pin = base64.b64decode(pin_of(certificate.certificate).removeprefix("sha256//"))
    return ServerUri(UUID(USER), password, HostPort(*server.address), (pin,)).reveal()


@contextlib.contextmanager
def server_and_file(
    certificate: Certificate, directory: Path, /, client: dict[str, Any] | None = None, **changes: Any
) -> Iterator[tuple[Server, Path]]:
    """A server, and the file of a client without a local service."""
    with Server(**server_options(certificate, **changes)) as server:
        options = client_options(certificate, server.address, ("127.0.0.1", 9), **(client or {}))
        del options["local"]
        yield server, write_config(directory, "client", options)


def exposing(file: Path, *arguments: str) -> Process:
    """``asport-sync expose``, not started yet."""
    return Process(command("expose", "-c", str(file), "--port", str(free_port()), *arguments), name="expose")


def curl(url: str, *options: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "30", *options, url], check=True, capture_output=True, text=True
    ).stdout


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page\n")

    def log_message(self, *args: object) -> None:
        pass

    def address_string(self) -> str:  # a unix socket has none
        return ""


@contextlib.contextmanager
def served(server: socketserver.BaseServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server, served(server):
        yield server.server_port


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_web_server_is_public_until_a_signal(
    certificate: Certificate, tmp_path: Path, number: signal.Signals
) -> None:
    with (
        server_and_file(certificate, tmp_path) as (_, file),
        web_server() as port,
        exposing(file, str(port)) as process,
    ):
        found = process.wait_for(r"^(\d+) is public: (127\.0\.0\.1:\d+) \(TCP\); .*: (http://\S+)\n", START)
        assert (found[1], found[3]) == (str(port), f"http://{found[2]}/")
        assert curl(found[3]) == "a page\n"
        process.send_signal(number)
        assert process.wait(END) == 0, process.description()
        assert process.output() == found[0]  # stdout is no terminal: no live line


def test_a_directory(certificate: Certificate, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "page.html").write_text("a page")
    (site / ".env").write_text("a secret")
    (site / "private_key.pem").write_text("a secret")
    (site / "private_key.pem").chmod(0o600)
    (site / "outside").symlink_to("/etc/passwd")
    with server_and_file(certificate, tmp_path) as (_, file), exposing(file, f"dir:{site}") as process:
        url = process.wait_for(r"is public: 127\.0\.0\.1:\d+ \(TCP\) (http://\S+)", START)[1]
        assert (
            f"asport-sync: warning: dir:{site}: anyone who has the address can read every file in it"
            in process.output()
        )
        assert f"warning: dir:{site}: 1 private file is not served" in process.output()
        assert curl(f"{url}page.html") == "a page"
        assert re.findall(r'href="([^"]*)"', curl(url)) == ["./page.html"]
        for name in (".env", "private_key.pem", "outside", "../client.json"):
            status = curl(f"{url}{name}", "--path-as-is", "-o", os.devnull, "-w", "%{http_code}")
            assert status == "404", name


def test_a_visitor_that_sends_nothing_keeps_no_others_out_of_a_directory(
    certificate: Certificate, tmp_path: Path
) -> None:
    """Neither before a request nor after its answer."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "page.html").write_text("a page")
    with server_and_file(certificate, tmp_path) as (_, file), contextlib.ExitStack() as visitors:
        exposed = visitors.enter_context(asport_sync.expose(f"dir:{site}", to=file))
        for _ in range(MAX_REQUESTS + 1):
            visitors.enter_context(connect(exposed.address))
            answered = visitors.enter_context(connect(exposed.address))
            answered.sendall(b"HEAD /page.html HTTP/1.0\r\n\r\n")
            assert answered.recv(12) == b"HTTP/1.0 200"
        assert curl(f"{exposed.url}page.html") == "a page"


def test_several_targets(certificate: Certificate, tmp_path: Path) -> None:
    class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        pass

    path = tmp_path / "app.sock"
    with (
        server_and_file(certificate, tmp_path) as (_, file),
        served(UnixServer(str(path), Page)),
        UdpEcho() as datagrams,
        TcpEcho() as stream,
    ):
        targets = [f"unix:{path}", f"udp:{datagrams.address[1]}", f"127.0.0.1:{stream.address[1]}"]
        arguments = command("expose", "-c", str(file), "--json", *targets)
        with Process(arguments, name="expose") as process:
            process.wait_for(r"(?:\{.*\}\n){3}", START)
            lines = [json.loads(line) for line in process.output().splitlines()]
            assert [line["target"] for line in lines] == targets
            assert [line["network"] for line in lines] == ["tcp", "udp", "tcp"]
            assert curl(lines[0]["url"]) == "a page\n"
            assert lines[1]["url"] is None
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
                visitor.settimeout(START)
                visitor.connect((lines[1]["host"], lines[1]["port"]))
                visitor.send(b"hello")
                assert visitor.recv(100) == b"hello"
            echo((lines[2]["host"], lines[2]["port"]), b"hello")


def test_which_addresses_are_known_to_speak_http(certificate: Certificate, tmp_path: Path) -> None:
    targets = ["8080", "192.0.2.1:80", f"unix:{tmp_path}/app.sock", "udp:53", f"dir:{tmp_path}"]
    with (
        server_and_file(certificate, tmp_path) as (_, file),
        Process(command("expose", "-c", str(file), "--network", "tcp", *targets), name="expose") as process,
    ):
        process.wait_for(r"(?:.* is public: .*\n){5}", START)
        port, host, unix, udp, directory = (
            line.removeprefix(f"{target} is public: ")
            for line, target in zip(re.findall(r".* is public: .*", process.output()), targets, strict=True)
        )
    for line in (port, host, unix):
        assert re.fullmatch(r"(127\.0\.0\.1:\d+) \(TCP\); if it speaks HTTP: http://\1/", line)
    assert re.fullmatch(r"127\.0\.0\.1:\d+ \(UDP\)", udp)
    assert re.fullmatch(r"(127\.0\.0\.1:\d+) \(TCP\) http://\1/", directory)


def test_a_service_that_does_not_run_yet(certificate: Certificate, tmp_path: Path) -> None:
    with (
        server_and_file(certificate, tmp_path) as (_, file),
        TcpEcho() as stream,
        UdpEcho() as datagrams,
    ):
        closed, here = free_port(), [str(stream.address[1]), f"udp:{datagrams.address[1]}", "192.0.2.1:9"]
        targets = [str(closed), f"udp:{closed}", f"unix:{tmp_path}/none", *here]
        with Process(command("expose", "-c", str(file), *targets), name="expose") as process:
            process.wait_for(r"(?:.* is public: .*\n){6}", START)
            warnings = re.findall(r"asport-sync: warning: (\S+): no program of this machine has .*", process.output())
            assert warnings == targets[:3]
            assert f"has localhost:{closed} (UDP): visitors are turned away until one listens" in process.output()
        with exposing(file, str(closed)) as process:  # and goes on
            public = int(process.wait_for(r"is public: 127\.0\.0\.1:(\d+)", START)[1])
            with TcpEcho(port=closed):
                assert echo(("127.0.0.1", public), b"hello") == b"hello"


def test_a_file_with_a_password_that_others_can_read(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (_, file):
        file.chmod(0o644)
        with exposing(file, "9") as process:
            process.wait_for("is public", START)
            assert f"asport-sync: warning: {file} holds a secret" in process.output()


def test_the_live_line(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (_, file), TcpEcho() as service:
        arguments = command("expose", "-c", str(file), str(service.address[1]))
        with Terminal(arguments) as terminal:
            port = int(terminal.wait_for(r"is public: 127\.0\.0\.1:(\d+) \(TCP\); .*: http://\S+\r\n", START)[1])
            assert re.search(r"connecting to 127\.0\.0\.1:\d+\r", terminal.shown())
            terminal.wait_for(r"\r\x1b\[K0 connections, in 0 B, out 0 B, RTT \d+\.\d ms\r", START)
            with connect(("127.0.0.1", port)) as visitor:
                visitor.sendall(bytes(3000))
                assert receive_exactly(visitor, 3000) == bytes(3000)
                terminal.wait_for(r"\x1b\[K1 connection, in 2\.9 KiB, out 2\.9 KiB, RTT \d+\.\d ms\r", START)
            terminal.wait_for(r"\x1b\[K0 connections, in 2\.9 KiB, out 2\.9 KiB.*\r", START)
            terminal.type("\x03")
            assert terminal.wait(END) == 0
            assert re.search(r"\r\x1b\[K0 connections, in 2\.9 KiB, out 2\.9 KiB, RTT [\d.]+ ms\r\n$", terminal.shown())


def test_the_live_line_is_drawn_at_most_twice_a_second(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (_, file), TcpEcho() as service:
        with Terminal(command("expose", "-c", str(file), str(service.address[1]))) as terminal:
            port = int(terminal.wait_for(r"is public: 127\.0\.0\.1:(\d+)", START)[1])
            begin, before = time.monotonic(), terminal.shown().count("\r\x1b[K")
            with connect(("127.0.0.1", port)) as visitor:
                while time.monotonic() < begin + 2:
                    visitor.sendall(b"hello")
                    assert receive_exactly(visitor, 5) == b"hello"
            drawn = terminal.shown().count("\r\x1b[K") - before
            assert 1 <= drawn <= 2 * (time.monotonic() - begin) + 2


def test_a_narrow_terminal(certificate: Certificate, tmp_path: Path) -> None:
    """A line that wraps could not be replaced."""
    with server_and_file(certificate, tmp_path) as (_, file):
        with Terminal(command("expose", "-c", str(file), "9"), columns=20) as terminal:
            terminal.wait_for(r"\r\x1b\[K0 connections, in 0\r", START)


def test_a_terminal_that_is_closed_ends_it(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (server, file):
        with Terminal(command("expose", "-c", str(file), "9")) as terminal:
            terminal.wait_for("0 connections", START)
            terminal.hang_up()
            wait_until(lambda: not server.stats().connections, END, "the client has left")


def test_a_lost_connection_is_shown_and_made_again(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (server, file):
        address = server.address
        with Terminal(command("expose", "-c", str(file), "--port", str(free_port()), "9")) as terminal:
            terminal.wait_for("0 connections", START)
            server.stop()
            terminal.wait_for(r"\x1b\[K0 connections, in 0 B, out 0 B, connecting again\r", START)
            with Server(**server_options(certificate, server=f"127.0.0.1:{address[1]}")):
                terminal.wait_for(r"connecting again\r(?s:.*)0 connections, in 0 B, out 0 B, RTT [\d.]+ ms\r", END)
            assert terminal.shown().count("is public") == 1  # the address is the same


def failed(file: Path, *arguments: str) -> str:
    """The only line that a command prints that fails."""
    done = subprocess.run(
        command("expose", "-c", str(file), *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("client", "arguments", "line"),
    [
        (
            {"password": "wrong"},
            ["8080"],
            "authentication failed: unknown UUID or wrong password: compare them with the server's file, or get a new "
            "URI: asport-sync user rotate, on the server",
        ),
        ({}, ["8080", "--port", "1"], r"port denied: .*: ask for other ports with --port, or leave it out; .*"),
        ({}, ["8080", "--network", "both"], r"network denied: .*: ask for another network with --network; .*"),
        ({"certificates": {}}, ["8080"], r"server certificate rejected.*; what to do: .*"),
        ({}, ["8080", "--port", "70000"], r"port\[0\]: expected a port from 1 to 65535, not 70000"),
        ({}, ["80 80"], r'"80 80": expected "host:port", .*'),
        ({}, ["dir:/missing"], r"/missing: not a directory that can be read: No such file or directory"),
    ],
)
def test_an_error_is_one_line_with_its_cure(
    certificate: Certificate, tmp_path: Path, client: dict[str, Any], arguments: list[str], line: str
) -> None:
    proxy = {"allow_network": "tcp"}
    with server_and_file(certificate, tmp_path, client, proxy=proxy) as (_, file):
        said = failed(file, *arguments)
        assert re.fullmatch(f"asport-sync: {line}", said), said
        assert "wrong" not in said.replace("or wrong password", "")


UNREACHABLE = """
import sys
from asport_sync.cli import expose, main
expose.TIMEOUT = 3.0
sys.exit(main(sys.argv[1:]))
"""


def test_a_server_that_does_not_answer(certificate: Certificate, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        file = write_config(
            tmp_path, "client", client_options(certificate, silent.getsockname(), ("127.0.0.1", 9), timeout="1s")
        )
        arguments = [sys.executable, "-c", UNREACHABLE, "expose", "-c", str(file), "8080"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("asport-sync: ")
        assert line.endswith(": is the server running, and does every firewall on the way let its UDP port through?")


def test_a_signal_before_anything_is_public(certificate: Certificate, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        file = write_config(tmp_path, "client", client_options(certificate, silent.getsockname(), ("127.0.0.1", 9)))
        with exposing(file, "8080") as process:
            silent.settimeout(START)
            assert silent.recv(2000)  # it has begun to connect
            process.send_signal(signal.SIGINT)
            assert process.wait(END) == 0, process.description()
            assert process.output() == ""


@pytest.mark.parametrize("how", ["argument", "environment", "standard input", "option"])
def test_a_uri_names_the_server(certificate: Certificate, how: str) -> None:
    """Its pin takes the place of an authority."""
    with Server(**server_options(certificate)) as server, TcpEcho() as service:
        uri = uri_of(server, certificate)
        words = {"argument": [uri], "standard input": ["-"], "option": ["-c", uri]}.get(how, [])
        environment = {**os.environ, **({"ASPORT_URI": uri} if how == "environment" else {})}
        with subprocess.Popen(
            command("expose", str(service.address[1]), *words, "--json"),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            if how == "standard input":
                process.stdin.write(f"{uri}\n")
                process.stdin.flush()
            said = json.loads(process.stdout.readline())
            echo((said["host"], said["port"]), b"hello")
            process.send_signal(signal.SIGTERM)
            assert process.wait(END) == 0
            assert process.stderr.read() == ""


def test_another_key_than_that_of_the_uri(certificate: Certificate, authority_certificate: Certificate) -> None:
    with Server(**server_options(certificate)) as server:
        uri = uri_of(server, authority_certificate)
        done = subprocess.run(
            command("expose", "8080"),
            env={**os.environ, "ASPORT_URI": uri},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"asport-sync: server certificate rejected.*pin.*\n", done.stderr), done.stderr


def test_trust_on_first_use(certificate: Certificate, tmp_path: Path) -> None:
    with Server(**server_options(certificate)) as server, TcpEcho() as service:
        uri = uri_of(server, certificate).partition("?")[0]
        environment = {"ASPORT_URI": uri, "XDG_STATE_HOME": str(tmp_path)}
        arguments = command("expose", str(service.address[1]), "--port", str(free_port()), "--trust-on-first-use")
        with Process(arguments, name="expose", environment=environment) as process:
            port = process.wait_for(r"is public: 127\.0\.0\.1:(\d+)", START)[1]
            echo(("127.0.0.1", int(port)), b"hello")
        assert pin_of(certificate.certificate) in (tmp_path / "asport-sync" / "known_servers").read_text()


@pytest.mark.parametrize(
    ("environment", "arguments", "problem"),
    [
        ({"ASPORT_URI": "asport://x"}, ["8080"], "the URI has no @ before its host.*"),
        ({"ASPORT_URI": "client.yaml"}, ["8080"], "expected a URI, .*"),
        ({"ASPORT_URI": ""}, ["8080"], "no client configuration: .*; or give a URI, or set ASPORT_URI to one"),
        ({}, ["8080", "-"], "expected a URI in the first line of standard input"),
        (
            {"ASPORT_URL": "x"},
            ["8080", "-c", f"asport://{USER}:x@127.0.0.1:9"],
            r"environment variable ASPORT_URL: no key has this name: did you mean ASPORT_URI\?",
        ),
        ({}, ["8080", "asport:/x"], "expected a URI, .*"),
        (
            {"ASPORT_URI": f"asport://{USER}:x@127.0.0.1:9?pin=sha256//{'A' * 43}="},
            ["8080", "--trust-on-first-use"],
            "--trust-on-first-use is for a URI without pin",
        ),
    ],
)
def test_nothing_names_the_server(
    tmp_path: Path, environment: dict[str, str], arguments: list[str], problem: str
) -> None:
    folders = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
    done = subprocess.run(
        command("expose", *arguments),
        env={**os.environ, **folders, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"asport-sync: {problem}\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["asport://x"], "no TARGET: expected what is to become public, such as 8080"),
        (["8080", "asport://x", "-c", "client.yaml"], "more than one server: expected a URI, or -c"),
        (["8080", "asport://x", "-"], "more than one server: expected a URI, or -c"),
        (["8080", "--port", "a"], "argument --port: expected a port, or two with a hyphen between them"),
        ([], "the following arguments are required: TARGET|URI"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["expose", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"asport-sync expose: error: {problem}\n")


# --- the call ---------------------------------------------------------------------------------------------------------


def test_a_program_exposes_a_service(certificate: Certificate, tmp_path: Path) -> None:
    port = free_port()
    with (
        server_and_file(certificate, tmp_path) as (_, file),
        TcpEcho() as service,
        asport_sync.expose(service.address, to=file, port=port) as exposed,
    ):
        assert exposed.address == ("127.0.0.1", port)
        assert exposed.url == f"http://127.0.0.1:{port}/"
        (only,) = exposed.services
        assert (only.target, only.network, only.address) == (f"127.0.0.1:{service.address[1]}", "tcp", exposed.address)
        assert repr(only) == f"<ExposedService '{only.target}': {exposed.address[0]} port {port}>"
        echo(exposed.address, b"hello")
        assert exposed.client.stats().tunnels[""].totals.payload_sent == 5
        exposed.close()
        assert not exposed.client.running
        assert exposed.address == ("127.0.0.1", port)


def test_the_server_is_named_as_the_caller_has_named_it(certificate: Certificate, tmp_path: Path) -> None:
    """A name may have other addresses elsewhere, and it is what a visitor can remember."""
    with server_and_file(certificate, tmp_path) as (server, _):
        options = client_options(certificate, ("localhost", server.address[1]), ("127.0.0.1", 9))
        config = asport_sync.ClientConfig.from_options(**options)
        with asport_sync.expose("udp:9", 9, to=config) as exposed:
            first, second = exposed.services
            assert exposed.address == first.address == ("localhost", exposed.client.port)
            assert exposed.url is None
            assert second.url == f"http://localhost:{second.address[1]}/"


def test_what_a_program_gets_if_it_fails(certificate: Certificate, tmp_path: Path) -> None:
    """And nothing of it is left, which the check after every test sees."""
    site = tmp_path / "site"
    site.mkdir()
    with server_and_file(certificate, tmp_path) as (server, file):
        with pytest.raises(asport_sync.PortDeniedError):
            asport_sync.expose(f"dir:{site}", to=file, port=1)
        dead: Address = server.address
    with pytest.raises(asport_sync.ConnectError):
        asport_sync.expose(8080, to=file, timeout=0.5)
    assert dead[0] == "127.0.0.1"
    with pytest.raises(asport_sync.ConfigError):
        asport_sync.expose("nothing", to=file)


def test_the_user_is_not_shown(certificate: Certificate, tmp_path: Path) -> None:
    with server_and_file(certificate, tmp_path) as (_, file):
        with asport_sync.expose(9, to=file) as exposed:
            assert USER not in repr(exposed.services)
