"""Changed files: what is noticed of them, and what a reload does with them. The engine is played."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asport_sync.config import Credential, ServerConfig
from asport_sync.engine import Engine
from asport_sync.errors import ConfigError, ConfigErrors, EngineError, LifecycleError
from asport_sync.host import lifecycle
from asport_sync.host.lifecycle import State
from asport_sync.host.reload import FileWatch, Reloaded, log_refused, log_reloaded
from asport_sync.runtime import log
from asport_sync.server.server import Server
from tests.host.fake_engine import FakeEngine
from tests.support.waiting import wait_until

ALICE = "00112233-4455-6677-8899-aabbccddeeff"
BOB = "ffffffff-4455-6677-8899-aabbccddeeff"
SECRET = "open sesame"
TIMEOUT = 10.0

# --- the watch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text("content")
    return files


@pytest.fixture
def watch(files: list[Path]) -> FileWatch:
    watch = FileWatch(lambda: files, lambda: None)
    watch.accept()
    return watch


def test_a_change_counts_once_it_has_stayed_for_another_poll(watch: FileWatch, files: list[Path]) -> None:
    assert [watch.poll() for _ in range(3)] == [False] * 3
    files[1].write_text("other content")
    assert [watch.poll() for _ in range(4)] == [False, True, False, False]


def test_a_file_that_is_still_being_written_is_left_alone(watch: FileWatch, files: list[Path]) -> None:
    for part in range(5):
        files[0].write_text("content" * part)
        assert not watch.poll()
    assert watch.poll()


def test_other_times_with_the_same_content_are_no_change(watch: FileWatch, files: list[Path]) -> None:
    os.utime(files[0], (1, 1))
    replacement = files[0].with_name("replacement")
    replacement.write_text("content")
    replacement.rename(files[0])
    assert [watch.poll() for _ in range(3)] == [False] * 3


def test_a_change_that_is_undone_is_none(watch: FileWatch, files: list[Path]) -> None:
    files[0].write_text("other content")
    assert not watch.poll()
    files[0].write_text("content")
    assert [watch.poll() for _ in range(3)] == [False] * 3


def test_files_that_come_and_go_are_changes(watch: FileWatch, files: list[Path]) -> None:
    files[0].unlink()
    assert [watch.poll() for _ in range(3)] == [False, True, False]
    files[0].write_text("content")
    assert [watch.poll() for _ in range(3)] == [False, True, False]


def test_files_that_were_not_watched_before_are_known_as_they_are(watch: FileWatch, files: list[Path]) -> None:
    files.append(files[0].with_name("three"))
    files[2].write_text("new")
    assert [watch.poll() for _ in range(2)] == [False] * 2
    files[2].write_text("newer")
    assert [watch.poll() for _ in range(2)] == [False, True]


def test_what_is_accepted_is_no_change(watch: FileWatch, files: list[Path]) -> None:
    files[0].write_text("other content")
    assert not watch.poll()
    watch.accept()
    assert [watch.poll() for _ in range(3)] == [False] * 3


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """As in a ConfigMap of Kubernetes: the file is a link to one in a folder, which is a link that is replaced."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.yaml").write_text(name)
    (tmp_path / "..data").symlink_to("first")
    file = tmp_path / "server.yaml"
    file.symlink_to("..data/server.yaml")
    watch = FileWatch(lambda: [file], lambda: None)
    watch.accept()
    assert not watch.poll()
    (tmp_path / "..data_tmp").symlink_to("second")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert [watch.poll() for _ in range(3)] == [False, True, False]


def test_a_file_is_read_only_after_a_change(
    watch: FileWatch, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path | None] = []
    real = Credential.read

    def note(credential: Credential, key: str | None = None) -> bytes:
        read.append(credential.path)
        return real(credential, key)

    monkeypatch.setattr(Credential, "read", note)
    watch.poll()
    assert read == []
    files[1].write_text("other content")
    watch.poll()
    watch.poll()
    assert read == [files[1]]


def test_what_can_be_read_only_once_is_not_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    watch = FileWatch(lambda: [fifo], lambda: None)
    watch.accept()  # would wait for ten seconds
    began = time.monotonic()
    assert not watch.poll()
    assert time.monotonic() - began < 5


def test_the_thread_polls_and_ends(files: list[Path]) -> None:
    changed = threading.Event()
    watch = FileWatch(lambda: files, changed.set)
    watch.accept()
    for _ in range(2):
        watch.start(0.01)
        files[0].write_text(f"content of {time.monotonic_ns()}")
        assert changed.wait(TIMEOUT)
        changed.clear()
        watch.stop(TIMEOUT)
        watch.stop(TIMEOUT)
    assert not [thread for thread in threading.enumerate() if thread.name == "asport-watch"]


def test_the_thread_may_stop_itself(files: list[Path]) -> None:
    stopped = threading.Event()

    def stop() -> None:
        own.stop(TIMEOUT)
        stopped.set()

    own = FileWatch(lambda: files, stop)
    own.accept()
    own.start(0.01)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "asport-watch"]
    files[0].write_text("other content")
    assert stopped.wait(TIMEOUT)
    thread.join(TIMEOUT)
    assert not thread.is_alive()


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_what_a_reload_says(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_reloaded(Reloaded(), logging.getLogger())
        log_reloaded(Reloaded(), logging.getLogger(), has_copies=True)
        log_reloaded(Reloaded(("a: new", "b: 1 -> 2"), ("server", "relay")), logging.getLogger())
        log_reloaded(Reloaded(tuple(map(str, range(22)))), logging.getLogger())
        errors = [ConfigError("one", line=1, path="f"), ConfigError("two", line=2, path="f")]
        log_refused(ConfigErrors(errors), logging.getLogger())
    assert caplog.messages == [
        "configuration reloaded: nothing has changed",
        "configuration reloaded: nothing has changed in the copies of the files that systemd has made "
        "(LoadCredential=): it makes them when the service starts, and from systemd 260 on again at systemctl reload",
        "configuration reloaded: a: new; b: 1 -> 2",
        "a restart is needed for the changes of server, relay",
        f"configuration reloaded: {'; '.join(map(str, range(20)))}; and 2 more",
        "reload: f:1: one",
        "reload: f:2: two",
        "the configuration is not reloaded; the previous configuration stays in use",
    ]
    assert [record.levelname for record in caplog.records] == [*["INFO"] * 3, "WARNING", "INFO", *["ERROR"] * 3]


# --- a server with a file ---------------------------------------------------------------------------------------------


class PlayedServer(Server):
    """A server whose engines the test can reach."""

    @property
    def engines(self) -> list[FakeEngine]:
        found: list[FakeEngine] = self.__dict__.setdefault("_engines", [])
        return found

    def _new_engine(self) -> Engine:
        self.engines.append(FakeEngine())
        return self.engines[-1].as_real()


class Files:
    """A configuration file and those that it names."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "server.json"
        self.certificate = directory / "chain.pem"
        self.private_key = directory / "key.pem"
        self.password = directory / "password"
        self.certificate.write_text("-----BEGIN CERTIFICATE-----\n")
        self.private_key.write_text("-----BEGIN PRIVATE KEY-----\n")
        self.password.write_text(SECRET)
        self.write()

    def write(self, **changes: Any) -> None:
        options = {
            "server": "127.0.0.1:0",
            "certificate": "chain.pem",
            "private_key": "key.pem",
            "proxies": [{"users": {ALICE: {"password_file": "password"}}}],
            **changes,
        }
        self.path.write_text(json.dumps(options, indent=1))


@pytest.fixture
def files_of_server(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def server(files_of_server: Files) -> Iterator[PlayedServer]:
    with PlayedServer.from_config(files_of_server.path) as server:
        yield server


def test_a_reload_without_a_change_does_nothing(server: PlayedServer) -> None:
    config = server.config
    assert server.reload() == Reloaded()
    assert server.config == config
    (endpoint,) = server.engines[0].endpoints
    assert (endpoint.credentials, endpoint.transports) == ([], [])
    assert [each.freed for each in server.engines[0].credentials_made] == [False, True]


def test_a_reload_follows_the_file(server: PlayedServer, files_of_server: Files) -> None:
    users = {ALICE: {"password_file": "password"}, BOB: SECRET}
    files_of_server.write(proxies=[{"users": users}], receive_memory=1 << 27, tcp_keepalive="off", max_idle_time="7s")
    before = server.config.receive_memory
    assert set(server.reload().changes) == {
        f"user {BOB}: added",
        f"receive_memory: {before} -> {1 << 27}",
        "tcp_keepalive: 60s -> 0s",
        "max_idle_time: 10s -> 7s",
    }
    (engine,) = server.engines
    assert (engine.memory, engine.keepalive) == (1 << 27, 0.0)
    assert [each.idle_timeout for each in engine.endpoints[0].transports] == [7.0]
    assert len(server.config.proxies[0].users) == 2


def test_new_content_of_a_file_is_a_change(server: PlayedServer, files_of_server: Files) -> None:
    files_of_server.certificate.write_text("-----BEGIN CERTIFICATE-----\nrenewed\n")
    assert server.reload() == Reloaded(("certificate: new",))
    files_of_server.private_key.write_text("-----BEGIN PRIVATE KEY-----\nrenewed\n")
    files_of_server.password.write_text("another")
    reloaded = server.reload()
    assert set(reloaded.changes) == {"private_key: new", f"user {ALICE}: password: new"}
    (engine,) = server.engines
    assert engine.endpoints[0].credentials == engine.credentials_made[1:]
    assert [each.freed for each in engine.credentials_made] == [True, True, False]
    assert SECRET not in repr(reloaded)


def test_another_file_is_said_once(server: PlayedServer, files_of_server: Files, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_text("-----BEGIN CERTIFICATE-----\nother\n")
    files_of_server.write(certificate="other.pem")
    assert server.reload().changes == (f"certificate: {tmp_path}/chain.pem -> {tmp_path}/other.pem",)


def test_a_configuration_may_be_given(server: PlayedServer, files_of_server: Files) -> None:
    config = ServerConfig.from_options(
        server="127.0.0.1:0",
        certificate=files_of_server.certificate,
        private_key=files_of_server.private_key,
        proxies=[],
    )
    assert server.reload(config).changes == (f"user {ALICE}: removed",)
    assert server.reload().changes == (f"user {ALICE}: added",)  # the file has not changed


def break_syntax(files: Files) -> None:
    files.path.write_text("{")


def break_keys(files: Files) -> None:
    files.write(server="nonsense", max_idle_time=5)


def remove_password(files: Files) -> None:
    files.password.unlink()


def remove_certificate(files: Files) -> None:
    files.certificate.unlink()


def remove_file(files: Files) -> None:
    files.path.unlink()


@pytest.mark.parametrize("spoil", [break_syntax, break_keys, remove_password, remove_certificate, remove_file])
def test_what_is_unusable_changes_nothing(
    server: PlayedServer,
    files_of_server: Files,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Files], None],
) -> None:
    files_of_server.write(log_level="info")
    spoil(files_of_server)
    before = server.config
    with pytest.raises(ConfigError) as caught:
        server.reload()
    assert server.config is before
    (engine,) = server.engines
    assert engine.endpoints[0].credentials == []
    assert [each.freed for each in engine.credentials_made] == [False]
    errors = str(caught.value).splitlines()
    assert caplog.messages == [
        *(f"reload: {error}" for error in errors),
        "the configuration is not reloaded; the previous configuration stays in use",
    ]
    assert len(errors) == (2 if spoil is break_keys else 1)
    assert all(error.startswith(str(files_of_server.path.parent)) for error in errors)


def test_credentials_that_the_engine_refuses_change_nothing(server: PlayedServer, files_of_server: Files) -> None:
    files_of_server.write(log_level="info")
    server.engines[0].credentials_problem = EngineError(-7, "private key: does not belong to the certificate")
    with pytest.raises(ConfigError, match=r"key\.pem: private_key: does not belong to the certificate"):
        server.reload()
    assert server.config.log_level == "warn"
    server.engines[0].credentials_problem = None
    assert server.reload().changes == ("log_level: warn -> info",)


def test_what_needs_a_restart_waits_for_it(server: PlayedServer, files_of_server: Files) -> None:
    before = server.config
    files_of_server.write(server="127.0.0.2:0", max_workers=7, log_level="info")
    for changes in (("log_level: warn -> info",), ()):
        assert server.reload() == Reloaded(changes, ("max_workers", "server"))
        assert (server.config.server, server.config.max_workers) == (before.server, before.max_workers)
    assert server.address[0] == "127.0.0.1"
    server.stop()
    server.start()
    assert server.address[0] == "127.0.0.2"
    assert server.config.max_workers == 7
    assert server.reload() == Reloaded()


def test_what_needs_a_restart_no_more_is_forgotten(server: PlayedServer, files_of_server: Files) -> None:
    files_of_server.write(server="127.0.0.2:0")
    assert server.reload().needs_restart == ("server",)
    files_of_server.write()
    assert server.reload() == Reloaded()
    server.stop()
    server.start()
    assert server.address[0] == "127.0.0.1"


def test_without_a_file_there_is_nothing_to_read_again(files_of_server: Files) -> None:
    config = PlayedServer.from_config(files_of_server.path).config
    with PlayedServer.from_config(config) as server:
        with pytest.raises(LifecycleError, match="was made from options: there is no file to read again"):
            server.reload()
        assert server.reload(config) == Reloaded()


def test_reloads_only_while_it_runs(files_of_server: Files) -> None:
    server = PlayedServer.from_config(files_of_server.path)
    with pytest.raises(LifecycleError, match="not started"):
        server.reload()
    server.start()
    server.drain()
    with pytest.raises(LifecycleError, match="is draining"):
        server.reload()
    server.stop()
    with pytest.raises(LifecycleError, match="not started"):
        server.reload()


def test_a_reload_during_a_stop_says_so(server: PlayedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, problems, go_on = threading.Event(), [], threading.Event()
    stop = server.engines[0].stop

    def stop_slowly() -> None:
        reached.set()
        assert go_on.wait(TIMEOUT)
        stop()

    monkeypatch.setattr(server.engines[0], "stop", stop_slowly)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert reached.wait(TIMEOUT)
    try:
        server.reload()
    except LifecycleError as problem:
        problems.append(str(problem))
    go_on.set()
    stopper.join(TIMEOUT)
    assert problems == ["this PlayedServer is being stopped: it is not reloaded"]


def test_a_stop_during_a_reload_ends_it(server: PlayedServer, files_of_server: Files) -> None:
    """The reload waits for the events thread, which ends."""
    host = server._host
    assert host is not None
    busy, go_on = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        go_on.wait(TIMEOUT)

    host.call(keep_busy)
    assert busy.wait(TIMEOUT)
    files_of_server.write(log_level="info")
    problems: list[BaseException] = []

    def reload() -> None:
        try:
            server.reload()
        except BaseException as problem:
            problems.append(problem)

    reloader = threading.Thread(target=reload)
    reloader.start()
    wait_until(lambda: len(host._calls) > 0 or problems, TIMEOUT, "the reload waits")
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    wait_until(lambda: server._state is State.STOPPING, TIMEOUT, "the stop has begun")
    go_on.set()
    reloader.join(TIMEOUT)
    stopper.join(TIMEOUT)
    assert not reloader.is_alive()
    assert not stopper.is_alive()
    assert all(isinstance(problem, LifecycleError) for problem in problems)


def test_reloads_are_made_one_after_the_other(server: PlayedServer, files_of_server: Files) -> None:
    results: list[Reloaded] = []
    files_of_server.write(log_level="info")
    reloaders = [threading.Thread(target=lambda: results.append(server.reload())) for _ in range(8)]
    for reloader in reloaders:
        reloader.start()
    for reloader in reloaders:
        reloader.join(TIMEOUT)
    assert sorted(results, key=lambda each: len(each.changes)) == [Reloaded()] * 7 + [
        Reloaded(("log_level: warn -> info",))
    ]


@pytest.mark.parametrize("thread", ["events", "pump", "worker"])
def test_a_thread_that_the_reload_needs_cannot_make_one(server: PlayedServer, thread: str) -> None:
    host = server._host
    assert host is not None
    problems: list[str] = []
    done = threading.Event()

    def reload() -> None:
        try:
            server.reload()
        except LifecycleError as problem:
            problems.append(str(problem))
        finally:
            done.set()

    {"events": host.call, "pump": host.pump.call, "worker": host.workers.submit}[thread](reload)
    assert done.wait(TIMEOUT)
    assert problems == ["this PlayedServer cannot be reloaded in the middle of another call"]


def test_an_events_thread_that_is_blocked_is_not_waited_for_without_limit(
    server: PlayedServer, files_of_server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a log handler, or because a signal handler makes this call in a thread that holds what it needs."""
    monkeypatch.setattr("asport_sync.server.server.APPLY_TIMEOUT", 0.2)
    host = server._host
    assert host is not None
    go_on = threading.Event()
    host.call(go_on.wait, TIMEOUT)
    files_of_server.write(max_idle_time="7s")
    try:
        with pytest.raises(LifecycleError, match="blocked"):
            server.reload()
    finally:
        go_on.set()
    assert server.config.max_idle_time == 10.0
    host.run(lambda: None)
    assert server.engines[0].endpoints[0].transports == []  # nor later
    assert server.reload().changes == ("max_idle_time: 10s -> 7s",)


def test_a_signal_handler_that_stops_it_waits_for_the_end_of_the_reload(
    server: PlayedServer, files_of_server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_of_server.write(log_level="info")
    during: list[bool] = []

    def interrupted(level: str, *, configured: bool) -> None:
        server.stop()  # as by a handler in this thread
        during.append(server.running)
        with pytest.raises(LifecycleError, match="in the middle of another call"):
            server.reload()

    monkeypatch.setattr(lifecycle, "set_level", interrupted)
    assert server.reload().changes == ("log_level: warn -> info",)
    assert during == [True]
    assert not server.running


def test_the_log_level_of_a_command_follows(
    server: PlayedServer, files_of_server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[str] = []
    monkeypatch.setattr(lifecycle, "set_level", lambda level, *, configured: levels.append(level))
    files_of_server.write(log_level="debug")
    server.reload()
    server.reload()
    assert levels == ["debug"]
    assert log.LEVELS["debug"] == logging.DEBUG


# --- watching ---------------------------------------------------------------------------------------------------------


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "asport-watch"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls come a hundred times as often."""
    start = FileWatch.start
    monkeypatch.setattr(FileWatch, "start", lambda self, period: start(self, period / 100))


def test_files_are_watched_where_that_is_configured(files_of_server: Files, quick: None) -> None:
    files_of_server.write(watch="1s")
    server = PlayedServer.from_config(files_of_server.path)
    assert watchers() == []
    files_of_server.write(watch="1s", log_level="info")  # after it was read, and before the watch begins
    with server:
        wait_until(lambda: server.config.log_level == "info", TIMEOUT, "the change is noticed")
        files_of_server.certificate.write_text("-----BEGIN CERTIFICATE-----\nrenewed\n")
        wait_until(lambda: len(server.engines[0].endpoints[0].credentials) == 2, TIMEOUT, "the certificate is noticed")
        # What is refused is not tried again until it has changed.
        files_of_server.path.write_text("{")
        time.sleep(0.3)
        assert server.config.log_level == "info"
        files_of_server.write(log_level="debug")
        wait_until(lambda: server.config.log_level == "debug", TIMEOUT, "it is right again")
        wait_until(lambda: watchers() == [], TIMEOUT, "the file says no more that it is to be watched")
        files_of_server.write(watch="1s")
        server.reload()
        assert len(watchers()) == 1
    assert watchers() == []


def test_a_reload_that_was_asked_for_is_not_made_again(
    files_of_server: Files, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    files_of_server.write(watch="1s")
    with caplog.at_level(logging.INFO), PlayedServer.from_config(files_of_server.path) as server:
        files_of_server.write(watch="1s", log_level="info")
        server.reload()
        time.sleep(0.2)
    assert len([message for message in caplog.messages if message.startswith("configuration reloaded")]) <= 2


# --- run_forever ------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"asport-reload-{os.getpid()}"
        manager.bind("\0" + name)
        manager.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        yield manager


def in_the_background(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.fixture
def default_hang_up() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hang_up_reloads_and_systemd_is_told(
    files_of_server: Files, manager: socket.socket, default_hang_up: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = PlayedServer.from_config(files_of_server.path)
    said: list[bytes] = []

    def act() -> None:
        said.append(manager.recv(1000))
        for content in ({"log_level": "info"}, {"log_level": "nonsense"}):
            files_of_server.write(**content)
            os.kill(os.getpid(), signal.SIGHUP)
            said.extend([manager.recv(1000), manager.recv(1000)])
        server.stop()
        said.append(manager.recv(1000))

    actor = in_the_background(act)
    assert server.run_forever() is None
    actor.join(TIMEOUT)
    started, began, reloaded, began_again, refused, stopping = said
    assert started.startswith(b"READY=1\nSTATUS=accepting clients on 127.0.0.1:")
    assert began.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert reloaded == started
    assert began_again.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert refused.startswith(started + b"; the latest reload was refused: ")
    assert b"server.json:" in refused
    assert stopping == b"STOPPING=1"
    assert server.config.log_level == "info"
    assert caplog.messages[-1] == "the configuration is not reloaded; the previous configuration stays in use"


def test_systemd_need_not_wait_for_what_is_draining(
    files_of_server: Files, manager: socket.socket, default_hang_up: None
) -> None:
    """systemctl reload waits for RELOADING=1, then for READY=1, also if the answer is no."""
    server = PlayedServer.from_config(files_of_server.path)
    said: list[bytes] = []

    def act() -> None:
        manager.recv(1000)  # it has started
        server.drain()
        while not said or b"draining" not in said[-1]:
            said.append(manager.recv(1000))
        os.kill(os.getpid(), signal.SIGHUP)
        said.extend([manager.recv(1000), manager.recv(1000)])
        server.stop()

    actor = in_the_background(act)
    assert server.run_forever() is None
    actor.join(TIMEOUT)
    assert [each[:11] for each in said[-2:]] == [b"RELOADING=1", b"READY=1\nSTA"]


def test_a_reload_of_a_program_s_own_is_not_told(server: PlayedServer, manager: socket.socket) -> None:
    """The service is the program, which has not said that it is ready."""
    server.reload()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1000)


def test_a_hang_up_of_what_has_no_file_changes_nothing(
    files_of_server: Files, default_hang_up: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = PlayedServer.from_config(PlayedServer.from_config(files_of_server.path).config)

    def act() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL, TIMEOUT, "it waits")
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: caplog.messages, TIMEOUT, "it says so")
        server.stop()

    actor = in_the_background(act)
    server.run_forever()
    actor.join(TIMEOUT)
    assert caplog.messages == ["SIGHUP: this PlayedServer was made from options: no file to read again"]


# --- draining and the grace period ------------------------------------------------------------------------------------


class BusyServer(PlayedServer):
    """A server with something open as long as ``busy`` is set."""

    busy = True

    def _new_session(self, host: Any) -> Any:
        session = super()._new_session(host)
        session.is_idle = lambda: not self.busy  # type: ignore[method-assign]
        return session


def test_a_stop_with_a_grace_period_waits_for_what_is_open(files_of_server: Files) -> None:
    server = BusyServer.from_config(files_of_server.path)
    server.start()
    stopper = in_the_background(lambda: server.stop(grace_period=600))
    wait_until(lambda: server.engines[0].endpoints[0].closed is False, TIMEOUT, "it accepts nothing more")
    assert server.running
    assert server.stats().running
    server.busy = False
    stopper.join(TIMEOUT)
    assert not server.running


def test_a_grace_period_ends(files_of_server: Files, caplog: pytest.LogCaptureFixture) -> None:
    server = BusyServer.from_config(files_of_server.path)
    server.start()
    with caplog.at_level(logging.INFO):
        server.stop(grace_period=0.2)
    assert not server.running
    assert caplog.messages[-2:] == [
        "draining: nothing new is accepted; what is open may go on for 0.2 s (0 clients)",
        "the grace period of 0.2 s is over: closing what is still open",
    ]


def test_another_stop_ends_a_grace_period_at_once(files_of_server: Files) -> None:
    server = BusyServer.from_config(files_of_server.path)
    server.start()
    stopper = in_the_background(lambda: server.stop(grace_period=600))
    wait_until(lambda: server.engines[0].endpoints[0].closed is False, TIMEOUT, "it accepts nothing more")
    server.stop()
    stopper.join(TIMEOUT)
    assert not stopper.is_alive()
    assert not server.running


def test_what_is_idle_or_not_running_needs_no_grace_period(
    files_of_server: Files, caplog: pytest.LogCaptureFixture
) -> None:
    server = PlayedServer.from_config(files_of_server.path)
    server.stop(grace_period=600)
    server.start()
    with caplog.at_level(logging.INFO):
        server.stop(grace_period=600)
    assert not server.running
    assert caplog.messages[-2:] == [
        "draining: nothing new is accepted; what is open may go on for 600 s (0 clients)",
        "drained: nothing is open any more",
    ]


@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
def test_sigterm_drains_and_a_second_signal_ends_that(
    files_of_server: Files, manager: socket.socket, second: signal.Signals | None
) -> None:
    files_of_server.write(grace_period="9h")
    server = BusyServer.from_config(files_of_server.path)
    said: list[bytes] = []

    def act() -> None:
        said.append(manager.recv(1000))
        os.kill(os.getpid(), signal.SIGTERM)
        said.extend([manager.recv(1000), manager.recv(1000)])
        if second is None:
            server.busy = False
        else:
            os.kill(os.getpid(), second)

    actor = in_the_background(act)
    assert server.run_forever() == "SIGTERM"
    actor.join(TIMEOUT)
    assert not server.running
    assert said[1] == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=32405000000"
    assert said[2] == b"STATUS=draining, 0 clients"


def test_sigint_does_not_drain(files_of_server: Files, manager: socket.socket) -> None:
    files_of_server.write(grace_period="9h")
    server = BusyServer.from_config(files_of_server.path)

    def act() -> None:
        manager.recv(1000)
        os.kill(os.getpid(), signal.SIGINT)

    actor = in_the_background(act)
    assert server.run_forever() == "SIGINT"
    actor.join(TIMEOUT)
    assert manager.recv(1000) == b"STOPPING=1"


def test_a_hang_up_while_draining_is_ignored(
    files_of_server: Files, manager: socket.socket, default_hang_up: None, caplog: pytest.LogCaptureFixture
) -> None:
    files_of_server.write(grace_period="9h")
    server = BusyServer.from_config(files_of_server.path)

    def act() -> None:
        manager.recv(1000)
        os.kill(os.getpid(), signal.SIGTERM)
        manager.recv(1000)
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: "SIGHUP ignored while draining" in caplog.messages, TIMEOUT, "it is ignored")
        server.busy = False

    with caplog.at_level(logging.INFO):
        actor = in_the_background(act)
        assert server.run_forever() == "SIGTERM"
        actor.join(TIMEOUT)
