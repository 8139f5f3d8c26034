"""docs/cookbook.md: its configurations, with real services and visitors where they are installed or unpacked.

``python -m tests.support.daemons`` unpacks them on Debian. Nothing of an installed service is used but its programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.sync.client import connect

from asport_sync import Client, Server, config
from asport_sync.trust import create_server
from tests.e2e.test_day import replaced
from tests.e2e.test_expose import curl
from tests.e2e.tunnels import PASSWORD, USER, command, server_options
from tests.support.certificates import Certificate, self_signed, write_private
from tests.support.daemons import NOBODY, argv
from tests.support.ports import free_port
from tests.support.process import REPOSITORY, Process
from tests.support.services import host_and_port
from tests.support.waiting import wait_until

PAGE = REPOSITORY / "docs" / "cookbook.md"
START = 120.0  # seconds in which a service must answer; only a failure waits so long
BY_NAME = "HTTPS by name for many tunnels"
PROXIES = {"caddy": "/etc/caddy/Caddyfile", "nginx": "/etc/nginx/conf.d/tunnels.conf"}


@dataclass(frozen=True)
class Entry:
    """A part of the page.

    Attributes:
        files: The text of its blocks that are files, by the name in their first line.
        commands: The commands of its blocks that are for visitors, and what they print.
    """

    files: Mapping[str, str]
    commands: Sequence[tuple[str, str]]


def entries() -> dict[str, Entry]:
    """The parts of the page, by heading; the head of all client files is the one without a heading."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading = part.partition("\n")[0]
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        files = {}
        commands: list[tuple[str, str]] = []
        for kind, text in blocks:
            if kind == "console":
                for each in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    typed, _, output = each.partition("\n")
                    commands.append((typed, output))
            else:
                name = re.match(r"# (\S+)\n", text)
                assert name is not None, f"{heading}: a block without the name of its file"
                files[name[1]] = text
        found["" if heading.startswith("#") else heading] = Entry(files, commands)
    return found


ENTRIES = entries()
CLIENTS = [heading for heading, entry in ENTRIES.items() if "client.yaml" in entry.files]


def ports_of(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"(?<=[:\s])(?:[1-9]\d{3,4}|53|22|80)\b(?![/.\d])", text)))


# --- checks -----------------------------------------------------------------------------------------------------------


def test_the_table_names_every_entry() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| \[([^]]+)\]", text, re.MULTILINE) == [heading for heading in ENTRIES if heading]
    checked = {heading for heading in ENTRIES if re.search(rf"^\| \[{heading}\].* \| checked", text, re.MULTILINE)}
    assert checked == {"WireGuard", "Game servers", "Docker Compose"}


@pytest.mark.parametrize("heading", CLIENTS)
def test_a_client_is_checked(heading: str, tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    write_private(path, (ENTRIES[""].files["head.yaml"] + ENTRIES[heading].files["client.yaml"]).encode())
    done = subprocess.run(
        command("client", "check", "-c", str(path)), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_a_server_of_init_allows_the_ports(tmp_path: Path) -> None:
    (proxy,) = config.load_server(create_server("example.org", directory=tmp_path).server_file).proxies
    for heading in CLIENTS:
        for name, tunnel in yaml.safe_load(ENTRIES[heading].files["client.yaml"])["tunnels"].items():
            assert tunnel["port"] in proxy.allow_ports, f"{heading}: {name}"


def test_the_head_is_what_init_writes(tmp_path: Path) -> None:
    """Its keys; and the parts of a URI are their values."""
    created = create_server("example.org", 4433, directory=tmp_path)
    written = yaml.safe_load(created.client_file.read_text())
    del written["local"]
    head = yaml.safe_load(ENTRIES[""].files["head.yaml"])
    assert (list(head), list(head["certificates"])) == (list(written), list(written["certificates"]))
    (pin,) = written["certificates"]["pins"]
    uri = f"asport://{written['uuid']}:{written['password']}@{written['server']}?pin={pin}"
    assert created.uri.reveal() == uri
    assert "`asport://UUID:PASSWORD@SERVER?pin=PIN`" in PAGE.read_text(encoding="utf-8")


def test_the_server_with_names_is_checked(tmp_path: Path, certificate: Certificate) -> None:
    write_private(tmp_path / "alice.password", PASSWORD.encode())
    write_private(tmp_path / "certificate.pem", certificate.certificate.read_bytes())
    write_private(tmp_path / "private_key.pem", certificate.private_key.read_bytes())
    entry = ENTRIES[BY_NAME]
    path = tmp_path / "server.yaml"
    write_private(path, entry.files["server.yaml"].encode())
    (proxy,) = config.load_server(path).proxies
    assert str(proxy.bind_ip) == "127.0.0.1"
    tunnels = yaml.safe_load(entry.files["client.yaml"])["tunnels"].values()
    assert all(tunnel["port"] in proxy.allow_ports for tunnel in tunnels)
    for name, target in (("caddy", r"reverse_proxy 127\.0\.0\.1:(\d+)$"), ("nginx", r" 127\.0\.0\.1:(\d+);$")):
        proxied = re.findall(target, entry.files[PROXIES[name]], re.MULTILINE)
        assert [int(port) for port in proxied] == [tunnel["port"] for tunnel in tunnels]


def test_docker_compose_is_checked() -> None:
    services = yaml.safe_load(ENTRIES["Docker Compose"].files["compose.yaml"])["services"]
    tunnel = services["tunnel"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in tunnel["volumes"])
    assert mounted["./client.yaml"] == tunnel["command"][tunnel["command"].index("-c") + 1]
    (local,) = yaml.safe_load(ENTRIES["Docker Compose"].files["client.yaml"])["tunnels"].values()
    assert local["local"].partition(":")[0] in services


# --- with real services -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """An entry whose tunnels are public, on other ports than those of the page.

    Attributes:
        entry: The entry, with the ports that it has here.
        here: The ports here, by those of the page.
    """

    entry: Entry
    here: Mapping[str, str]

    def port(self, number: int) -> int:
        return int(self.here[str(number)])


@contextlib.contextmanager
def running(heading: str, certificate: Certificate, directory: Path) -> Iterator[Running]:
    """A server, and a client with the file of an entry. The client waits for its services."""
    entry = ENTRIES[heading]
    here = {port: str(free_port()) for text in entry.files.values() for port in ports_of(text)}
    changed = {"example.org": "127.0.0.1", "192.0.2.0/24": "127.0.0.0/8", **here}
    with Server(**server_options(certificate)) as server:
        head = head_for(server, certificate, directory)
        files = {name: replaced(text, changed) for name, text in entry.files.items()}
        path = directory / "client.yaml"
        write_private(path, (head + files["client.yaml"]).encode())
        commands = [(replaced(typed, changed), output) for typed, output in entry.commands]
        with Client.from_config(path):
            yield Running(Entry(files, commands), here)


def head_for(server: Server, certificate: Certificate, directory: Path) -> str:
    write_private(directory / "alice.password", f"{PASSWORD}\n".encode())
    return f"""\
server: {host_and_port(server.address)}
uuid: {USER}
password_file: {directory}/alice.password
certificates: {{paths: [{certificate.trusted}], disable_native: true}}
"""


def until_printed(typed: str, expected: str, **variables: str) -> None:
    """Executes a visitor's command until it prints what the page shows: the service may not have started yet."""
    name, _, arguments = typed.partition(" ")
    visitor = shlex.join(argv(name))
    last = ""

    def is_printed() -> bool:
        nonlocal last
        done = subprocess.run(
            ["bash", "-c", f"{visitor} {arguments}"],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        last = done.stdout + done.stderr
        return done.returncode == 0 and done.stdout == expected

    wait_until(is_printed, START, typed, detail=lambda: last)


@contextlib.contextmanager
def directory_of_nobody() -> Iterator[Path]:
    """A directory for programs that root may not run: as nobody, if the tests run as root."""
    with tempfile.TemporaryDirectory() as made:
        if os.geteuid() == 0:
            os.chown(made, NOBODY, NOBODY)
        yield Path(made)


def nginx(directory: Path, file: str) -> Process:
    """nginx with a file of the page as the only one of its conf.d."""
    (directory / "tunnel.conf").write_text(file)
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} include {directory}/tunnel.conf; }}\n"
    )
    return Process(argv("nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")), name="nginx")


def caddy(directory: Path, file: str, options: str) -> Process:
    """Caddy with a file of the page, and more global options."""
    block = f"{{\n\tadmin off\n\t{options}\n"
    file = file.replace("\n{\n", f"\n{block}", 1) if "\n{\n" in file else f"{block}}}\n{file}"
    (directory / "Caddyfile").write_text(file)
    return Process(
        argv("caddy", "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"),
        name="caddy",
        environment={"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
    )


@dataclass(frozen=True)
class Https:
    """A proxy with certificates on loopback.

    Attributes:
        port: Where it listens.
        trusted: A file with its authority; Caddy may not have written it yet.
    """

    port: int
    trusted: Path

    def curl(self, name: str, options: str = "") -> str:
        """The command of a visitor who fetches a page by name."""
        url = f"{name}:{self.port}"
        trust = f"--cacert {self.trusted} --resolve {url}:127.0.0.1"
        return f"curl -s --noproxy '*' {trust} {options} https://{url}/"


@contextlib.contextmanager
def https(proxy: str, file: str, here: Running, directory: Path) -> Iterator[Https]:
    """A proxy with a file of the page, on the ports of the test."""
    port = free_port()
    file = replaced(file, here.here)
    if proxy == "caddy":
        trusted = directory / "caddy/pki/authorities/local/root.crt"
        options = f"local_certs\n\tskip_install_trust\n\thttp_port {free_port()}\n\thttps_port {port}"
        process = caddy(directory, file, options)
    else:
        names = re.findall(r"^ +(\S+\.example\.org) ", file, re.MULTILINE)
        made = self_signed(directory / "live", names=names)
        trusted = made.trusted
        file = file.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        for name, path in (("fullchain.pem", made.certificate), ("privkey.pem", made.private_key)):
            file = re.sub(rf"/etc/letsencrypt/live/\S+/{name}", str(path), file)
        process = nginx(directory, file)
    with process:
        yield Https(port, trusted)


def web_service(port: int, page: str) -> Process:
    """A service with one page, and a WebSocket."""
    return Process([sys.executable, "-m", "tests.support.web_service", str(port), page], name="web service")


def knows_the_visitor(proxy: Https, name: str) -> str:
    """Tests the WebSocket of a service, which must know the visitor's address, whatever their own header says.

    Returns:
        The address from which the service is reached.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(proxy.trusted)
    visitor = socket.create_connection(("127.0.0.1", proxy.port), 60, source_address=("127.0.0.5", 0))
    forged = {"X-Forwarded-For": "192.0.2.1"}
    with connect(
        f"wss://{name}/", sock=visitor, ssl=context, additional_headers=forged, open_timeout=START
    ) as connection:
        known = json.loads(connection.recv(START))
        for message in ("a text", b"bytes" * 1000):
            connection.send(message)
            assert connection.recv(START) == message
    seen = [known[each] for each in ("Host", "X-Forwarded-For", "X-Forwarded-Proto")]
    assert seen == [name, "127.0.0.5", "https"]
    return str(known["peer"])


def test_web_behind_nginx(certificate: Certificate, tmp_path: Path) -> None:
    argv("nginx")
    with running("Web behind nginx", certificate, tmp_path) as here:
        with nginx(tmp_path, here.entry.files["/etc/nginx/conf.d/tunnel.conf"]):
            visitor = f"curl -s --noproxy '*' --interface 127.0.0.5 http://127.0.0.1:{here.port(30001)}/"
            until_printed(visitor, "you are 127.0.0.5\n")


def test_web_behind_caddy(certificate: Certificate, tmp_path: Path) -> None:
    argv("caddy")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("a page\n")
    with running("Web behind Caddy", certificate, tmp_path) as here:
        file = here.entry.files["/etc/caddy/Caddyfile"].replace("/srv/www", str(tmp_path / "www"))
        with caddy(tmp_path, file, "auto_https off"):
            until_printed(f"curl -s --noproxy '*' http://127.0.0.1:{here.port(30001)}/", "a page\n")


@pytest.mark.parametrize("proxy", PROXIES)
def test_https_by_name(certificate: Certificate, tmp_path: Path, proxy: str) -> None:
    argv(proxy)
    with running(BY_NAME, certificate, tmp_path) as here, contextlib.ExitStack() as started:
        started.enter_context(web_service(here.port(8080), "the web\n"))
        started.enter_context(web_service(here.port(8081), "the wiki\n"))
        # Not the file in which the name of the server has been replaced.
        secured = started.enter_context(https(proxy, ENTRIES[BY_NAME].files[PROXIES[proxy]], here, tmp_path))
        for name in ("web", "wiki"):
            until_printed(secured.curl(f"{name}.example.org"), f"the {name}\n")
        if proxy == "nginx":
            until_printed(secured.curl("other.example.org", "-k -o /dev/null -w '%{http_code}'"), "404")
        assert knows_the_visitor(secured, "web.example.org") == "127.0.0.1"


def test_home_assistant(certificate: Certificate, tmp_path: Path) -> None:
    """With another server in its place, which does not know its file.

    It shows what Home Assistant needs: WebSockets, the address that ``trusted_proxies`` has as that of the proxy, and
    the visitor's address in the header that ``use_x_forwarded_for`` means.
    """
    argv("caddy")
    files = ENTRIES["Home Assistant"].files
    http = yaml.safe_load(files["configuration.yaml"])["http"]
    assert http["use_x_forwarded_for"] is True
    with (
        running("Home Assistant", certificate, tmp_path) as here,
        web_service(here.port(8123), "at home\n"),
        https("caddy", files[PROXIES["caddy"]], here, tmp_path) as secured,
    ):
        until_printed(secured.curl("home.example.org"), "at home\n")
        assert [knows_the_visitor(secured, "home.example.org")] == http["trusted_proxies"]


def test_ssh(certificate: Certificate, tmp_path: Path) -> None:
    argv("sshd")
    with running("SSH", certificate, tmp_path) as here, directory_of_nobody() as directory:
        key = directory / "host_key"
        new_key = ["-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(argv("ssh-keygen", *new_key, as_nobody=True), check=True)
        options = [f"Port={here.port(22)}", "ListenAddress=127.0.0.1", f"HostKey={key}", "PidFile=none", "UsePAM=no"]
        flags = [part for option in options for part in ("-o", option)]
        with Process(argv("sshd", "-D", "-e", "-f", "/dev/null", *flags, as_nobody=True), name="sshd"):
            _, public = key.with_suffix(".pub").read_text().split()[:2]
            (typed, _) = here.entry.commands[0]
            port = re.search(r"-p (\d+)", typed)
            assert port is not None
            # Later releases print comments as well.
            scan = f"ssh-keyscan -t ed25519 -p {port[1]} 127.0.0.1 | grep -v '^#'"
            until_printed(scan, f"[127.0.0.1]:{port[1]} ssh-ed25519 {public}\n")


@pytest.mark.timeout(600)
def test_postgresql(certificate: Certificate, tmp_path: Path) -> None:
    argv("postgres")
    with running("PostgreSQL", certificate, tmp_path) as here, directory_of_nobody() as directory:
        password = directory / "password"
        password.write_text("a password\n")
        data = directory / "data"
        options = ["-U", "alice", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--no-locale"]
        initdb = argv("initdb", "-D", str(data), *options, as_nobody=True)
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, timeout=500)
        where = ["-p", str(here.port(5432)), "-k", str(directory), "-h", "127.0.0.1"]
        with Process(argv("postgres", "-D", str(data), *where, "-F", as_nobody=True), name="postgres"):
            ((typed, output),) = here.entry.commands
            until_printed(typed, output, PGPASSWORD="a password")


def test_mqtt(certificate: Certificate, tmp_path: Path) -> None:
    argv("mosquitto"), argv("mosquitto_pub")
    with running("MQTT", certificate, tmp_path) as here:
        passwords = tmp_path / "passwords"
        subprocess.run(argv("mosquitto_passwd", "-c", "-b", str(passwords), "alice", "a password"), check=True)
        file = here.entry.files["/etc/mosquitto/conf.d/tunnel.conf"]
        file = file.replace("/etc/mosquitto/passwords", str(passwords))
        (tmp_path / "mosquitto.conf").write_text(f"{file}user root\n")
        with Process(argv("mosquitto", "-c", str(tmp_path / "mosquitto.conf")), name="mosquitto"):
            for typed, output in here.entry.commands:
                until_printed(typed, output, MQTT_PASSWORD="a password")


def test_dns(certificate: Certificate, tmp_path: Path) -> None:
    argv("dnsmasq"), argv("dig")
    with running("DNS", certificate, tmp_path) as here:
        where = [f"--port={here.port(53)}", "--listen-address=127.0.0.1", "--bind-interfaces", "--user="]
        names = ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--address=/printer.lan/192.0.2.9"]
        with Process(argv("dnsmasq", "--no-daemon", *where, *names), name="dnsmasq"):
            for typed, output in here.entry.commands:
                until_printed(typed, output)


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_the_objects_of_kubernetes_fit_together() -> None:
    configs, secrets, deployment = yaml.safe_load_all(ENTRIES["Kubernetes"].files["tunnel.yaml"])
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == configs["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == secrets["metadata"]["name"]
    mounted = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert "subPath" not in str(container)
    assert container["command"][-1] == str(mounted["config"] / "client.yaml")
    (password_file,) = (mounted["secrets"] / name for name in secrets["stringData"])
    assert yaml.safe_load(configs["data"]["client.yaml"])["password_file"] == str(password_file)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels


def publish(volume: Path, version: str, files: Mapping[str, str]) -> None:
    """Replaces the files of a volume as a kubelet does: with a link to another directory."""
    (volume / f"..{version}").mkdir(parents=True)
    for name, text in files.items():
        write_private(volume / f"..{version}" / name, text.encode())
    (volume / "..data_tmp").symlink_to(f"..{version}")
    (volume / "..data_tmp").rename(volume / "..data")
    for name in files:
        with contextlib.suppress(FileExistsError):
            (volume / name).symlink_to(f"..data/{name}")


def test_a_changed_configmap_is_reloaded(certificate: Certificate, tmp_path: Path) -> None:
    configs, *_ = yaml.safe_load_all(ENTRIES["Kubernetes"].files["tunnel.yaml"])
    keys: dict[str, Any] = yaml.safe_load(configs["data"]["client.yaml"])
    publish(tmp_path / "secrets", "1", {"alice.password": PASSWORD})
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("a page\n")
    port, web = free_port(), free_port()
    arguments = ["--bind", "127.0.0.1", "--directory", str(tmp_path / "www"), str(web)]
    with (
        Server(**server_options(certificate)) as server,
        Process([sys.executable, "-u", "-m", "http.server", *arguments], name="web") as pages,
    ):
        pages.wait_for("Serving HTTP", START)
        keys["server"] = host_and_port(server.address)
        keys["password_file"] = str(tmp_path / "secrets" / "alice.password")
        keys["certificates"] = {"paths": [str(certificate.trusted)], "disable_native": True}
        keys["watch"] = "1s"
        keys["tunnels"]["web"] |= {"local": f"127.0.0.1:{web}", "port": port}
        publish(tmp_path / "config", "1", {"client.yaml": yaml.safe_dump(keys)})
        file = tmp_path / "config" / "client.yaml"
        with Process(command("client", "run", "-c", str(file)), name="client") as client:
            client.wait_for(f"is public on port {port}", START)
            added = free_port()
            keys["tunnels"]["again"] = {**keys["tunnels"]["web"], "port": added}
            publish(tmp_path / "config", "2", {"client.yaml": yaml.safe_dump(keys)})
            client.wait_for(f"again: .* is public on port {added}", START)
            for each in (port, added):
                assert curl(f"http://127.0.0.1:{each}/") == "a page\n"
            assert client.output().count(f"is public on port {port}") == 1
