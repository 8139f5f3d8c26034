"""Adds, lists and removes users of a server's configuration file, and changes their passwords.

A change is written only if reading the new text gives the old configuration with exactly this change. The new file
then takes the old one's place at once, with the same owner and permissions; a symbolic link stays one. A running server
follows when it reloads.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from asport_sync.config import HostPort, PortSet, ProxyConfig, ServerConfig, ServerUri, UserConfig, load_server, locate
from asport_sync.config.bad_value import BadValue
from asport_sync.config.hosts import host as parsed_host
from asport_sync.config.hosts import host_port
from asport_sync.config.ports import port_range
from asport_sync.config.values import identifier, user_name
from asport_sync.engine import certificate_pin
from asport_sync.errors import AsportError, ConfigError
from asport_sync.hidden import HiddenText
from asport_sync.runtime import files
from asport_sync.trust.certificate import issuer_and_hosts
from asport_sync.trust.edit import EDITORS, CannotEdit, Editor
from asport_sync.trust.new_server import new_password

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class User:
    """A user of a configuration.

    Attributes:
        uuid: Identifies the user.
        name: Their name; None: they have none.
        entry: The index of their entry of ``proxies``.
    """

    uuid: uuid.UUID
    name: str | None
    entry: int

    @property
    def label(self) -> str:
        """The UUID, after the name if there is one."""
        return str(self.uuid) if self.name is None else f"{self.name} ({self.uuid})"


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A user who has a new password.

    Attributes:
        user: The user.
        password: The password; not shown by ``repr``.
        uri: The URI for their clients; None: the certificate does not say under which name clients reach the server.
    """

    user: User
    password: str = field(repr=False)
    uri: ServerUri | None


def list_users(file: str | os.PathLike[str] | None = None) -> list[User]:
    """Returns the users in the order of the file.

    Args:
        file: The server's configuration; None: the file that ``server run`` would use.

    Raises:
        ConfigError: It cannot be read, or something in it is wrong.
    """
    return _users(load_server(file))


def add_user(
    name: str,
    file: str | os.PathLike[str] | None = None,
    *,
    entry: int = 0,
    ports: tuple[int, int] | None = None,
    host: str | None = None,
) -> NewPassword:
    """Adds a user with a random UUID and password.

    Args:
        name: Their name, which no other user of this server may have.
        file: As for :func:`list_users`.
        entry: The index of the entry of ``proxies`` to which they belong, unless they get ``ports``.
        ports: The first and the last public port that they may open: they get a new entry of ``proxies`` with these,
            in which all other keys have their defaults. None: those of the entry.
        host: The host, or ``host:port``, by which clients reach the server, for the URI; None: what the certificate
            and the configuration say.

    Raises:
        ConfigError: An argument is wrong, or the file.
        AsportError: The file cannot be changed automatically.
        OSError: The file cannot be written.
    """
    try:
        name = user_name(name)
        own_ports = None if ports is None else port_range(ports)
    except BadValue as error:
        raise ConfigError(error.problem) from None
    password = new_password()
    new = UserConfig(uuid=uuid.uuid4(), password=password, name=name)
    keys = {"name": name, "password": password}

    def change(config: ServerConfig, editor: Editor) -> tuple[str, ServerConfig]:
        for user in _users(config):
            if user.name == name:
                raise ConfigError(f"there is a user {user.label} already")
        if own_ports is not None:
            own = ProxyConfig(users=(new,), allow_ports=PortSet([own_ports]))
            expected = dataclasses.replace(config, proxies=(*config.proxies, own))
            return editor.add_entry(own_ports, new.uuid, keys), expected
        if not 0 <= entry < len(config.proxies):
            raise ConfigError(f"there is no entry {entry} of proxies: the file has {len(config.proxies)}")
        expected = _with_users(config, entry, lambda users: (*users, new))
        return editor.add(entry, new.uuid, keys), expected

    path = locate("server", file)
    config = _change(path, change, needs=host)
    return NewPassword(find_user(config, name), password, _uri(config, new.uuid, password, host))


def remove_user(user: str, file: str | os.PathLike[str] | None = None) -> User:
    """Removes a user.

    Args:
        user: Their name or UUID.
        file: As for :func:`list_users`.

    Raises:
        ConfigError: There is no such user, or no other in the entry of ``proxies``, or the file is wrong.
        AsportError: The file cannot be changed automatically.
        OSError: The file cannot be written.
    """
    path = locate("server", file)
    found = find_user(load_server(path), user)

    def change(config: ServerConfig, editor: Editor) -> tuple[str, ServerConfig]:
        if len(config.proxies[found.entry].users) == 1:
            raise ConfigError(
                f"{found.label} is the only user of proxies[{found.entry}], which needs one: add another user before, "
                "or remove the entry with an editor"
            )
        expected = _with_users(
            config, found.entry, lambda users: tuple(each for each in users if each.uuid != found.uuid)
        )
        return editor.remove(found.entry, found.uuid), expected

    _change(path, change)
    return found


def rotate_password(user: str, file: str | os.PathLike[str] | None = None, *, host: str | None = None) -> NewPassword:
    """Gives a user a new random password, in the configuration or in the file that it names.

    Args:
        user: Their name or UUID.
        file: As for :func:`list_users`.
        host: As for :func:`add_user`.

    Raises:
        ConfigError: There is no such user, or the file is wrong.
        AsportError: The file cannot be changed automatically.
        OSError: The file cannot be written.
    """
    path = locate("server", file)
    config = load_server(path)
    found = find_user(config, user)
    password = new_password()
    (before,) = (each for each in config.proxies[found.entry].users if each.uuid == found.uuid)

    def change(config: ServerConfig, editor: Editor) -> tuple[str, ServerConfig]:
        changed = dataclasses.replace(before, password=password)
        expected = _with_users(
            config,
            found.entry,
            lambda users: tuple(changed if each.uuid == found.uuid else each for each in users),
        )
        return editor.set_password(found.entry, found.uuid, password), expected

    if before.password_file is None:
        config = _change(path, change, needs=host)
    else:
        _uri(config, found.uuid, password, host)
        with files.locked(before.password_file) as file_:
            _, newline, rest = file_.content.partition(b"\n")
            file_.replace(password.encode() + (newline or b"\n") + rest)
    return NewPassword(found, password, _uri(config, found.uuid, password, host))


def find_user(config: ServerConfig, user: str) -> User:
    """Returns a user by name or UUID.

    Raises:
        ConfigError: There is none.
    """
    users = _users(config)
    for each in users:
        if each.name == user:
            return each
    try:
        wanted = identifier(user)
    except BadValue:
        wanted = None
    for each in users:
        if each.uuid == wanted:
            return each
    names = ", ".join(each.name for each in users if each.name is not None)
    raise ConfigError(f"there is no user of this name or UUID; names are: {names or 'none'}")


def _users(config: ServerConfig) -> list[User]:
    return [User(user.uuid, user.name, entry) for entry, proxy in enumerate(config.proxies) for user in proxy.users]


def _with_users(
    config: ServerConfig, entry: int, change: Callable[[tuple[UserConfig, ...]], tuple[UserConfig, ...]]
) -> ServerConfig:
    proxies = list(config.proxies)
    proxies[entry] = dataclasses.replace(proxies[entry], users=change(proxies[entry].users))
    return dataclasses.replace(config, proxies=tuple(proxies))


def _change(
    path: Path,
    change: Callable[[ServerConfig, Editor], tuple[str, ServerConfig]],
    *,
    needs: str | None = None,
) -> ServerConfig:
    """Changes a configuration file; returns the configuration that it has then.

    Args:
        path: The file.
        change: Returns the new text, and the configuration that it has to have.
        needs: The argument ``host``, which is validated before anything is changed.
    """
    if needs is not None:
        _reached_by(needs, 0)
    by_hand = "cannot be changed automatically: change it with an editor, and reload the server"
    with files.locked(path) as file:
        config = load_server(path)
        bom = _BOM if file.content.startswith(_BOM) else b""
        text = file.content[len(bom) :].decode()
        try:
            new, expected = change(config, EDITORS[path.suffix.lower()](text))
        except CannotEdit as problem:
            raise ConfigError(f"{by_hand} ({problem})", path=str(path)) from None
        except AsportError:
            raise
        except Exception as problem:  # a library has met a form that it does not handle
            raise ConfigError(f"{by_hand} ({type(problem).__name__})", path=str(path)) from None

        def check(written: Path) -> None:
            # Relative paths in the file start at the folder of the link, if it is one.
            beside = path.with_name(written.name)
            is_elsewhere = not beside.exists()
            if is_elsewhere:
                beside.symlink_to(written)
            try:
                found = load_server(beside)
            except ConfigError:
                found = None
            finally:
                if is_elsewhere:
                    beside.unlink()
            if found != expected:
                raise ConfigError(by_hand, path=str(path))

        file.replace(bom + new.encode(), check)
    return expected


def _reached_by(host: str, port: int) -> HostPort:
    try:
        return HostPort(parsed_host(host), port)
    except BadValue:
        pass
    try:
        return host_port(host)
    except BadValue as error:
        raise ConfigError(f"--host: {error.problem}") from None


def _uri(config: ServerConfig, user: uuid.UUID, password: str, host: str | None) -> ServerUri | None:
    certificate = config.tls.certificate.read()
    is_own_issuer, hosts = issuer_and_hosts(certificate)
    if host is not None:
        server = _reached_by(host, config.server.port)
    elif len(hosts) == 1:
        server = HostPort(hosts[0], config.server.port)
    else:
        return None
    # The certificate of an authority is verified as such: its key may be another one after each renewal.
    pins = (certificate_pin(certificate),) if is_own_issuer else ()
    return ServerUri(user, HiddenText(password), server, pins) if server.port else None
