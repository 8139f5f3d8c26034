"""The packages that ``make deb`` has made, in a Debian root with a systemd that runs, and without a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import deb, roots
from tests.examples import units
from tests.support.process import REPOSITORY
from tests.support.service_manager import TIMEOUT, ServiceManager, Unavailable
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(1800)]

MADE = REPOSITORY / "dist" / "deb"
PACKAGES = ("asport-sync", "python3-asport-sync")
KIND = roots.Kind(deb.SUITE, ("systemd", "curl", "python3-cffi-backend", "python3-cryptography", "python3-yaml"))
"""With what the packages depend on."""
OLDER = "0.0.9-1"
SERVER, CLIENT, SECOND, LOCAL = "asport-server", "asport-client", "asport-client@second", "local"
PORTS = {CLIENT: 30001, SECOND: 30002}
LOG = "/var/log/asport/access.log"
APT_TIMEOUT = 600.0
PAGE = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Packages for Debian\n")[2].partition("\n## ")[0]
INSTALLS, SERVES, JOINS = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
"""The commands of the page."""
REMOVES = "rm -r /etc/asport && userdel asport"
LOCAL_UNIT = """\
[Service]
ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory /srv/site 8080
"""
MAKE_OLDER = rf"""
set -e
mkdir /srv/older
for file in /srv/made/*.deb; do
    rm -rf /tmp/unpacked
    dpkg-deb --raw-extract "$file" /tmp/unpacked
    sed -i -e '/^Version:/s/ .*/ {OLDER}/' -e 's/(>= {re.escape(deb.version())}[^)]*)/(>= {OLDER})/' \
        /tmp/unpacked/DEBIAN/control
    dpkg-deb --root-owner-group --build /tmp/unpacked /srv/older
done
"""
"""The same packages with a lower version."""


def package(name: str) -> Path:
    found = list(MADE.glob(f"{name}_{deb.version()}-*.deb"))
    assert len(found) == 1, f"{MADE} has {len(found)} packages {name}, not 1: run make deb"
    return found[0]


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A root that is not changed: systemd runs on copies of it."""
    with roots.copy(KIND) as made:
        (made / "srv/made").mkdir()
        for name in PACKAGES:
            shutil.copy(package(name), made / "srv/made")
        (made / "srv/site").mkdir()
        (made / "srv/site/index.html").write_text("served\n")
        yield made


@pytest.fixture
def machine(root: Path) -> Iterator[ServiceManager]:
    try:
        with ServiceManager(root=root) as running:
            running.write(f"/etc/systemd/system/{LOCAL}.service", LOCAL_UNIT, 0o644)
            running.systemctl("daemon-reload")
            running.systemctl("start", LOCAL)
            yield running
    except Unavailable as reason:
        pytest.skip(f"systemd cannot run here: {reason}")


def apt(machine: ServiceManager, command: str) -> None:
    """Execute a command line with apt-get, which asks nothing."""
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    command = command.replace("apt-get", "apt-get --yes --quiet")
    print(machine.run(*environment, "sh", "-ec", command, timeout=APT_TIMEOUT).stdout)


def install(machine: ServiceManager, folder: str = "made") -> None:
    apt(machine, f"cd /srv/{folder} && {INSTALLS}")


def configure(machine: ServiceManager) -> None:
    """A server and two clients, with the files of ``init``, all made as the account."""
    machine.run("sh", "-ec", SERVES.splitlines()[0].replace("example.org", "localhost"))
    client = machine.path("/etc/asport/client.yaml").read_text()
    machine.run("runuser", "-u", units.ACCOUNT, "--", "cp", "/etc/asport/client.yaml", "/etc/asport/client-second.yaml")
    for name, port in (("client", PORTS[CLIENT]), ("client-second", PORTS[SECOND])):
        machine.path(f"/etc/asport/{name}.yaml").write_text(f"{client}\nexpected_port_range: {port}\nlog_level: info\n")
    with machine.path("/etc/asport/server.yaml").open("a") as file:
        file.write(f"\naccess_log: {LOG}\nlog_level: info\n")


def start(machine: ServiceManager) -> None:
    for commands in (SERVES.splitlines()[1], JOINS, JOINS.replace(CLIENT, SECOND)):
        machine.run("sh", "-ec", commands)
    wait_until_public(machine)


def wait_until_public(machine: ServiceManager) -> None:
    for unit, port in PORTS.items():
        wait_until(
            lambda unit=unit, port=port: machine.show(unit, "StatusText").endswith(f":{port}"),  # type: ignore[misc]
            TIMEOUT,
            f"{unit} is public",
            detail=machine.journal,
        )
        assert machine.run("curl", "-sS", "--max-time", "20", f"http://127.0.0.1:{port}/").stdout == "served\n"


def pids(machine: ServiceManager) -> dict[str, str]:
    return {unit: machine.show(unit, "MainPID") for unit in (SERVER, *PORTS)}


def test_a_server_and_clients(machine: ServiceManager) -> None:
    """From the installation to a page that is served, and what was said about it."""
    assert machine.version == units.VERSION
    install(machine)
    for unit in (SERVER, CLIENT):
        assert (machine.show(unit, "ActiveState"), machine.show(unit, "UnitFileState")) == ("inactive", "disabled")
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/asport").stdout == f"{units.ACCOUNT}:{units.ACCOUNT} 700\n"
    assert machine.run("dpkg", "--audit").stdout == ""
    configure(machine)
    start(machine)
    for unit in (SERVER, *PORTS):
        pid = machine.show(unit, "MainPID")
        assert machine.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == units.ACCOUNT
        assert machine.show(unit, "User") == units.ACCOUNT
        # What the units do not allow, the commands do not try; and nothing is wrong with owners and modes.
        assert not re.findall(r"^(?:WARNING|ERROR) .*", machine.journal("-u", unit, "-o", "cat"), re.MULTILINE)
    assert len(machine.run("asport-sync", "list").stdout.splitlines()) == 1 + len(pids(machine))
    wait_until(lambda: machine.path(LOG).read_text(), TIMEOUT, "the access log has a line", detail=machine.journal)
    before = pids(machine)
    machine.systemctl("reload", *before)
    assert pids(machine) == before
    assert "configuration reloaded" in machine.journal("-u", SERVER, "-o", "cat")


def test_units_are_those_of_the_command(machine: ServiceManager) -> None:
    install(machine)
    configure(machine)
    for side in ("server", "client"):
        printed = machine.run(
            *("asport-sync", "systemd", "install", side, "--print"),
            *("-c", f"/etc/asport/{side}.yaml", "--account", units.ACCOUNT),
        ).stdout
        installed = machine.path(f"/usr/lib/systemd/system/asport-{side}.service").read_text()
        # A folder for logs as well, which only a configuration with a log needs.
        assert installed.replace("LogsDirectory=asport\n", "") == printed.replace("LogsDirectory=asport\n", "")
    paths = [f"/usr/lib/systemd/system/{name}.service" for name in (SERVER, CLIENT, "asport-client@")]
    assert machine.run("systemd-analyze", "verify", "--man=no", *paths).stderr == ""


def test_what_is_installed(machine: ServiceManager) -> None:
    install(machine)
    assert "bundled, adjusted" in machine.run("asport-sync", "--version").stdout
    site = "/usr/lib/python3/dist-packages/asport_sync"
    libraries = machine.run("ldd", f"{site}/_aq.abi3.so").stdout
    assert re.search(r"libgnutls\.so\.30 => /(usr/)?lib/", libraries)
    assert "ngtcp2" not in libraries
    for page in ("man1/asport-sync.1.gz", "man5/asport-sync.5.gz"):
        assert machine.path(f"/usr/share/man/{page}").is_file()
    completion = "/usr/share/bash-completion/completions/asport-sync"
    machine.run("bash", "-n", completion)
    assert "asport-sync" in machine.run("bash", "-c", f". {completion} && complete -p asport-sync").stdout
    assert "#compdef asport-sync" in machine.path("/usr/share/zsh/vendor-completions/_asport-sync").read_text()
    texts = machine.path("/usr/share/doc/python3-asport-sync/copyright").read_text()
    assert "ngtcp2" in texts


def test_an_upgrade_starts_what_runs_again(machine: ServiceManager) -> None:
    machine.run("sh", "-c", MAKE_OLDER, timeout=APT_TIMEOUT)
    install(machine, "older")
    configure(machine)
    start(machine)
    before, files = pids(machine), listing(machine)
    install(machine)
    versions = machine.run("dpkg-query", "--show", "--showformat=${Version}\n", *PACKAGES).stdout.split()
    assert len(versions) == 2
    assert OLDER not in versions
    wait_until_public(machine)
    for unit, pid in pids(machine).items():
        assert pid != before[unit]
        assert machine.show(unit, "UnitFileState") == "enabled"
    assert listing(machine) == files


def test_an_upgrade_starts_nothing_else(machine: ServiceManager) -> None:
    machine.run("sh", "-c", MAKE_OLDER, timeout=APT_TIMEOUT)
    install(machine, "older")
    configure(machine)
    install(machine)
    assert set(pids(machine).values()) == {"0"}


def test_a_purge_leaves_nothing_but_what_is_not_the_packages(machine: ServiceManager) -> None:
    install(machine)
    configure(machine)
    start(machine)
    files = listing(machine)
    apt(machine, f"apt-get remove {' '.join(PACKAGES)}")
    assert set(pids(machine).values()) == {"0"}
    assert listing(machine) == files
    assert machine.path(LOG).exists()
    apt(machine, f"apt-get purge {' '.join(PACKAGES)}")
    mounted = ("/", "/etc/systemd/system", "/run", "/var/lib/systemd", "/var/log")
    found = machine.run("find", *mounted, "-xdev", "-name", "*asport*", "-not", "-path", "/srv/*").stdout
    # Not /etc/asport with keys and passwords, and the account, whose number no other is to get.
    assert [line for line in found.splitlines() if not line.startswith("/etc/asport")] == []
    assert listing(machine) == files
    assert not machine.path("/var/log/asport").exists()
    assert machine.systemctl("list-units", "--all", "--no-legend", "asport*") == ""
    assert f"`{REMOVES}`" in SECTION
    machine.run("sh", "-ec", REMOVES)


def test_a_purge_removes_an_empty_folder(machine: ServiceManager) -> None:
    install(machine)
    apt(machine, f"apt-get purge {' '.join(PACKAGES)}")
    assert not machine.path("/etc/asport").exists()


def listing(machine: ServiceManager) -> str:
    """The files in /etc/asport, with owners, modes and contents."""
    return machine.run("sh", "-c", "cd /etc/asport && stat -c '%n %U %a' * && sha256sum *").stdout
