"""The control socket as a file: its mode, what it replaces, who may use it, and where it is looked for."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from asport_sync.control import control_socket
from asport_sync.control.control_socket import (
    ControlSocket,
    SocketInUse,
    default_path,
    find,
    prepare_directory,
    refusal,
)
from asport_sync.errors import ConfigError
from asport_sync.host.stats import Side


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dead(path: Path) -> None:
    """Leaves the socket of a process that has died."""
    folder = os.open(path.parent, os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")  # because a path of a socket may have 107 bytes
    finally:
        os.close(folder)


def test_only_its_owner_may_use_it(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    before = os.umask(0)
    try:
        control = ControlSocket(path)
    finally:
        assert os.umask(before) == 0  # unchanged
    try:
        assert mode(path) == 0o600
        assert os.listdir(tmp_path) == ["client.sock"]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
    finally:
        control.close()
    assert os.listdir(tmp_path) == []
    control.close()


def test_its_mode_is_never_another_one(tmp_path: Path) -> None:
    """Looks at the path all the time while sockets come and go."""
    path = tmp_path / "client.sock"
    modes, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                modes.add(mode(path))
            except FileNotFoundError:
                pass

    before = os.umask(0)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(200):
            ControlSocket(path).close()
    finally:
        over.set()
        watcher.join()
        os.umask(before)
    assert modes <= {0o600}


def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    dead(path)
    control = ControlSocket(path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
    control.close()


def test_a_socket_that_answers_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    control = ControlSocket(path)
    with pytest.raises(SocketInUse, match=f"process {os.getpid()} uses it") as caught:
        ControlSocket(path)
    assert caught.value.key == "control_socket"
    assert str(path) in str(caught.value)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))  # still the first one
    control.close()


def test_a_directory_that_somebody_keeps_locked_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "_LOCK_TIMEOUT", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        control = ControlSocket(tmp_path / "client.sock")
        control.close()
    finally:
        os.close(descriptor)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["bind", "listen"])
def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    class Failing(socket.socket):
        pass

    def fail(*_: object) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    setattr(Failing, step, fail)
    monkeypatch.setattr(control_socket, "new_socket", Failing)
    with pytest.raises(ConfigError, match="No buffer space"):
        ControlSocket(tmp_path / "client.sock")
    monkeypatch.setattr(control_socket, "new_socket", fail)
    with pytest.raises(ConfigError, match="No buffer space"):
        ControlSocket(tmp_path / "client.sock")
    assert os.listdir(tmp_path) == []


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="there is another file"):
        ControlSocket(path)
    path.rename(tmp_path / "other")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="there is another file"):
        ControlSocket(path)
    assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.parametrize("path", ["missing/client.sock", "x" * 108])
def test_where_none_can_be(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="cannot create the control socket") as caught:
        ControlSocket(tmp_path / path)
    assert caught.value.key == "control_socket"
    assert os.listdir(tmp_path) == []


def test_what_another_process_has_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    control = ControlSocket(path)
    path.unlink()
    other = ControlSocket(path)
    control.close()
    assert path.exists()
    other.close()
    assert not path.exists()


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "client.sock"
    dead(path)
    made: list[ControlSocket] = []
    problems: list[ConfigError] = []
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait()
        try:
            made.append(ControlSocket(path))
        except ConfigError as problem:
            problems.append(problem)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(problems)) == (1, 7)
    made[0].close()


# --- who may use it ---------------------------------------------------------------------------------------------------

CONNECT = """
import os, socket, sys
if len(sys.argv) > 2:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.recv(1)
"""


def test_the_own_user_may_use_it(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert refusal(one) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_may_not_even_if_the_mode_lets_them() -> None:
    # Not tmp_path, which other users cannot enter.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        os.chmod(folder, 0o755)
        path = Path(folder, "s")
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", CONNECT, str(path), "65534"])
        try:
            with listening.accept()[0] as accepted:
                assert refusal(accepted) == "user 65534 may not use it"
        finally:
            child.wait(20)


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for services of the system, which is empty; and no folder in the environment."""
    system = tmp_path / "run"
    system.mkdir()
    monkeypatch.setattr(control_socket, "_SYSTEM", system)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return system


def test_where_a_command_has_it(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_root = places / "asport-sync" if os.geteuid() == 0 else None
    assert default_path(Side.CLIENT) == (of_root and of_root / "client.sock")
    of_login = places / "user" / str(os.geteuid())
    of_login.mkdir(parents=True)
    assert default_path(Side.CLIENT) == of_login / "asport-sync/client.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    assert default_path(Side.CLIENT) == places / "asport-sync/client.sock"
    assert default_path(Side.SERVER) == places / "asport-sync/server.sock"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/asport-server:/run/other")
    assert default_path(Side.SERVER) == Path("/run/asport-server/server.sock")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "relative")
    assert default_path(Side.SERVER) == places / "asport-sync/server.sock"
    for nothing in ("relative", str(places / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", nothing)
        assert default_path(Side.SERVER) == of_login / "asport-sync/server.sock"


def test_directories_that_others_may_change_are_not_used(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_user, of_login = tmp_path / "user", places / "user" / str(os.geteuid())
    for folder in (of_user, of_login):
        folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(of_user))
    for bits in (0o777, 0o770, 0o702):
        of_user.chmod(bits)
        assert default_path(Side.SERVER) == of_login / "asport-sync/server.sock"
    of_user.chmod(0o1777)  # as /tmp: the directory in it is refused if it is of another user
    assert default_path(Side.SERVER) == of_user / "asport-sync/server.sock"
    of_user.chmod(0o777)
    of_login.chmod(0o777)
    places.chmod(0o777)
    assert default_path(Side.SERVER) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_directories_of_others_are_not_used(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``su`` keeps the variable of the user before, whose directory it is."""
    of_user, of_login = tmp_path / "user", places / "user/0"
    for folder in (of_user, of_login):
        folder.mkdir(parents=True)
        os.chown(folder, 65534, -1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(of_user))
    assert default_path(Side.SERVER) == places / "asport-sync/server.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 65533)  # no directory is made in /run for others
    assert default_path(Side.SERVER) is None


def test_where_they_are_looked_for(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("run/asport-server", "run/asport-client-a", "run/another", "user/asport-sync", "user/asport-client"):
        (tmp_path / folder).mkdir(parents=True)
    of_user = ["user/asport-sync/client.sock", "user/asport-client/client.sock"]
    of_system = ["run/asport-client-a/client.sock", "run/asport-server/server.sock"]
    for name in [*of_user, *of_system, "run/another/client.sock"]:
        dead(tmp_path / name)
    (tmp_path / "user/asport-sync/server.sock").touch()
    assert find() == [tmp_path / name for name in of_system]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    assert find() == [tmp_path / name for name in (*of_user, *of_system)]
    assert find(Side.SERVER) == [tmp_path / of_system[1]]
    of_login = places / "user" / str(os.geteuid()) / "asport-sync/server.sock"
    of_login.parent.mkdir(parents=True)
    dead(of_login)
    assert find(Side.SERVER) == [of_login, tmp_path / of_system[1]]


def test_the_folder_of_a_user_is_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "asport-sync"
    prepare_directory(folder)
    prepare_directory(folder)
    assert mode(folder) == 0o700
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        prepare_directory(folder)
    with pytest.raises(ConfigError, match=re.escape(f"cannot create {tmp_path / 'missing' / 'asport-sync'}")):
        prepare_directory(tmp_path / "missing" / "asport-sync")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_the_folder_of_a_user_is_not_what_another_user_made(tmp_path: Path) -> None:
    own, link, folder = tmp_path / "own", tmp_path / "link", tmp_path / "folder"
    for each in (own, folder):
        each.mkdir(0o700)
    link.symlink_to(own)
    prepare_directory(link)  # as the runtime directory of a service
    os.chown(link, 65534, -1, follow_symlinks=False)
    os.chown(folder, 65534, -1)
    for each in (link, folder):
        with pytest.raises(ConfigError, match="can be changed by other users"):
            prepare_directory(each)
