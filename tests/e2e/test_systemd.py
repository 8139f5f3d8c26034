"""The units of ``asport-sync systemd install`` under a real systemd, which does what they ask of it.

Server, client, local service and visitors are all in its namespaces, see tests/support/service_manager.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.cli.systemd import NOTIFY_RELOAD, REFRESH_CREDENTIALS
from tests.e2e.tunnels import PASSWORD, USER
from tests.support.certificates import Certificate, self_signed
from tests.support.process import REPOSITORY, Process
from tests.support.sanitized import preloaded
from tests.support.service_manager import COMMAND, PYTHON, TIMEOUT, ServiceManager, Unavailable, newer
from tests.support.waiting import wait_until

SERVER, CLIENT, LOCAL = "asport-server", "asport-client", "local"
PUBLIC, LOCAL_PORT = 30001, 8080
ACCOUNT = "daemon"  # an account that every system has
PAGE = REPOSITORY / "docs" / "operations.md"
CREDENTIALS = {
    SERVER: {"server.json", "certificate.pem", "private_key.pem", "password"},
    CLIENT: {"client.json", "trusted.pem", "password"},
}
CAP_NET_BIND_SERVICE = 1 << 10  # <linux/capability.h>
DYNAMIC = range(61184, 65520)  # the ids of DynamicUser=, see systemd.exec(5)
# The local service: what it answers says that the visitor was served.
FETCH = "python -m tests.support.service_manager fetches another"
LOCAL_UNIT = f"""\
[Service]
ExecStart={PYTHON} -m http.server --bind 127.0.0.1 --directory /srv/local {LOCAL_PORT}
"""


pytestmark = [
    pytest.mark.skipif(bool(preloaded()), reason="services do not run under the sanitizer"),
    # Each test starts Python half a dozen times, and systemd waits for it: on a busy machine that takes its time.
    pytest.mark.timeout(400),
]


class Services:
    """Configurations in /etc/asport, and the units that are made from them."""

    def __init__(self, manager: ServiceManager, certificate: Certificate) -> None:
        self.manager = manager
        self.renewing: dict[str, str] = {}
        for name in ("certificate", "private_key", "trusted"):
            self.write(f"{name}.pem", getattr(certificate, name).read_bytes())
        self.write("password", f"{PASSWORD}\n")

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file of /etc/asport, which root alone may read."""
        self.manager.write(f"/etc/asport/{name}", content)

    def write_server(self, **changes: Any) -> None:
        """Write the server's configuration."""
        proxy = {"users": {USER: {"password_file": "password"}}, "allow_ports": [{"start": PUBLIC, "end": PUBLIC + 9}]}
        keys = {"server": "127.0.0.1:443", "certificate": "certificate.pem", "private_key": "private_key.pem"}
        self.write("server.json", json.dumps({**keys, "log_level": "info", "proxies": [proxy], **changes}))

    def write_client(self, *, tunnels: int = 1, **changes: Any) -> None:
        """Write the configuration of a client with so many tunnels, the first of which is public on ``PUBLIC``."""
        keys = {"server": "127.0.0.1:443", "uuid": USER, "password_file": "password", "log_level": "info"}
        trust = {"paths": ["trusted.pem"], "disable_native": True}
        named: dict[str, Any] = {
            f"t{n}": {"local": LOCAL_PORT, "expected_port_range": PUBLIC + n} for n in range(tunnels)
        }
        if tunnels > 1:
            named["t1"].update(changes.pop("second", {}))
        self.write("client.json", json.dumps({**keys, "certificates": trust, "tunnels": named, **changes}))

    def install(self, unit: str, *options: str, account: str | None = None) -> str:
        """Have the command install a unit, and return what it says is to be done next.

        What it says has to be done after a change of files is in ``renewing``, by unit.
        """
        side = unit.partition("-")[2]
        more = () if account is None else ("--account", account)
        arguments = ("-c", f"/etc/asport/{side}.json", "--command", COMMAND, "--force", *more, *options)
        said = self.manager.run(COMMAND, "systemd", "install", side, *arguments)
        assert said.stderr == ""
        first, second = said.stdout.splitlines()
        path, _, following = first.partition(" is written; next: ")
        assert path == f"/etc/systemd/system/{unit}.service"
        self.renewing[unit] = second.rpartition(": ")[2]
        return following

    def start(self, unit: str, *options: str, account: str | None = None) -> None:
        """Install a unit and start it, by the very commands that it says."""
        self.manager.run("sh", "-ec", self.install(unit, *options, account=account))

    def start_both(self, account: str | None = None) -> None:
        """Install and start a server and a client, and wait until its port is public."""
        if account is not None:
            self.manager.run("chown", "-R", account, "/etc/asport")
        self.start(SERVER, account=account)
        self.start(CLIENT, account=account)
        self.wait_for_status(CLIENT, rf"public on 127\.0\.0\.1:{PUBLIC}")
        self.wait_for_status(SERVER, f":{PUBLIC}$")

    def drop_in(self, unit: str, lines: str) -> None:
        """Change a unit, as ``systemctl edit`` does."""
        self.manager.write(f"/etc/systemd/system/{unit}.service.d/test.conf", f"[Service]\n{lines}", 0o644)
        self.manager.systemctl("daemon-reload")

    def status(self, unit: str) -> str:
        """What ``systemctl status`` says of a unit's state."""
        return self.manager.show(unit, "StatusText")

    def wait_for_status(self, unit: str, pattern: str) -> None:
        """Wait until that matches."""
        wait_until(lambda: re.search(pattern, self.status(unit)), TIMEOUT, pattern, detail=self.manager.journal)

    def wait_for(self, unit: str, name: str, value: str) -> None:
        """Wait until a unit's property has a value."""
        what = f"{name} of {unit} is {value}"
        wait_until(lambda: self.manager.show(unit, name) == value, TIMEOUT, what, detail=self.manager.journal)

    def log(self, unit: str) -> str:
        """What the journal has of a unit, without what systemd adds."""
        return self.manager.journal("-u", unit, "-o", "cat")

    def has_visitors(self, unit: str, count: int) -> bool:
        """Whether so many connections of visitors are open, as the control socket says."""
        socket = f"/run/{unit}/{unit.partition('-')[2]}.sock"
        shown = self.manager.run("curl", "-sS", "--unix-socket", socket, "http://localhost/v1/status").stdout
        connections: list[int] = [each["connections"] for each in json.loads(shown)["tunnels"]]
        return sum(connections) == count

    def visit(self, port: int = PUBLIC) -> str:
        """What a visitor of a public port gets."""
        return self.manager.run("curl", "-sS", "--max-time", "20", f"http://127.0.0.1:{port}/").stdout

    def close(self) -> None:
        """Stop everything and remove the units."""
        units = [SERVER, CLIENT, LOCAL, "asport-user"]
        self.manager.run("systemctl", "kill", "--signal=KILL", *units, check=False)
        self.manager.run("systemctl", "stop", *units, check=False)
        self.manager.run(
            "sh", "-c", "rm -rf /tmp/finish /etc/asport /etc/systemd/system/asport-* /etc/systemd/system/*.wants"
        )
        self.manager.systemctl("daemon-reload")
        self.manager.run("systemctl", "reset-failed", check=False)


@pytest.fixture(scope="module")
def manager() -> Iterator[ServiceManager]:
    """A systemd with Type=notify-reload, or the one that there is."""
    try:
        with ServiceManager(newer()) as running:
            yield running
    except Unavailable as reason:
        pytest.skip(f"systemd cannot run here: {reason}")


@contextlib.contextmanager
def served(manager: ServiceManager, certificate: Certificate) -> Iterator[Services]:
    """Configurations of both sides, and a local service that runs; nothing is left of them at the end."""
    services = Services(manager, certificate)
    manager.write("/srv/local/index.html", "served\n", 0o644)
    manager.write(f"/etc/systemd/system/{LOCAL}.service", LOCAL_UNIT, 0o644)
    manager.systemctl("daemon-reload")
    manager.systemctl("start", LOCAL)
    services.write_server()
    services.write_client()
    try:
        yield services
    finally:
        services.close()


@pytest.fixture
def services(manager: ServiceManager, certificate: Certificate) -> Iterator[Services]:
    """Of the systemd that the tests of this file share."""
    with served(manager, certificate) as made:
        yield made


# --- starting and stopping --------------------------------------------------------------------------------------------


def test_a_server_and_a_client(services: Services) -> None:
    """Installed, started, seen and stopped as the command and docs/operations.md say."""
    manager = services.manager
    services.start_both()
    assert services.status(SERVER) == f"accepting clients on 127.0.0.1:443; public: [::]:{PUBLIC}"
    assert services.visit() == "served\n"
    for unit in (SERVER, CLIENT):
        assert manager.show(unit, "Type") == ("notify-reload" if manager.version >= NOTIFY_RELOAD else "notify")
        assert manager.systemctl("is-enabled", unit) == "enabled\n"
    for unit in (CLIENT, SERVER):  # one after the other: a client whose server stops first warns of it
        manager.systemctl("stop", unit)
        assert (manager.show(unit, "Result"), manager.show(unit, "ExecMainStatus")) == ("success", "0")
        # What the units do not allow, the commands do not try.
        assert not re.findall(r"^(?:WARNING|ERROR) .*", services.log(unit), re.MULTILINE)
    assert "INFO server: accepting clients on 127.0.0.1:443" in services.log(SERVER)
    assert "INFO lifecycle: stopping: SIGTERM" in services.log(SERVER)


def test_units_after_a_client_start_once_its_ports_are_public(services: Services) -> None:
    manager = services.manager
    after = f"""\
[Unit]
Wants={CLIENT}.service
After={CLIENT}.service
[Service]
Type=oneshot
RemainAfterExit=true
ExecStart=curl -sS --max-time 20 http://127.0.0.1:{PUBLIC}/
"""
    manager.write("/etc/systemd/system/asport-after.service", after, 0o644)
    services.write_client(ready="public")
    services.install(CLIENT)
    manager.systemctl("daemon-reload")
    manager.systemctl("start", "--no-block", "asport-after")
    services.wait_for_status(CLIENT, "connect")  # there is no server yet
    assert manager.show(CLIENT, "ActiveState") == "activating"
    assert manager.show("asport-after", "ActiveState") == "inactive"
    services.start(SERVER)
    services.wait_for("asport-after", "ActiveState", "active")
    assert "served\n" in services.log("asport-after")
    assert manager.show(CLIENT, "ActiveState") == "active"


def test_the_journal_has_priorities(services: Services) -> None:
    """And no time in the text, as it has its own."""
    manager = services.manager
    services.write_server(log_level="debug")
    services.start(SERVER, account="root")
    services.wait_for_status(SERVER, "accepting clients")
    services.write("server.json", "{")
    manager.systemctl("reload", SERVER)
    wait_until(lambda: "previous configuration stays" in services.log(SERVER), TIMEOUT, "refused")
    entries = [json.loads(line) for line in manager.journal("-u", SERVER, "-o", "json").splitlines()]
    shown = {(each["PRIORITY"], each["MESSAGE"]) for each in entries if each["_TRANSPORT"] == "stdout"}
    assert ("6", "INFO server: accepting clients on 127.0.0.1:443, users: 1") in shown
    assert ("3", "ERROR lifecycle: the configuration is not reloaded; the previous configuration stays in use") in shown
    priorities = {"ERROR": "3", "WARNING": "4", "INFO": "6", "DEBUG": "7"}
    assert {priorities[message.partition(" ")[0]] for _, message in shown} == {"3", "6", "7"}
    for number, message in shown:
        assert number == priorities[message.partition(" ")[0]], message


@pytest.mark.parametrize("account", [None, ACCOUNT], ids=["DynamicUser", "account"])
def test_the_access_log(services: Services, account: str | None) -> None:
    """In a folder that the unit makes writable, and opened again as logrotate asks for it."""
    manager = services.manager
    services.write_server(access_log="/var/log/asport/access.log")
    services.start_both(account=account)
    path = "/var/log/asport/access.log"

    def has_line() -> bool:
        return ": finished after" in manager.run("cat", path, check=False).stdout

    for _ in range(2):
        assert services.visit() == "served\n"
        wait_until(has_line, TIMEOUT, "the log has a line", detail=manager.journal)
        manager.run("mv", path, f"{path}.1")
        manager.systemctl("kill", "--signal=USR1", SERVER)


VISITOR = """
import os, socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(b"GET / HTTP/1.0\\r\\n")
    print("connected", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.02)
    sock.sendall(b"\\r\\n")
    print(sock.makefile().read())
"""


def test_a_stop_takes_the_grace_period_that_open_connections_need(services: Services) -> None:
    """Even if that is longer than TimeoutStopSec=, for which systemd is asked."""
    manager = services.manager
    services.write_server(grace_period="2m")
    services.start_both()
    assert manager.show(SERVER, "TimeoutStopUSec") == "2min 10s"
    services.drop_in(SERVER, "TimeoutStopSec=5\n")
    assert manager.show(SERVER, "TimeoutStopUSec") == "5s"
    with Process(manager.argv(PYTHON, "-c", VISITOR, str(PUBLIC), "/tmp/finish"), name="visitor") as visitor:
        visitor.wait_for("connected")
        wait_until(lambda: services.has_visitors(SERVER, 1), TIMEOUT, "it is open")
        with Process(manager.argv("systemctl", "stop", SERVER), name="stop") as stop:
            services.wait_for(SERVER, "ActiveState", "deactivating")
            wait_until(lambda: "draining" in services.log(SERVER), TIMEOUT, "it drains")
            time.sleep(6)  # longer than TimeoutStopSec=
            assert manager.show(SERVER, "ActiveState") == "deactivating"
            stop.check_running()
            manager.write("/tmp/finish", "")
            assert stop.wait(TIMEOUT) == 0
        assert visitor.wait(TIMEOUT) == 0
        assert "served" in visitor.output()
    assert (manager.show(SERVER, "Result"), manager.show(SERVER, "ExecMainStatus")) == ("success", "0")


def test_a_stop_ends_with_the_grace_period(services: Services) -> None:
    manager = services.manager
    services.write_server(grace_period="1s")
    services.start_both()
    with Process(manager.argv(PYTHON, "-c", VISITOR, str(PUBLIC), "/tmp/finish"), name="visitor") as visitor:
        visitor.wait_for("connected")
        wait_until(lambda: services.has_visitors(SERVER, 1), TIMEOUT, "it is open")
        manager.systemctl("stop", SERVER)
        manager.write("/tmp/finish", "")
        assert visitor.wait(TIMEOUT) != 0  # reset
    assert "the grace period of 1 s is over" in services.log(SERVER)
    assert (manager.show(SERVER, "Result"), manager.show(SERVER, "ExecMainStatus")) == ("success", "0")


# --- reloads ----------------------------------------------------------------------------------------------------------


def test_a_reload_has_ended_when_systemctl_returns(services: Services) -> None:
    manager = services.manager
    if manager.version < NOTIFY_RELOAD:
        pytest.skip(f"systemd {manager.version} has no Type=notify-reload: {FETCH}")
    services.start_both(account=ACCOUNT)
    before = manager.show(CLIENT, "MainPID")
    # It takes until somebody writes the password of the second tunnel.
    manager.run("mkfifo", "/etc/asport/slow")
    services.write_client(tunnels=2, second={"password_file": "slow"})
    manager.run("chown", "-R", ACCOUNT, "/etc/asport")
    with Process(manager.argv("systemctl", "reload", CLIENT), name="reload") as reload:
        services.wait_for(CLIENT, "ActiveState", "reloading")
        assert services.visit() == "served\n"
        reload.check_running()
        manager.run("sh", "-c", f"echo {PASSWORD} >/etc/asport/slow")
        assert reload.wait(TIMEOUT) == 0
    listed = json.loads(manager.run(COMMAND, "status", "--json", "--socket", "client").stdout)
    assert [each["name"] for each in listed["tunnels"]] == ["t0", "t1"]
    assert manager.show(CLIENT, "ActiveState") == "active"
    assert manager.show(CLIENT, "MainPID") == before
    services.wait_for_status(CLIENT, "2 of 2 tunnels public")
    assert services.visit(PUBLIC + 1) == "served\n"


def test_a_refused_reload_is_shown(services: Services) -> None:
    manager = services.manager
    services.start_both(account=ACCOUNT)
    services.write_client(tunnels=2, server="nonsense:port")
    manager.run("chown", "-R", ACCOUNT, "/etc/asport")
    manager.systemctl("reload", CLIENT)
    services.wait_for_status(CLIENT, "the latest reload was refused: /etc/asport/client.json:1:")
    assert manager.show(CLIENT, "ActiveState") == "active"
    assert "the configuration is not reloaded; the previous configuration stays in use" in services.log(CLIENT)
    assert services.visit() == "served\n"


def test_what_a_reload_sees_of_credentials(services: Services) -> None:
    manager = services.manager
    services.start_both()
    services.write_client(tunnels=2)
    manager.systemctl("reload", CLIENT)
    if manager.version >= REFRESH_CREDENTIALS:
        services.wait_for_status(CLIENT, "2 of 2 tunnels public")
        return
    wait_until(lambda: "configuration reloaded" in services.log(CLIENT), TIMEOUT, "it reloads")
    assert "nothing has changed in the copies of the files that systemd has made" in services.log(CLIENT)
    assert services.status(CLIENT) == f"public on 127.0.0.1:{PUBLIC}"
    manager.systemctl("restart", CLIENT)
    services.wait_for_status(CLIENT, "2 of 2 tunnels public")


@pytest.mark.parametrize("account", [None, ACCOUNT], ids=["DynamicUser", "account"])
def test_a_renewed_certificate_reaches_the_service(
    services: Services, certificate: Certificate, tmp_path: Path, account: str | None
) -> None:
    """By what ``systemd install`` has said, or with an account by the hook for certbot in docs/operations.md."""
    manager = services.manager
    renewed = self_signed(tmp_path)
    # A client whose second tunnel trusts the renewed certificate alone.
    services.write("renewed.pem", renewed.trusted.read_bytes())
    second = {"certificates": {"paths": ["renewed.pem"], "disable_native": True}}
    services.write_client(tunnels=2, second=second)
    if account is not None:
        manager.run("chown", "-R", account, "/etc/asport")
    services.start(SERVER, account=account)
    services.start(CLIENT, account=account)
    services.wait_for_status(CLIENT, r"1 of 2 tunnels public: t0 .*; t1 .*rejected")
    before = manager.show(SERVER, "MainPID")
    if account is None:
        for name in ("certificate", "private_key"):
            services.write(f"{name}.pem", getattr(renewed, name).read_bytes())
        manager.run(*services.renewing[SERVER].split())
    else:
        for name, path in (("fullchain", renewed.certificate), ("privkey", renewed.private_key)):
            manager.write(f"/etc/letsencrypt/live/example.org/{name}.pem", path.read_bytes())
        manager.run("chmod", "700", "/etc/letsencrypt")
        manager.write("/etc/letsencrypt/renewal-hooks/deploy/asport", hook(account), 0o755)
        manager.run(
            "env",
            "RENEWED_LINEAGE=/etc/letsencrypt/live/example.org",
            "/etc/letsencrypt/renewal-hooks/deploy/asport",
        )
    is_restarted = services.renewing[SERVER].split()[1] == "restart"
    assert is_restarted == (account is None and manager.version < REFRESH_CREDENTIALS)
    assert (manager.show(SERVER, "MainPID") != before) == is_restarted
    if not is_restarted:
        assert services.visit() == "served\n"  # who has joined stays
    # New connections get the renewed certificate, and it alone.
    manager.systemctl("restart", CLIENT)
    services.wait_for_status(CLIENT, r"1 of 2 tunnels public: t1 .*; t0 .*rejected")
    assert services.visit(PUBLIC + 1) == "served\n"


def hook(account: str) -> str:
    """The hook for certbot, with another account and the names of files that the test's configuration has."""
    found = re.search(r"```sh\n(#!/bin/sh -e\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names = ("fullchain", "certificate"), ("privkey", "private_key")
    links = "".join(f"ln -sf {lineage}.pem /etc/asport/{own}.pem\n" for lineage, own in names)
    copying, reloading = found[1].replace("asport -m", f"{account} -m").rsplit("systemctl", 1)
    return f"{copying}{links}systemctl{reloading}"


def test_a_reload_that_systemctl_did_not_ask_for(services: Services) -> None:
    """``asport-sync reload`` tells systemd as well."""
    manager = services.manager
    services.start_both(account=ACCOUNT)
    services.write_client(tunnels=2)
    manager.run("chown", "-R", ACCOUNT, "/etc/asport")
    before = int(manager.show(CLIENT, "StateChangeTimestampMonotonic"))
    manager.run(COMMAND, "reload", "--socket", "client")
    services.wait_for_status(CLIENT, "2 of 2 tunnels public")
    assert manager.show(CLIENT, "ActiveState") == "active"
    # It was "reloading" meanwhile. Not every reload has a line of systemd's: a short one has none.
    assert int(manager.show(CLIENT, "StateChangeTimestampMonotonic")) > before


def test_an_older_systemd(certificate: Certificate) -> None:
    """Before systemd 253 ``systemctl reload`` sends the signal, and does not wait for the reload."""
    try:
        with ServiceManager() as manager:
            if manager.version >= NOTIFY_RELOAD:
                pytest.skip(f"systemd {manager.version} of this machine has Type=notify-reload")
            with served(manager, certificate) as services:
                services.start_both(account=ACCOUNT)
                assert manager.show(CLIENT, "Type") == "notify"
                services.write_client(tunnels=2)
                manager.run("chown", "-R", ACCOUNT, "/etc/asport")
                manager.systemctl("reload", CLIENT)
                services.wait_for_status(CLIENT, "2 of 2 tunnels public")
                assert manager.show(CLIENT, "ActiveState") == "active"
                manager.systemctl("stop", CLIENT)
                assert manager.show(CLIENT, "Result") == "success"
    except Unavailable as reason:
        pytest.skip(f"systemd cannot run here: {reason}")


# --- the watchdog -----------------------------------------------------------------------------------------------------


def test_the_watchdog_restarts_a_service_that_is_stuck(services: Services) -> None:
    manager = services.manager
    services.install(SERVER)
    services.drop_in(SERVER, "WatchdogSec=5\n")
    services.start_both()
    before = manager.show(SERVER, "MainPID")
    manager.systemctl("kill", "--signal=STOP", SERVER)
    wait_until(lambda: manager.show(SERVER, "NRestarts") != "0", TIMEOUT, "restarted", detail=manager.journal)
    services.wait_for(SERVER, "ActiveState", "active")
    assert manager.show(SERVER, "MainPID") != before
    assert "Watchdog timeout (limit 5s)!" in manager.journal("-u", SERVER)
    services.wait_for_status(SERVER, f":{PUBLIC}$")
    assert services.visit() == "served\n"


# --- what the services may do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("account", [None, ACCOUNT], ids=["DynamicUser", "account"])
def test_what_the_services_may_do(services: Services, account: str | None) -> None:
    manager = services.manager
    manager.write("/home/somebody/secret", "secret", 0o644)
    manager.write("/tmp/secret", "secret", 0o644)
    services.start_both(account=account)
    for unit, capabilities in ((SERVER, CAP_NET_BIND_SERVICE), (CLIENT, 0)):
        pid = manager.show(unit, "MainPID")
        found = dict(re.findall(r"(\w+):\s+(\S+)", manager.run("cat", f"/proc/{pid}/status").stdout))
        uid, expected = int(found["Uid"]), int(manager.run("id", "-u", account or unit).stdout)
        assert uid == expected != 0
        assert (uid in DYNAMIC) == (account is None)
        assert [int(found[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Bnd", "Amb")] == [capabilities] * 4
        assert (found["NoNewPrivs"], found["Seccomp"], found["Umask"]) == ("1", "2", "0077")
        assert re.search(r"Max core file size +0 +0 ", manager.run("cat", f"/proc/{pid}/limits").stdout)
        check_files(manager, pid, uid)
        folder = f"/run/credentials/{unit}.service"
        if account is None:
            shown = manager.run(*inside(pid, uid), "ls", folder).stdout.split()
            assert set(shown) == CREDENTIALS[unit]
            reading = manager.run(*inside(pid, uid), "cat", "/etc/asport/password", check=False)
            assert reading.stderr.endswith("Permission denied\n")
            reading = manager.run("cat", f"{folder}/password", account=ACCOUNT, check=False)
            assert reading.stderr.endswith("Permission denied\n")
            writing = manager.run(*inside(pid), "touch", f"{folder}/new", check=False)
            assert writing.stderr.endswith("Read-only file system\n")


def inside(pid: str, uid: int | None = None) -> list[str]:
    """What goes in front of a program for it to see the files that a service sees, as its account or as root."""
    account = [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return ["nsenter", "--target", pid, "--mount", *account]


def check_files(manager: ServiceManager, pid: str, uid: int) -> None:
    """The file system as a service sees it, by its main process and account."""
    for path in ("/etc/asport", "/usr", "/var/lib", "/opt/asport"):
        writing = manager.run(*inside(pid), "touch", f"{path}/new", check=False)
        assert writing.stderr.endswith("Read-only file system\n")
    for path in ("/home", "/root"):
        assert manager.run(*inside(pid, uid), "ls", path, check=False).stderr.endswith("Permission denied\n")
        assert manager.run(*inside(pid), "ls", "-A", path).stdout == ""
    assert manager.run(*inside(pid, uid), "ls", "-A", "/tmp").stdout == ""
    writing = manager.run(*inside(pid), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward", check=False)
    assert writing.stderr.endswith("Read-only file system\n")
    # The processes of other accounts are hidden, as is one of the same account that has more capabilities.
    assert manager.run(*inside(pid, uid), "ls", "/proc/1", check=False).stderr.endswith("No such file or directory\n")
    assert manager.run(*inside(pid, uid), "cat", "/proc/self/comm").stdout == "cat\n"


def test_who_reaches_the_control_socket(services: Services) -> None:
    manager = services.manager
    services.start_both()
    listed = manager.run(COMMAND, "list").stdout
    for unit in (SERVER, CLIENT):
        side = unit.partition("-")[2]
        path = f"/run/{unit}/{side}.sock"
        assert path in listed
        assert manager.run("stat", "-c", "%U %a", f"/run/{unit}/", path).stdout == f"{unit} 700\n{unit} 600\n"
        for name in (side, path):
            shown = json.loads(manager.run(COMMAND, "status", "--json", "--socket", name).stdout)
            assert shown["pid"] == int(manager.show(unit, "MainPID"))
        assert manager.run(COMMAND, "status", "--socket", path, account=ACCOUNT, check=False).returncode == 1
    manager.systemctl("stop", CLIENT, SERVER)
    assert manager.run("sh", "-c", "ls -d /run/asport* /run/credentials/asport*", check=False).stdout == ""


# --- a user's service manager -----------------------------------------------------------------------------------------

USER_MANAGER = """\
[Service]
Type=notify
User={account}
Delegate=yes
Environment=HOME=/home/{account} XDG_RUNTIME_DIR=/run/user-manager
RuntimeDirectory=user-manager
RuntimeDirectoryMode=0700
ExecStart=/usr/lib/systemd/systemd --user --unit=basic.target
"""


def test_a_user_s_own_service(services: Services) -> None:
    """Without root, from the installation to ``asport-sync status``."""
    manager = services.manager
    services.start(SERVER)
    unit = USER_MANAGER.format(account=ACCOUNT)
    manager.write("/etc/systemd/system/asport-user.service", unit, 0o644)
    manager.run("install", "-d", "-o", ACCOUNT, "-m", "700", f"/home/{ACCOUNT}")
    services.write_client()
    manager.run("sh", "-ec", f"cd /etc/asport; cp client.json password trusted.pem /home/{ACCOUNT}")
    manager.run("sh", "-ec", f"chown {ACCOUNT} /home/{ACCOUNT}/*; rm /etc/asport/password")
    manager.systemctl("daemon-reload")
    manager.systemctl("start", "asport-user")

    def user(*argv: str) -> str:
        """What a program says that the user runs."""
        environment = (f"HOME=/home/{ACCOUNT}", "XDG_RUNTIME_DIR=/run/user-manager")
        return manager.run("env", *environment, *argv, account=ACCOUNT).stdout

    arguments = ("client", "--user", "-c", f"/home/{ACCOUNT}/client.json", "--command", COMMAND)
    said = user(COMMAND, "systemd", "install", *arguments).splitlines()[0]
    path, _, following = said.partition(" is written; next: ")
    assert path == f"/home/{ACCOUNT}/.config/systemd/user/asport-client.service"
    user("sh", "-ec", following)

    def show(name: str) -> str:
        return user("systemctl", "--user", "show", "--value", "-p", name, CLIENT).strip()

    public = f"public on 127.0.0.1:{PUBLIC}"
    wait_until(lambda: show("StatusText") == public, TIMEOUT, public, detail=manager.journal)
    assert services.visit() == "served\n"
    found = json.loads(user(COMMAND, "status", "--json"))
    assert (found["side"], str(found["pid"])) == ("client", show("MainPID"))
    services.write_client(tunnels=2)
    manager.run("cp", "/etc/asport/client.json", f"/home/{ACCOUNT}/client.json")
    user("systemctl", "--user", "reload", CLIENT)
    wait_until(lambda: "2 of 2" in show("StatusText"), TIMEOUT, "reloaded", detail=manager.journal)
    user("systemctl", "--user", "stop", CLIENT)
    assert (show("Result"), show("ExecMainStatus")) == ("success", "0")
