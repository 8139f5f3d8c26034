"""``asport-sync systemd install``: the unit files, which systemd itself checks, and what would not work."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import asport_sync
from asport_sync.cli import main, systemd
from asport_sync.errors import AsportError
from tests.cli.test_cli import CLIENT, USER
from tests.support.certificates import Certificate, write_private

EXPOSURE = {"client": 1.3, "server": 1.6}  # as docs/operations.md has them; later releases may rate differently
ANALYZE_TIMEOUT = 60.0


def write(path: Path, keys: dict[str, Any]) -> Path:
    """Writes a configuration, in place of an earlier one."""
    path.unlink(missing_ok=True)
    write_private(path, json.dumps(keys, indent=2).encode())
    return path


def settings(unit: str) -> dict[str, list[str]]:
    """The values of each setting of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def etc(tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like /etc/asport, with the configurations of both sides and their files; it may be anywhere.

    So may the package, unless a test says with ``--command`` which one is installed.
    """
    monkeypatch.setattr(systemd, "_HIDDEN", (Path("/home"), Path("/root")))
    check = systemd._check_command

    def check_another(words: tuple[str, ...], *, is_this: bool, by_everyone: bool) -> None:
        if not is_this:
            check(words, is_this=False, by_everyone=by_everyone)

    monkeypatch.setattr(systemd, "_check_command", check_another)
    (tmp_path / "alice.password").write_text("correct horse battery staple\n")
    (tmp_path / "fullchain.pem").write_bytes(certificate.certificate.read_bytes())
    (tmp_path / "privkey.pem").write_bytes(certificate.private_key.read_bytes())
    (tmp_path / "trusted.pem").write_bytes(certificate.trusted.read_bytes())
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    own = {name: value for name, value in CLIENT.items() if name != "password"}
    trust = {"paths": ["trusted.pem"]}
    write(tmp_path / "client.json", {**own, "password_file": "alice.password", "certificates": trust})
    write(tmp_path / "server.json", server_keys())
    return tmp_path


def server_keys(**changes: Any) -> dict[str, Any]:
    """A server whose files have bare names."""
    proxy = {"users": {USER: {"password_file": "alice.password"}}, "allow_ports": [{"start": 20000, "end": 32000}]}
    proxy.update(changes.pop("proxy", {}))
    files = {"certificate": "fullchain.pem", "private_key": "credential:privkey.pem"}
    return {"server": "[::]:4433", **files, "proxies": [proxy], **changes}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The unit that the command prints; it runs what runs this test."""
    assert main(["systemd", "install", *arguments, "--print"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says instead."""
    assert main(["systemd", "install", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("asport-sync: ")
    return output.err.removeprefix("asport-sync: ").rstrip("\n")


# --- what the units have ----------------------------------------------------------------------------------------------


def test_a_client_s_files_become_credentials(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = settings(printed(capsys, "client", "-c", str(etc / "client.json")))
    assert unit["ExecStart"] == [f"{sys.executable} -m asport_sync client run -c %d/client.json"]
    names = ["client.json", "alice.password", "trusted.pem"]
    assert unit["LoadCredential"] == [f"{name}:{etc}/{name}" for name in names]
    assert unit["DynamicUser"] == ["true"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert "AmbientCapabilities" not in unit
    assert "TimeoutStartSec" not in unit


def test_a_client_that_is_ready_once_it_is_public_may_take_its_time(
    etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(etc / "client.json", {**CLIENT, "ready": "public"})
    assert settings(printed(capsys, "client", "-c", str(etc / "client.json")))["TimeoutStartSec"] == ["infinity"]


@pytest.mark.parametrize(("grace_period", "limit"), [("80s", None), ("81s", ["91"]), ("2m", ["130"])])
def test_the_service_may_take_the_grace_period_to_end(
    etc: Path, capsys: pytest.CaptureFixture[str], grace_period: str, limit: list[str] | None
) -> None:
    write(etc / "server.json", server_keys(grace_period=grace_period))
    assert settings(printed(capsys, "server", "-c", str(etc / "server.json"))).get("TimeoutStopSec") == limit


def test_a_server_s_files_become_credentials(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = settings(printed(capsys, "server", "-c", str(etc / "server.json")))
    names = ["server.json", "alice.password", "fullchain.pem", "privkey.pem"]
    assert unit["LoadCredential"] == [f"{name}:{etc}/{name}" for name in names]


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({}, False),
        ({"server": "[::]:443"}, True),
        ({"server": "[::]:0"}, False),
        ({"proxy": {"allow_ports": [80, 8080]}}, True),
        ({"proxy": {"allow_ports": [{"start": 1023, "end": 2000}]}}, True),
        ({"proxy": {"allow_ports": 1024}}, False),
    ],
)
def test_a_server_gets_a_capability_only_for_privileged_ports(
    etc: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], needed: bool
) -> None:
    write(etc / "server.json", server_keys(**keys))
    unit = settings(printed(capsys, "server", "-c", str(etc / "server.json")))
    assert unit.get("AmbientCapabilities") == (["CAP_NET_BIND_SERVICE"] if needed else None)
    assert unit["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE" if needed else ""]


@pytest.mark.parametrize("version", [None, 250, 252, 253, 259, 260])
def test_the_unit_fits_the_release_of_systemd(version: int | None) -> None:
    place = Path("/etc/asport/client.yaml")
    text = systemd.Unit(
        side="client", command=("/bin/x",), file=place, version=version, credentials={place.name: place}
    ).text
    unit = settings(text)
    if version is not None and version >= 253:
        assert unit["Type"] == ["notify-reload"]
        assert "ExecReload" not in unit
    else:
        assert unit["Type"] == ["notify"]
        assert unit["ExecReload"] == ["kill -HUP $MAINPID"]
        assert f"from systemd 253 on; {'unknown' if version is None else version} here." in text
    assert ("RefreshOnReload" in unit) == (version == 260)
    assert ("Before systemd 260, " in text) == (version != 260)


def test_a_template_has_a_configuration_and_a_socket_for_each_instance() -> None:
    place = Path("/etc/100%/client-%i.yaml")
    made = systemd.Unit(side="client", command=("/bin/x",), file=place, template=True, version=257, account="daemon")
    assert made.name == "asport-client@"
    unit = settings(made.text)
    assert unit["ExecStart"] == ["/bin/x client run -c /etc/100%%/client-%i.yaml"]
    assert unit["RuntimeDirectory"] == ["asport-client-%i"]
    assert unit["Description"] == ["ASPORT client %i"]


def test_an_account_reads_the_files_where_they_are(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = settings(printed(capsys, "server", "-c", str(etc / "server.json"), "--account", "daemon"))
    assert unit["User"] == ["daemon"]
    assert unit["ExecStart"] == [f"{sys.executable} -m asport_sync server run -c {etc}/server.json"]
    assert not {"DynamicUser", "LoadCredential"} & unit.keys()


def test_a_user_s_own_unit(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = settings(printed(capsys, "client", "-c", str(etc / "client.json"), "--user"))
    assert unit["WantedBy"] == ["default.target"]
    assert unit["NoNewPrivileges"] == ["true"]
    assert unit["WatchdogSec"] == ["30"]
    # A user's service manager has no network-online.target, and may not do these.
    assert not {"After", "DynamicUser", "ProtectSystem", "PrivateTmp", "CapabilityBoundingSet"} & unit.keys()


def test_special_characters(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = etc / 'with 100 % "$HOME"'
    folder.mkdir()
    write(folder / "client.json", CLIENT)
    text = printed(capsys, "client", "-c", str(folder / "client.json"))
    escaped = f'{etc}/with 100 %% "$HOME"/client.json'
    assert settings(text)["LoadCredential"] == [f"client.json:{escaped}"]
    text = printed(capsys, "client", "-c", str(folder / "client.json"), "--user")
    escaped = f'{etc}/with 100 %% \\"$$HOME\\"/client.json'
    assert settings(text)["ExecStart"] == [f'{sys.executable} -m asport_sync client run -c "{escaped}"']
    (etc / "line\nbreak").mkdir()
    write(etc / "line\nbreak/client.json", CLIENT)
    problem = refused(capsys, "client", "-c", str(etc / "line\nbreak/client.json"), "--print")
    assert problem.endswith("cannot be written in a unit file")


@pytest.mark.parametrize("name", ["a:b.json", "schl\u00fcssel.json", "a\\tb.json"])
def test_names_that_no_credential_can_have(etc: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A unit with such a name loads, but the service does not get the file."""
    path = write(etc / name, CLIENT)
    assert refused(capsys, "client", "-c", str(path), "--print") == (
        f"{path}: no credential of systemd can have this name: expected ASCII, without : and \\"
    )
    unit = settings(printed(capsys, "client", "-c", str(path), "--account", "daemon"))
    assert "LoadCredential" not in unit


def test_folders_of_logs_are_as_systemd_reads_them(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("server", "-c", str(etc / "server.json"))
    written = {"a$b c": '"a$b c"', "100 %": '"100 %%"', "a/b": "a/b"}
    for folder, expected in written.items():
        write(etc / "server.json", server_keys(access_log=f"/var/log/{folder}/access.log"))
        text = printed(capsys, *arguments)
        assert settings(text)["LogsDirectory"] == [expected]
        unit = tmp_path / "asport-server.service"
        unit.write_text(text)
        assert unit.name not in analyze("verify", unit).stderr
    for folder in ("a:b", "a'b", 'a"b', "a\\b"):
        write(etc / "server.json", server_keys(access_log=f"/var/log/{folder}/access.log"))
        assert "expected a folder without quotes, : and \\" in refused(capsys, *arguments, "--print")
    write(etc / "server.json", server_keys(access_log="/var/log/asport/../other/access.log"))
    assert "expected a path in a folder below /var/log" in refused(capsys, *arguments, "--print")


def test_a_program_with_a_dollar_sign_in_its_path(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Systemd expands no variables there."""
    (etc / "a$b").mkdir()
    program = etc / "a$b/asport-sync"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = printed(capsys, "client", "-c", str(etc / "client.json"), "--account", "daemon", "--command", str(program))
    assert settings(text)["ExecStart"] == [f"{program} client run -c {etc}/client.json"]
    unit = etc / "asport-client.service"
    unit.write_text(text)
    assert analyze("verify", unit).returncode == 0


def test_the_installed_command(etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("client", "-c", str(etc / "client.json"))
    unit = settings(printed(capsys, *arguments, "--command", "/opt/asport/bin/asport-sync"))
    assert unit["ExecStart"] == ["/opt/asport/bin/asport-sync client run -c %d/client.json"]
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/asport-sync", "systemd"])
    assert settings(printed(capsys, *arguments))["ExecStart"] == [
        "/usr/local/bin/asport-sync client run -c %d/client.json"
    ]


# --- what systemd says of them ----------------------------------------------------------------------------------------


def analyze(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Runs systemd-analyze."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=ANALYZE_TIMEOUT, check=False
    )


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("options", [(), ("--user",), ("--account", "daemon")], ids=" ".join)
def test_systemd_accepts_the_units(
    etc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # or --user finds no RuntimeDirectory=
    unit = tmp_path / f"asport-{side}.service"
    write(etc / "server.json", server_keys(server="[::]:443"))
    unit.write_text(printed(capsys, side, "-c", str(etc / f"{side}.json"), *options))
    done = analyze("verify", *(options if options == ("--user",) else ()), unit)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_exposure_is_low(etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str) -> None:
    unit = tmp_path / f"asport-{side}.service"
    write(etc / "server.json", server_keys(server="[::]:443"))
    unit.write_text(printed(capsys, side, "-c", str(etc / f"{side}.json")))
    done = analyze("security", "--offline=yes", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"systemd-analyze cannot rate unit files: {done.stderr.strip()}")
    assert float(found[1]) <= EXPOSURE[side] + 0.2


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system with systemd."""
    monkeypatch.setattr(systemd, "_version", lambda: 255)


@pytest.mark.usefixtures("with_systemd")
def test_a_unit_is_written_once(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    unit = tmp_path / "config/systemd/user/asport-client.service"
    arguments = ["systemd", "install", "client", "-c", str(etc / "client.json"), "--user"]
    for _ in range(2):  # the same again is no problem
        assert main(arguments) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{unit} is written; next: systemctl --user daemon-reload && systemctl --user enable --now asport-client",
            "after a change of its files, such as a renewed certificate: systemctl --user reload asport-client",
            "to run it while you are not logged in as well: loginctl enable-linger",
        ]
        assert stat.S_IMODE(unit.stat().st_mode) == 0o644
        assert [path.name for path in unit.parent.iterdir()] == [unit.name]
    content = unit.read_text()
    unit.write_text("something else\n")
    assert refused(capsys, *arguments[2:]) == (
        f"{unit} exists and differs: --force overwrites it, --print prints the new one"
    )
    assert unit.read_text() == "something else\n"
    assert main([*arguments, "--force"]) == 0
    assert unit.read_text() == content


@pytest.mark.parametrize(
    ("version", "options", "renews"),
    [(259, (), "restart"), (260, (), "reload"), (252, ("--account", "daemon"), "reload")],
)
def test_how_changed_files_reach_the_service(
    etc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    options: tuple[str, ...],
    renews: str,
) -> None:
    monkeypatch.setattr(systemd, "_version", lambda: version)
    monkeypatch.setattr(systemd, "_SYSTEM_UNITS", tmp_path / "system")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["systemd", "install", "server", "-c", str(etc / "server.json"), *options]) == 0
    assert capsys.readouterr().out.endswith(f"certificate: systemctl {renews} asport-server\n")


@pytest.mark.usefixtures("with_systemd")
def test_the_system_s_unit(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_SYSTEM_UNITS", tmp_path / "system")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["systemd", "install", "server", "-c", str(etc / "server.json")]) == 0
    unit = tmp_path / "system/asport-server.service"
    assert capsys.readouterr().out == (
        f"{unit} is written; next: systemctl daemon-reload && systemctl enable --now asport-server\n"
        "after a change of its files, such as a renewed certificate: systemctl restart asport-server\n"
    )
    assert settings(unit.read_text())["Type"] == ["notify-reload"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unit.unlink()
    assert refused(capsys, "server", "-c", str(etc / "server.json")) == (
        f"only root may write to {unit.parent}: run it as root, or with --user or --print"
    )
    assert not unit.exists()


def test_without_systemd(etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert refused(capsys, "client", "-c", str(etc / "client.json")) == (
        "cannot run systemctl: this system has no systemd; --print prints the unit"
    )
    assert "unknown here" in printed(capsys, "client", "-c", str(etc / "client.json"))


# --- what would not work ----------------------------------------------------------------------------------------------


def test_a_wrong_configuration(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(etc / "client.json", {**CLIENT, "uuid": "nonsense"})
    assert refused(capsys, "client", "-c", str(path), "--print").startswith(f"{path}:4:3: uuid: ")


def test_files_in_other_places(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The service sees copies next to each other."""
    (etc / "tls").mkdir()
    (etc / "privkey.pem").rename(etc / "tls/privkey.pem")
    path = write(etc / "server.json", server_keys(private_key="tls/privkey.pem"))
    problem = refused(capsys, "server", "-c", str(path), "--print")
    head, *rest = problem.splitlines()
    assert head == f"{path}: the service sees copies of the files next to it, in one folder (%d), and no others:"
    assert len(rest) == 1
    assert rest[0].startswith("%d/server.json:4:3: private_key: ")

    path = write(etc / "server.json", server_keys(private_key=str(etc / "tls/privkey.pem")))
    assert refused(capsys, "server", "-c", str(path), "--print") == (
        f"{path}: private_key: the service cannot read {etc}/tls/privkey.pem; write the bare name privkey.pem, and "
        f"make a link next to the configuration: ln -s {etc}/tls/privkey.pem {etc}/"
    )
    write(etc / "server.json", server_keys(private_key="privkey.pem"))
    (etc / "privkey.pem").symlink_to(etc / "tls/privkey.pem")  # as the message says
    assert f"LoadCredential=privkey.pem:{etc}/privkey.pem\n" in printed(capsys, "server", "-c", str(path))


def test_a_file_that_everyone_may_read_stays_where_it_is(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Path("/etc/ssl/certs/ca-certificates.crt")
    if not authority.exists():
        pytest.skip(f"{authority} is not installed")
    keys = json.loads((etc / "client.json").read_text())
    path = write(etc / "client.json", {**keys, "certificates": {"paths": [str(authority)]}})
    unit = settings(printed(capsys, "client", "-c", str(path)))
    assert unit["LoadCredential"] == [f"{name}:{etc}/{name}" for name in ("client.json", "alice.password")]


CURE = "install it in another place: python3 -m venv /opt/asport && /opt/asport/bin/pip install ..."


def test_what_system_services_do_not_see(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("client", "-c", str(etc / "client.json"), "--print")
    problem = refused(capsys, *arguments, "--command", "/home/me/venv/bin/asport-sync")
    assert problem == f"/home/me/venv/bin/asport-sync: system services see nothing below /home; {CURE}"
    # A link that leads there, and a script whose Python is there.
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setattr(systemd, "_HIDDEN", (home,))
    program = home / "bin/asport-sync"
    program.write_text("")
    (etc / "link").symlink_to(program)
    (etc / "script").write_text(f"#!{home}/bin/python -I\n")
    for name, needed in (("link", program), ("script", home / "bin/python")):
        problem = refused(capsys, *arguments, "--command", str(etc / name))
        assert problem == f"{etc}/{name}: system services see nothing below {home}, and it needs {needed}; {CURE}"
        # A user's own service sees them.
        assert main(["systemd", "install", *arguments, "--user", "--command", str(etc / name)]) == 0
        capsys.readouterr()
    assert refused(capsys, *arguments, "--account", "no-such-account") == (
        "there is no account 'no-such-account' on this system"
    )


def test_links_to_what_the_service_does_not_reach(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = etc / "elsewhere/fullchain.pem"
    target.parent.mkdir()
    (etc / "fullchain.pem").rename(target)
    target.chmod(0o644)
    link = etc / "fullchain.pem"
    link.symlink_to(target)
    path = etc / "server.json"
    monkeypatch.setattr(systemd, "_HIDDEN", (target.parent,))
    # An account reads the file there itself; as a credential it is copied by systemd.
    assert refused(capsys, "server", "-c", str(path), "--print", "--account", "daemon") == (
        f"{path}: certificate: {link}: system services see nothing below {target.parent}, and it leads to {target}; "
        "move it, such as to /etc/asport"
    )
    assert f"fullchain.pem:{link}" in settings(printed(capsys, "server", "-c", str(path)))["LoadCredential"]


def test_a_link_into_a_folder_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # every account may enter that
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "private").mkdir(0o700)
        (folder / "private/file").write_text("x")
        (folder / "private/file").chmod(0o644)
        (folder / "link").symlink_to(folder / "private/file")
        (folder / "public").write_text("x")
        (folder / "public").chmod(0o644)
        monkeypatch.setattr(systemd, "_HIDDEN", (Path("/home"),))
        systemd._check_readable(folder / "public", folder / "server.json", "certificate")
        with pytest.raises(AsportError, match=rf"certificate: the service cannot read {re.escape(name)}/link; "):
            systemd._check_readable(folder / "link", folder / "server.json", "certificate")


def test_the_package_that_runs_has_to_be_where_services_see_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "client.json", CLIENT)
    package = Path(asport_sync.__file__).parent
    monkeypatch.setattr(systemd, "_HIDDEN", (package.parent,))
    problem = refused(capsys, "client", "-c", str(path), "--print")
    assert re.fullmatch(
        rf"{re.escape(sys.executable)}: system services see nothing below {re.escape(str(package.parent))}"
        rf"(, and it needs \S+)?; {re.escape(CURE)}",
        problem,
    )


def test_a_command_that_only_some_accounts_may_use(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a root with a umask of 077 installs it."""
    (etc / "venv").mkdir(mode=0o700)
    program = etc / "venv/asport-sync"
    program.write_text("")
    program.chmod(0o755)
    arguments = ("client", "-c", str(etc / "client.json"), "--command", str(program))
    assert refused(capsys, *arguments, "--print") == (
        f"{program}: not every account may use {program}: chmod -R go+rX, or --account"
    )
    assert settings(printed(capsys, *arguments, "--account", "daemon"))["User"] == ["daemon"]


@pytest.mark.parametrize("options", [(), ("--account", "daemon")], ids=["DynamicUser", "account"])
def test_where_a_service_may_write(etc: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    logs = {"access_log": "/var/log/asport/access.log", "keylog": "/var/log/asport/tls/keys"}
    path = write(etc / "server.json", server_keys(**logs, control_socket="/run/asport-server/other.sock"))
    unit = settings(printed(capsys, "server", "-c", str(path), *options))
    assert unit["LogsDirectory"] == ["asport asport/tls"]
    path = write(etc / "server.json", server_keys(access_log="/run/asport-server/access.log", control_socket="off"))
    assert "LogsDirectory" not in settings(printed(capsys, "server", "-c", str(path), *options))
    path = write(etc / "server.json", server_keys(access_log="-"))
    assert "LogsDirectory" not in settings(printed(capsys, "server", "-c", str(path), *options))
    for key, value, words in (
        ("access_log", "access.log", "write access.log"),
        ("access_log", "/srv/access.log", "write /srv/access.log"),
        ("access_log", "/var/log/access.log", "write /var/log/access.log"),
        ("keylog", "keys/access.log", "write keys/access.log"),
    ):
        path = write(etc / "server.json", server_keys(**{key: value}))
        assert refused(capsys, "server", "-c", str(path), "--print", *options) == (
            f"{path}: {key}: the service cannot {words}: expected a path in a folder below /var/log, such as "
            "/var/log/asport-server/access.log, or in /run/asport-server"
        )
    for value in ("server.sock", "/run/server.sock"):
        path = write(etc / "server.json", server_keys(control_socket=value))
        assert refused(capsys, "server", "-c", str(path), "--print", *options) == (
            f"{path}: control_socket: the service cannot create {value}: expected a path in /run/asport-server, where "
            "the socket is without this key as well"
        )
    path = write(etc / "server.json", server_keys(access_log="access.log", control_socket="server.sock"))
    assert "LogsDirectory" not in settings(printed(capsys, "server", "-c", str(path), "--user"))


@pytest.mark.parametrize("options", [(), ("--account", "daemon")], ids=["DynamicUser", "account"])
def test_system_services_need_pins(etc: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    trust = {"trust_on_first_use": True, "known_servers": "/var/lib/asport/known_servers"}
    path = write(etc / "client.json", {**CLIENT, "certificates": trust})
    assert refused(capsys, "client", "-c", str(path), "--print", *options) == (
        f"{path}: trust_on_first_use: a system service has no folder in which it could keep the keys of servers; "
        "replace it by pins with the key that asport-sync pin prints on the server, and pins_only"
    )
    assert "ExecStart" in settings(printed(capsys, "client", "-c", str(path), "--user"))


def test_which_local_sockets_a_service_reaches(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {name: value for name, value in CLIENT.items() if name not in ("local", "expected_port_range")}

    def of(local: str) -> Path:
        return write(etc / "client.json", {**common, "tunnels": {"web": {"local": f"unix:{local}"}}})

    monkeypatch.setattr(systemd, "_HIDDEN", (Path("/home"), Path("/tmp/hidden")))
    for options in ((), ("--account", "daemon")):
        for local in ("/run/app.sock", "@abstract"):
            printed(capsys, "client", "-c", str(of(local)), *options)
        assert refused(capsys, "client", "-c", str(of("/tmp/hidden/app.sock")), "--print", *options) == (
            f"{etc}/client.json: tunnels.web.local: /tmp/hidden/app.sock: system services see nothing below "
            "/tmp/hidden; move it, such as to /etc/asport"
        )
    assert refused(capsys, "client", "-c", str(of("app.sock")), "--print") == (
        f"{etc}/client.json: tunnels.web.local: the service does not see app.sock next to the configuration, because "
        "it gets copies of files, and no sockets; put the socket into another folder, such as one below /run"
    )
    # An account reads the folder itself.
    printed(capsys, "client", "-c", str(of("app.sock")), "--account", "daemon")
    printed(capsys, "client", "-c", str(of("app.sock")), "--user")


def test_variables_of_the_shell_are_ignored_and_named(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service will not have them, so the unit must not depend on them."""
    file = etc / "client.json"
    before = printed(capsys, "client", "-c", str(file))
    for name, value in (("ASPORT_PASSWORD", "hunter2"), ("ASPORT_READY", "public"), ("ASPORT_NO_KEY", "x")):
        monkeypatch.setenv(name, value)
    assert main(["systemd", "install", "client", "-c", str(file), "--print"]) == 0
    output = capsys.readouterr()
    assert output.out == before
    why = "is ignored: the service has no variables of this shell"
    assert output.err.splitlines() == [
        f"asport-sync: warning: {name} {why}" for name in ("ASPORT_NO_KEY", "ASPORT_PASSWORD", "ASPORT_READY")
    ]
    assert os.environ["ASPORT_READY"] == "public"


def test_a_uri_in_the_environment_is_ignored_and_named(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, str(etc))
    monkeypatch.setenv("ASPORT_URI", "asport://x")
    monkeypatch.chdir(etc)
    assert main(["systemd", "install", "client", "--print"]) == 0
    why = "ASPORT_URI is ignored: the service has no variables of this shell"
    assert capsys.readouterr().err.splitlines() == [f"asport-sync: warning: {why}"]
    (etc / "client.json").unlink()
    assert main(["systemd", "install", "client", "--print"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asport-sync: no client configuration: ")
    assert f"; {why}; put what it says into client.yaml, " in line


def test_a_file_that_needs_variables(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(etc / "client.json", {**CLIENT, "password": "env:THE_PASSWORD", "local": "env:${THE_HOST}:80"})
    monkeypatch.setenv("THE_PASSWORD", "hunter2")
    monkeypatch.setenv("THE_HOST", "localhost")
    assert main(["systemd", "install", "client", "-c", str(file), "--print"]) == 0
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"asport-sync: warning: {file}: the service has no variable {name}, unless a drop-in sets it: systemctl edit "
        "asport-client"
        for name in ("THE_HOST", "THE_PASSWORD")
    ]


def test_the_environment_is_left_as_it_was(
    etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "/somewhere"):
        if value is None:
            monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        else:
            monkeypatch.setenv("CREDENTIALS_DIRECTORY", value)
        printed(capsys, "server", "-c", str(etc / "server.json"))
        assert os.environ.get("CREDENTIALS_DIRECTORY") == value
