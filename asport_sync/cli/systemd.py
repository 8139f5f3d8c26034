"""Unit files for systemd: ``asport-sync systemd install``.

docs/operations.md and examples/systemd/ show what ``Unit.text`` returns, and the package for Debian installs it; tests
compare them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from asport_sync import config
from asport_sync.cli import output
from asport_sync.config import environment
from asport_sync.config.changes import NOT_READ, paths_of
from asport_sync.config.load import tree_of
from asport_sync.config.reader import EnvironmentText
from asport_sync.errors import AsportError, ConfigError

NOTIFY_RELOAD = 253
"""The release of systemd that has Type=notify-reload."""
REFRESH_CREDENTIALS = 260
"""The release of systemd that can pass changed credentials to a running service."""

_PACKAGE = Path(__file__).parents[1]
_SYSTEM_UNITS = Path("/etc/systemd/system")
_LOGS = Path("/var/log")
_RUNTIME = Path("/run")
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # by ProtectHome= and PrivateTmp=
_PRIVILEGED = 1024  # ports below need CAP_NET_BIND_SERVICE
_STOP_LIMIT = 90.0  # seconds after which systemd kills a service that does not end, by default
_STOP_TIME = 10.0  # seconds that a stop takes at most: its timeout, and the last lines of the log
_SYSTEMCTL_TIMEOUT = 10.0  # seconds for the answer to --version
_LONGEST_SHEBANG = 256  # bytes: as many as Linux reads
_CURE = "install it in another place: python3 -m venv /opt/asport && /opt/asport/bin/pip install ..."

# In every unit: these need no privileges, so that a user's service manager can apply them as well.
_RESTRICTIONS = """\
LimitNOFILE=65536
# A core dump would hold passwords and keys.
LimitCORE=0
NoNewPrivileges=true
LockPersonality=true
MemoryDenyWriteExecute=true
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
# AF_UNIX: systemd is notified over a socket. AF_NETLINK: some resolvers ask the kernel for addresses, and a client is
# notified of network changes.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077
"""

# In a system's unit: these need privileges.
_ISOLATION = """\
PrivateTmp=true
PrivateDevices=true
PrivateMounts=true
ProtectSystem=strict
ProtectHome=true
ProtectClock=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectControlGroups=true
ProtectProc=invisible
"""


Settings: TypeAlias = config.ClientConfig | config.ServerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit file.

    Attributes:
        side: ``client`` or ``server``.
        command: The words with which it starts, as far as ``client`` or ``server``.
        file: The configuration.
        template: Whether it is a template: ``%i`` in the path of the configuration is the name of an instance.
        version: The release of systemd that reads it; None: unknown.
        by_user: Whether it is for a user's service manager, and not the system's.
        account: The existing account that it runs as; None: one that systemd makes up.
        credentials: The files that systemd passes to it, by name; only for an account that systemd makes up.
        logs: The folders below /var/log, relative to that, in which it may write.
        privileged_ports: Whether it opens ports below 1024.
        waits: Whether the service is ready only once its ports are public.
        grace_period: Seconds for which open connections may go on after SIGTERM.
    """

    side: str
    command: tuple[str, ...]
    file: Path
    template: bool = False
    version: int | None = None
    by_user: bool = False
    account: str | None = None
    credentials: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    logs: tuple[str, ...] = ()
    privileged_ports: bool = False
    waits: bool = False
    grace_period: float = 0.0

    @property
    def name(self) -> str:
        """The name of the unit, without ``.service``."""
        return f"asport-{self.side}@" if self.template else f"asport-{self.side}"

    @property
    def text(self) -> str:
        """The content of the file."""
        unit, service, installation = (*self._unit(), ""), (*self._service(), ""), (*self._install(), "")
        return "\n".join(("[Unit]", *unit, "[Service]", *service, "[Install]", *installation))

    @property
    def sees_changes(self) -> bool:
        """Whether a reload by systemctl is enough after a change of its files."""
        return not self.credentials or (self.version is not None and self.version >= REFRESH_CREDENTIALS)

    def _unit(self) -> Iterator[str]:
        yield f"Description=ASPORT {self.side}{' %i' if self.template else ''}"
        if not self.by_user:  # a user's service manager has no such unit
            yield "Wants=network-online.target"
            yield "After=network-online.target"

    def _service(self) -> Iterator[str]:
        yield from self._kind()
        uses_credentials = bool(self.credentials)
        file = f"%d/{_word(self.file.name)}" if uses_credentials else _word(str(self.file))
        if self.template:
            file = file.replace("%%i", "%i")
        program, *words = self.command
        # Variables are not expanded in the path of the program, so its dollar signs are not doubled.
        start = " ".join((_quoted(program), *map(_word, words)))
        yield f"ExecStart={start} {self.side} run -c {file}"
        if uses_credentials:
            yield "# systemd reads these as root; the service's own account needs no access to the folder."
            for name, path in self.credentials.items():
                yield f"LoadCredential={_percent(name)}:{_percent(str(path))}"
            if self.sees_changes:
                yield "RefreshOnReload=credentials"
            else:
                yield f"# Before systemd {REFRESH_CREDENTIALS}, only a restart copies them again."
        if not self.by_user:
            yield "DynamicUser=true" if self.account is None else f"User={_percent(self.account)}"
        yield f"RuntimeDirectory=asport-{self.side}{'-%i' if self.template else ''}"
        yield "RuntimeDirectoryMode=0700"
        if self.logs:
            yield "LogsDirectory=" + " ".join(map(_folder, self.logs))
        if not self.by_user:
            if self.privileged_ports:
                yield "AmbientCapabilities=CAP_NET_BIND_SERVICE"
            yield "CapabilityBoundingSet=" + ("CAP_NET_BIND_SERVICE" if self.privileged_ports else "")
        yield "Restart=on-failure"
        yield "RestartSec=2"
        yield "# A wrong command line stays wrong."
        yield "RestartPreventExitStatus=2"
        yield "# Fed as long as all threads that must not block make progress."
        yield "WatchdogSec=30"
        if self.waits:
            yield "# Ready once its ports are public, however long the server is unreachable."
            yield "TimeoutStartSec=infinity"
        if self.grace_period > _STOP_LIMIT - _STOP_TIME:
            yield "# The grace period, and what the stop takes after it."
            yield f"TimeoutStopSec={math.ceil(self.grace_period + _STOP_TIME)}"
        yield from _RESTRICTIONS.splitlines()
        if not self.by_user:
            yield from _ISOLATION.splitlines()

    def _kind(self) -> Iterator[str]:
        if self.version is not None and self.version >= NOTIFY_RELOAD:
            yield "Type=notify-reload"
            return
        here = "unknown here" if self.version is None else f"{self.version} here"
        yield f"# Type=notify-reload, without ExecReload=, from systemd {NOTIFY_RELOAD} on; {here}."
        yield "Type=notify"
        yield "ExecReload=kill -HUP $MAINPID"

    def _install(self) -> Iterator[str]:
        yield "WantedBy=default.target" if self.by_user else "WantedBy=multi-user.target"


def install(
    settings_of: Callable[[Path], Settings],
    file: Path,
    *,
    side: config.Side,
    by_user: bool,
    account: str | None,
    command: str | None,
    prints: bool,
    force: bool,
) -> None:
    """Writes or prints the unit of a client or a server.

    Args:
        settings_of: Returns the configuration that a file has.
        file: The configuration.
        side: ``client`` or ``server``.
        by_user: Whether the unit is for a user's service manager.
        account: The account that it runs as; None: one that systemd makes up.
        command: The installed command; None: this one.
        prints: Whether to print the unit instead of writing it.
        force: Whether to overwrite a file.

    Raises:
        AsportError: The unit would not work, or may not be written.
        OSError: It can't be written.
    """
    version = _version()
    if not prints and version is None:
        raise AsportError("cannot run systemctl: this system has no systemd; --print prints the unit")
    if not prints and not by_user and os.geteuid() != 0:
        raise AsportError(f"only root may write to {_SYSTEM_UNITS}: run it as root, or with --user or --print")
    if account is not None:
        _check_account(account)
    file = Path(os.path.abspath(file))
    for name in environment.variables():
        output.complain(f"warning: {name} is ignored: the service has no variables of this shell")
    with _as_service(file.parent):
        settings = settings_of(file)
        needed = dict.fromkeys(_variables_in(tree_of(side, file)[0]))
    for name in needed:
        output.complain(
            f"warning: {file}: the service has no variable {name}, unless a drop-in sets it: systemctl edit "
            f"asport-{side}"
        )
    words = _command() if command is None else (os.path.abspath(command),)
    credentials: dict[str, Path] = {}
    logs: tuple[str, ...] = ()
    if not by_user:
        _check_trust(settings, file)
        _check_command(words, is_this=command is None, by_everyone=account is None)
        if account is None:
            credentials = _credentials(settings_of, file, settings)
        else:
            for key, path in (("", file), *_read_by(settings)):
                _check_visible(path, file, key)
        logs = _logs(settings, file, f"asport-{side}", sees_folder=account is not None)
    unit = Unit(
        side=side,
        command=words,
        file=file,
        version=version,
        by_user=by_user,
        account=account,
        credentials=credentials,
        logs=logs,
        privileged_ports=_opens_privileged_ports(settings),
        waits=settings.ready == "public",
        grace_period=settings.grace_period,
    )
    if prints:
        output.say(unit.text.removesuffix("\n"))
        return
    folder = _user_units() if by_user else _SYSTEM_UNITS
    path = folder / f"{unit.name}.service"
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, unit.text, force=force)
    systemctl = "systemctl --user" if by_user else "systemctl"
    output.say(f"{path} is written; next: {systemctl} daemon-reload && {systemctl} enable --now {unit.name}")
    renewing = "reload" if unit.sees_changes else "restart"
    output.say(f"after a change of its files, such as a renewed certificate: {systemctl} {renewing} {unit.name}")
    if by_user:
        output.say("to run it while you are not logged in as well: loginctl enable-linger")


def _variables_in(value: object) -> Iterator[str]:
    """Yields the environment variables that a tree of a configuration has, after the prefix ``env:``."""
    if isinstance(value, EnvironmentText):
        yield from value.variables
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _variables_in(each)


def _version() -> int | None:
    """Returns the release of this system's systemd; None if it has none."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return None
    try:
        done = subprocess.run(
            [systemctl, "--version"], capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else None


def _command() -> tuple[str, ...]:
    """Returns the words that start this program again."""
    name = sys.argv[0]
    if os.path.basename(name) == "asport-sync":
        return (os.path.abspath(name),)
    return (sys.executable, "-m", "asport_sync")


def _user_units() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(folder) if os.path.isabs(folder) else Path.home() / ".config") / "systemd/user"


def _check_account(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise AsportError(f"there is no account {name!r} on this system") from None


def _check_command(words: tuple[str, ...], *, is_this: bool, by_everyone: bool) -> None:
    """Raises AsportError unless services can execute a command.

    Args:
        words: The command.
        is_this: Whether it is the one that runs now, so that the places of Python and of the package are known.
        by_everyone: Whether every account has to be able to.
    """
    needed = [Path(words[0]), *_interpreter(Path(words[0]))]
    if is_this:
        needed += [Path(sys.prefix), Path(sys.base_prefix), _PACKAGE]
    places = list(dict.fromkeys(each for path in needed for each in (path, Path(os.path.realpath(path)))))
    for place in places:
        hidden = _hidden_by(place)
        if hidden is not None:
            via = "" if place == places[0] else f", and it needs {place}"
            raise AsportError(f"{words[0]}: system services see nothing below {hidden}{via}; {_CURE}")
    for place in places:
        if by_everyone and os.path.exists(place) and not _may_be_used(place, stat.S_IXOTH):
            raise AsportError(f"{words[0]}: not every account may use {place}: chmod -R go+rX, or --account")


def _interpreter(script: Path) -> tuple[Path, ...]:
    """Returns the program that the first line of a script names, if there is one."""
    try:
        with script.open("rb") as file:
            line = file.readline(_LONGEST_SHEBANG)
    except OSError:  # it may be installed later
        return ()
    words = line.removeprefix(b"#!").split()
    return (Path(os.fsdecode(words[0])),) if line.startswith(b"#!") and words else ()


def _check_trust(settings: Settings, file: Path) -> None:
    tunnels = settings.tunnels.values() if isinstance(settings, config.ClientConfig) else ()
    if any(tunnel.tls.certificates.trust_on_first_use for tunnel in tunnels):
        raise AsportError(
            f"{file}: trust_on_first_use: a system service has no folder in which it could keep the keys of servers; "
            "replace it by pins with the key that asport-sync pin prints on the server, and pins_only"
        )


def _hidden_by(path: Path) -> Path | None:
    """Returns the folder below which system services see nothing, if a path is in one."""
    return next((hidden for hidden in _HIDDEN if hidden in path.parents), None)


def _check_visible(path: Path, file: Path, key: str) -> None:
    """Raises AsportError if services do not see a file or socket, which a key of the configuration names."""
    for place in (path, Path(os.path.realpath(path))):
        hidden = _hidden_by(place)
        if hidden is not None:
            where = f"{file}: {key}: {path}" if key else str(path)
            via = "" if place == path else f", and it leads to {place}"
            raise AsportError(
                f"{where}: system services see nothing below {hidden}{via}; move it, such as to /etc/asport"
            )


def _read_by(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yields the keys of the files that a service reads, and these."""
    for key, path in paths_of(settings):
        if key.rpartition(".")[2] not in NOT_READ:
            yield key, path


def _logs(settings: Settings, file: Path, name: str, *, sees_folder: bool) -> tuple[str, ...]:
    """Checks the files and sockets that a service writes or connects to.

    Args:
        settings: The configuration.
        file: Where it is.
        name: The name of the unit.
        sees_folder: Whether the service sees the folder of the configuration, and not only copies of files.

    Returns:
        The folders below /var/log in which it writes, relative to that.

    Raises:
        AsportError: It could not.
    """
    runtime = _RUNTIME / name
    folders = set()
    for key, path in paths_of(settings):
        last = key.rpartition(".")[2]
        if last not in NOT_READ:
            continue
        is_relative = file.parent in path.parents
        shown = path.relative_to(file.parent) if is_relative else path
        if last == "local":
            _check_visible(path, file, key)
            if is_relative and not sees_folder:
                raise AsportError(
                    f"{file}: {key}: the service does not see {shown} next to the configuration, because it gets "
                    "copies of files, and no sockets; put the socket into another folder, such as one below /run"
                )
        elif path.parent == runtime:
            pass
        elif last == "control_socket":
            raise AsportError(
                f"{file}: {key}: the service cannot create {shown}: expected a path in {runtime}, where the socket is "
                "without this key as well"
            )
        elif _LOGS in path.parent.parents and ".." not in path.parts:
            folders.add(str(path.parent.relative_to(_LOGS)))
        else:
            raise AsportError(
                f"{file}: {key}: the service cannot write {shown}: expected a path in a folder below {_LOGS}, such as "
                f"{_LOGS / name / path.name}, or in {runtime}"
            )
    return tuple(sorted(folders))


def _opens_privileged_ports(settings: Settings) -> bool:
    if isinstance(settings, config.ClientConfig):
        return False
    privileged = (proxy.allow_ports.intersection(1, _PRIVILEGED - 1) for proxy in settings.proxies)
    return 0 < settings.server.port < _PRIVILEGED or any(privileged)


@contextlib.contextmanager
def _as_service(folder: Path) -> Iterator[None]:
    """Makes a folder that of the service's credentials, and removes the variables of this shell that replace keys."""
    before = dict(os.environ)
    for name in environment.variables():
        del os.environ[name]
    os.environ["CREDENTIALS_DIRECTORY"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _credentials(settings_of: Callable[[Path], Settings], file: Path, settings: Settings) -> dict[str, Path]:
    """Returns the files that the service gets as credentials, by name.

    It sees copies of them, all in one folder. So the configuration is read again as it will be there.

    Raises:
        AsportError: It would not find a file, or could not read it.
    """
    beside = {path.name: path for _, path in (("", file), *_read_by(settings)) if path.parent == file.parent}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, path in beside.items():
            (place / name).symlink_to(path)
        try:
            with _as_service(place):
                found = [("", place / file.name), *_read_by(settings_of(place / file.name))]
        except ConfigError as problem:
            text = str(problem).replace(folder, "%d")
            raise AsportError(
                f"{file}: the service sees copies of the files next to it, in one folder (%d), and no others:\n{text}"
            ) from None
        for key, path in found:
            if path.parent != place:
                _check_readable(path, file, key)
        names = dict.fromkeys([file.name, *sorted(path.name for _, path in found if path.parent == place)])
    for name in names:
        if not name.isascii() or re.search(r"[:\\]", name):
            raise AsportError(
                f"{beside[name]}: no credential of systemd can have this name: expected ASCII, without : and \\"
            )
    return {name: beside[name] for name in names}


def _check_readable(path: Path, file: Path, key: str) -> None:
    """Raises AsportError unless every account may read a file, which a key names, and services see it."""
    _check_visible(path, file, key)
    if not all(_may_be_used(each, stat.S_IROTH) for each in (path, Path(os.path.realpath(path)))):
        raise AsportError(
            f"{file}: {key}: the service cannot read {path}; write the bare name {path.name}, and make a link next to "
            f"the configuration: ln -s {path} {file.parent}/"
        )


def _may_be_used(path: Path, mode: int) -> bool:
    """Returns whether every account has this right on a file, and may enter the folders above it."""
    return bool(path.stat().st_mode & mode) and all(each.stat().st_mode & stat.S_IXOTH for each in path.parents)


def _write(path: Path, text: str, *, force: bool) -> None:
    """Writes a file that is complete or absent."""
    if not force:
        try:
            if path.read_text(encoding="utf-8", errors="replace") == text:
                return
        except FileNotFoundError:
            pass
        else:
            raise AsportError(f"{path} exists and differs: --force overwrites it, --print prints the new one")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".asport-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _percent(text: str) -> str:
    """Returns a value in which systemd expands nothing.

    Raises:
        AsportError: No unit file can have it.
    """
    if not text.isprintable() or text != text.strip() or text.endswith("\\"):
        raise AsportError(f"{text!r} cannot be written in a unit file")
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Returns a word in quotation marks if it needs them."""
    text = _percent(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if re.search(r"[\s'\";]", text) else text


def _word(text: str) -> str:
    """Returns one word of a command line, after the program."""
    return _quoted(text.replace("$", "$$"))


def _folder(text: str) -> str:
    """Returns one folder of ``LogsDirectory=``, whose words are split at colons, and unquoted, a second time.

    Raises:
        AsportError: No unit file can have it.
    """
    if re.search(r"[:'\"\\]", text):
        raise AsportError(f"{text!r} cannot be written in a unit file: expected a folder without quotes, : and \\")
    return _quoted(text)
