"""Beginning and end of engines, connections and streams: nothing crashes, nothing hangs, nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asport_sync import engine as engine_module
from asport_sync.engine import (
    CloseCause,
    Connection,
    Engine,
    Listener,
    Stream,
    StreamEnd,
    StreamResult,
    Transport,
    UdpSocket,
)
from asport_sync.engine.binding import ffi, lib, to_address
from asport_sync.engine.values import fill_transport
from asport_sync.errors import EngineClosedError, EngineError, HandleGoneError, LifecycleError
from tests.engine.pair import (
    ALPN,
    EVENT_TIMEOUT,
    HEADER,
    Side,
    client_credentials,
    connect,
    connected,
    echo,
    expect_closed,
    listen,
    running_relays,
    server_credentials,
    tcp_pair,
)
from tests.support.certificates import Certificate, self_signed
from tests.support.process import REPOSITORY
from tests.support.waiting import wait_until

# Names nothing: a value no engine has given out, with a plausible slot and generation.
MADE_UP_IDS = (1, 0, -1, 1 << 32, (7 << 56) | (3 << 32) | 1, (1 << 63) - 1, -(1 << 63))
API = Path(engine_module.__file__).parents[1] / "_native" / "aq_api.h"


# --- start and close --------------------------------------------------------------------------------------------------


def test_close_without_start() -> None:
    Engine().close()


def test_close_twice() -> None:
    engine = Engine()
    engine.start()
    engine.close()
    engine.close()


def test_stop_twice_then_close() -> None:
    engine = Engine()
    engine.start()
    engine.stop()
    engine.stop()
    engine.close()
    engine.stop()


def test_start_twice() -> None:
    engine = Engine()
    engine.start()
    try:
        with pytest.raises(LifecycleError):
            engine.start()
    finally:
        engine.close()


def test_start_after_close() -> None:
    engine = Engine()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.start()


def test_wait_times_out_with_no_events() -> None:
    engine = Engine()
    engine.start()
    try:
        assert engine.wait(0) == []
        assert engine.wait(0.05) == []
    finally:
        engine.close()


def test_stop_wakes_a_thread_that_waits_for_events() -> None:
    with Side("alone") as side:
        side.engine.stop()
        side._thread.join(EVENT_TIMEOUT)
        assert not side._thread.is_alive()


def test_everything_after_close_raises(certificate: Certificate) -> None:
    with Side("closed") as side:
        credentials = client_credentials(side.engine, certificate)
        endpoint, _ = listen(side, certificate)
    engine = side.engine
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for call in (
            engine.wait,
            engine.counters,
            endpoint.close,
            credentials.free,
            Connection(engine, 1).info,
            Stream(engine, 1).reset,
            UdpSocket(engine, 1).receive,
            UdpSocket(engine, 1).give_back,
            lambda: UdpSocket(engine, 1).refuse(("127.0.0.1", 9)),
            Listener(engine, 1).close,
            lambda: Connection(engine, 1).accept(sock),
            lambda: Connection(engine, 1).dial(("127.0.0.1", 9)),
            lambda: client_credentials(engine, certificate),
            lambda: engine.connect(sock, credentials, Transport(), remote=("127.0.0.1", 9), server_name="localhost"),
        ):
            with pytest.raises(EngineClosedError):
                call()


def test_descriptors_offered_to_a_stopped_engine_are_not_kept(certificate: Certificate) -> None:
    with Side("stopped") as side:
        engine = side.engine
        client = client_credentials(engine, certificate)
        server = server_credentials(engine, certificate)
        engine.stop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.create_server(("127.0.0.1", 0)) as tcp:
            sock.bind(("127.0.0.1", 0))
            before = len(os.listdir("/proc/self/fd"))
            for call in (
                lambda: engine.connect(sock, client, Transport(), remote=("127.0.0.1", 9), server_name="localhost"),
                lambda: engine.listen(sock, server, Transport(), reset_key=bytes(32)),
                lambda: Connection(engine, 1).accept(tcp),
                lambda: Connection(engine, 1).open_udp(sock, public=True),
            ):
                with pytest.raises(EngineClosedError):
                    call()
                assert len(os.listdir("/proc/self/fd")) == before


def test_counters_have_names_and_start_at_zero() -> None:
    engine = Engine()
    engine.start()
    try:
        counters = engine.counters()
    finally:
        engine.close()
    assert counters
    assert set(counters.values()) == {0}
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in counters)
    assert list(counters) == [each.name for each in engine_module.COUNTERS]
    assert len(counters) == lib.aq_counter_count()
    assert lib.aq_counter_describe(lib.aq_counter_count()) == ffi.NULL


def test_versions_say_what_is_linked() -> None:
    versions = engine_module.versions()
    assert versions["ngtcp2_origin"] in ("bundled", "bundled, adjusted", "system", "system, fallback")
    assert re.match(r"\d+\.\d+", versions["ngtcp2"])
    assert re.match(r"\d+\.\d+", versions["gnutls"])
    assert versions["build"]


def test_two_engines_do_not_know_each_other(certificate: Certificate) -> None:
    with Side("one") as one, Side("two") as two:
        mine = client_credentials(one.engine, certificate)
        one.close()
        with pytest.raises(EngineClosedError):
            mine.free()
        client_credentials(two.engine, certificate).free()


# --- made-up, stale and mistyped ids ----------------------------------------------------------------------------------


class Argument(NamedTuple):
    """An argument of a function of the boundary, as its prototype declares it."""

    type: str
    name: str


def prototypes() -> dict[str, list[Argument]]:
    """The functions of the boundary that work on an engine, with their further arguments; read from the boundary."""
    text = re.sub(r"/\*.*?\*/", "", API.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\b(aq_\w+)\(aq_engine \*engine(?:,\s*([^)]*))?\);", text)
    split = re.compile(r"(?:const )?(.*?)(\w+)")
    return {
        name: [
            Argument(declared[1].strip(), declared[2])
            for declared in map(split.fullmatch, re.split(r",\s*", rest))
            if declared
        ]
        for name, rest in found
    }


FUNCTIONS = prototypes()
ID_FUNCTIONS = [name for name, arguments in FUNCTIONS.items() if arguments and arguments[0].type == "aq_id"]
# What these do after the end is tested above: they end and free an engine, or check their options first.
ABOVE = {"aq_engine_run", "aq_engine_stop", "aq_engine_close", "aq_engine_free", "aq_connect", "aq_listen"}


def value_of(argument: Argument, handle: int, sock: socket.socket) -> Any:
    """A value that every function accepts. Times are a second, lengths and numbers 1."""
    if argument.name == "fd":
        return sock.fileno()
    if argument.type == "aq_id":
        return handle
    if argument.type == "aq_address *":
        return to_address(("127.0.0.1", 9))
    if argument.type == "aq_transport_options *":
        options = ffi.new("aq_transport_options *")
        fill_transport(options, Transport())
        return options
    if argument.type.endswith("*"):
        return ffi.new(f"{argument.type.removesuffix('*')}[64]")
    return 1_000_000_000 if argument.type == "uint64_t" else 1


def call_with(name: str, handle: int, engine: Engine, sock: socket.socket) -> int:
    """Calls a function of the boundary on an id, with every other argument in order."""
    with contextlib.ExitStack() as stack:
        if name == "aq_stream_attach":
            sock = sock.dup()
            handed_over = sock.fileno()
            stack.callback(sock.detach)
        result = int(getattr(lib, name)(engine._pointer, *(value_of(each, handle, sock) for each in FUNCTIONS[name])))
    if name == "aq_stream_attach":
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handed_over)  # closed although the call failed
    return result


def test_the_prototypes_are_found() -> None:
    assert len(ID_FUNCTIONS) >= 26
    text = re.sub(r"/\*.*?\*/", "", API.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(FUNCTIONS) == len(re.findall(r"\baq_\w+\(aq_engine \*engine\b", text))
    assert FUNCTIONS["aq_associations_idle"][-2:] == [("uint16_t *", "associations"), ("uint32_t", "max")]


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - ABOVE))
def test_a_call_after_the_end(name: str) -> None:
    engine = Engine()
    engine.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert call_with(name, 1, engine, sock) == lib.AQ_ERR_STOPPED


@pytest.mark.parametrize("name", ID_FUNCTIONS)
def test_made_up_id(name: str) -> None:
    engine = Engine()
    engine.start()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for handle in MADE_UP_IDS:
                assert call_with(name, handle, engine, sock) == lib.AQ_ERR_GONE, handle
    finally:
        engine.close()


@pytest.mark.parametrize("name", ID_FUNCTIONS)
def test_id_of_another_kind(name: str, certificate: Certificate) -> None:
    engine = Engine()
    engine.start()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            credentials = client_credentials(engine, certificate)
            if name.startswith("aq_credentials"):
                endpoint_credentials = engine.server_credentials(
                    certificate=certificate.certificate.read_bytes(),
                    private_key=certificate.private_key.read_bytes(),
                    alpn=ALPN,
                )
                wrong = engine.listen(sock, endpoint_credentials, Transport(), reset_key=bytes(32)).id
            else:
                wrong = credentials.id
            assert call_with(name, wrong, engine, sock) == lib.AQ_ERR_GONE
    finally:
        engine.close()


def test_stale_credentials(certificate: Certificate) -> None:
    with Side("client") as side:
        credentials = client_credentials(side.engine, certificate)
        credentials.free()
        with pytest.raises(HandleGoneError):
            credentials.free()
        successor = client_credentials(side.engine, certificate)
        assert successor.id != credentials.id
        with pytest.raises(HandleGoneError):
            credentials.free()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(HandleGoneError):
            side.engine.connect(sock, credentials, Transport(), remote=("127.0.0.1", 9), server_name="localhost")


def test_stale_connection_stream_and_socket(certificate: Certificate) -> None:
    with connected(certificate) as pair, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        pair.set_joined(None)
        connection = pair.server_connection
        stream = connection.open_stream(HEADER)
        udp = connection.open_udp(sock, public=True)
        connection.close()
        assert expect_closed(pair.server, connection).cause is CloseCause.LOCAL
        for call in (connection.info, connection.close, lambda: connection.send(b"\0\5"), udp.receive):
            with pytest.raises(HandleGoneError):
                call()
        # A stream outlives its connection until somebody has relayed what came before the end.
        first, second = socket.socketpair()
        with first, second:
            assert stream.relay(first).end is StreamEnd.CONNECTION
            with pytest.raises(HandleGoneError):
                stream.relay(second)
            with pytest.raises(HandleGoneError):
                stream.reset()


def test_a_random_id_never_reaches_another_object(certificate: Certificate) -> None:
    """Ids near those in use differ in slot, kind or generation, and name nothing."""
    with connected(certificate) as pair:
        real = pair.client_connection.id
        for bit in range(63):
            neighbour = Connection(pair.client.engine, real ^ (1 << bit))
            with pytest.raises(HandleGoneError):
                neighbour.info()
        assert pair.client_connection.info().peer[0] == "127.0.0.1"


# --- arguments out of range -------------------------------------------------------------------------------------------


def test_credentials_errors_say_what_is_wrong(certificate: Certificate, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other")
    chain, key = certificate.certificate.read_bytes(), certificate.private_key.read_bytes()
    engine = Engine()
    try:
        for chain_bytes, key_bytes, words in (
            (b"no certificate", key, r"(?i)certificate"),
            (b"", key, r"(?i)certificate"),
            (chain, b"no key", r"(?i)key"),
            (chain, b"", r"(?i)key"),
            (chain, other.private_key.read_bytes(), r"(?i)key|match"),
            (key, key, r"(?i)certificate"),
        ):
            with pytest.raises(EngineError, match=words) as caught:
                engine.server_credentials(certificate=chain_bytes, private_key=key_bytes, alpn=ALPN)
            body = key.splitlines()[1].decode()
            assert body not in str(caught.value)
        with pytest.raises(EngineError, match=r"(?i)certificate|trust|authorit"):
            engine.client_credentials(alpn=ALPN, trust=b"no certificate", system_trust=False)
        with pytest.raises(EngineError, match=r"(?i)key ?log|no/such/folder|No such file"):
            engine.client_credentials(alpn=ALPN, verify=False, keylog=str(tmp_path / "no/such/folder/file"))
    finally:
        engine.close()


def test_commands_and_headers_have_a_greatest_length(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        for call in (
            lambda: pair.server_connection.send(bytes(257)),
            lambda: pair.server_connection.send(b""),
            lambda: pair.server_connection.open_stream(bytes(65)),
            lambda: pair.client_connection.heartbeat(bytes(17), 1.0),
            lambda: pair.client_connection.dial(("127.0.0.1", 9), timeout=2.0**62 / 1e9),
        ):
            with pytest.raises(EngineError) as caught:
                call()
            assert caught.value.code == lib.AQ_ERR_INVALID
        pair.server_connection.info()


def test_the_exporter_needs_a_finished_handshake(certificate: Certificate) -> None:
    with Side("client") as side, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        connection = connect(side, certificate, silent.getsockname())
        with pytest.raises(EngineError) as caught:
            connection.export(b"label", b"context", 32)
        assert caught.value.code == lib.AQ_ERR_STATE


# --- closing while something runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "close"])
def test_end_of_the_engine_ends_a_blocked_relay(certificate: Certificate, how: str) -> None:
    with connected(certificate) as pair, running_relays(pair) as (relays, _, _):
        if how == "stop":
            pair.server.engine.stop()
        else:
            pair.server.close()
        outcome = relays[0].finish()
        assert isinstance(outcome, StreamResult)
        assert outcome.end is StreamEnd.STOPPED
        other = relays[1].finish()
        assert isinstance(other, StreamResult)
        assert other.end is StreamEnd.CONNECTION


def test_end_of_the_connection_ends_a_blocked_relay(certificate: Certificate) -> None:
    with connected(certificate) as pair, running_relays(pair) as (relays, _, _):
        pair.client_connection.close()
        for relay in relays:
            outcome = relay.finish()
            assert isinstance(outcome, StreamResult)
            assert outcome.end is StreamEnd.CONNECTION
            assert (outcome.sent, outcome.received) == (1, 1)


def test_reset_from_another_thread_ends_a_blocked_relay(certificate: Certificate) -> None:
    with connected(certificate) as pair, running_relays(pair) as (relays, _, _):
        relays[1].stream.reset()
        local, remote = relays[1].finish(), relays[0].finish()
        assert isinstance(local, StreamResult)
        assert isinstance(remote, StreamResult)
        assert local.end is StreamEnd.LOCAL_RESET
        assert remote.end is StreamEnd.PEER_RESET


def test_one_relay_per_stream(certificate: Certificate) -> None:
    with connected(certificate) as pair, running_relays(pair) as (relays, visitor, service):
        one, two = tcp_pair()
        with one, two, pytest.raises(EngineError) as caught:
            relays[0].stream.relay(one)
        assert caught.value.code in (lib.AQ_ERR_STATE, lib.AQ_ERR_GONE)
        visitor.sendall(b"still there")
        assert service.recv(11) == b"still there"


def test_streams_and_connections_leave_nothing_in_the_engine(certificate: Certificate) -> None:
    """Descriptors and threads are compared by the fixture of all tests; here the engine's own tables are."""
    with connected(certificate) as pair:
        for _ in range(20):
            echo(pair, 10_000)
        wait_until(lambda: pair.server_connection.info().streams == 0, EVENT_TIMEOUT, "the server has no stream left")
        wait_until(lambda: pair.client_connection.info().streams == 0, EVENT_TIMEOUT, "the client has no stream left")


# --- processes --------------------------------------------------------------------------------------------------------

SCRIPT_HEAD = """
import contextlib, os, sys, threading
from pathlib import Path
from asport_sync.engine import Engine
from asport_sync.errors import LifecycleError
from tests.engine.pair import *
from tests.support.certificates import Certificate
from tests.support.waiting import wait_until
paths = [Path(name) for name in sys.argv[1:4]]
certificate = Certificate(*paths)
"""


def run_script(body: str, certificate: Certificate) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT_HEAD + body,
            certificate.certificate,
            certificate.private_key,
            certificate.trusted,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )


BUSY = """
manager = connected(certificate)
pair = manager.__enter__()
streams = running_relays(pair)
relays, user, service = streams.__enter__()
def flood(sock):
    with contextlib.suppress(OSError):  # the end of the engine may reach it before the end of the interpreter
        while True:
            sock.sendall(bytes(65536))
def drain(sock):
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass
for work, sock in ((flood, user), (drain, service), (flood, service), (drain, user)):
    threading.Thread(target=work, args=(sock,), daemon=True).start()
wait_until(lambda: pair.client_connection.info().bytes_received > 1_000_000, 20, "traffic")
"""


@pytest.mark.parametrize(
    "ending", ["", "sys.exit(0)", "pair.server.engine.stop()"], ids=["end of the script", "sys.exit", "after stop"]
)
def test_exit_with_traffic_running(certificate: Certificate, ending: str) -> None:
    done = run_script(BUSY + ending, certificate)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_by_an_exception_with_traffic_running(certificate: Certificate) -> None:
    done = run_script(BUSY + "raise SystemExit('the end')", certificate)
    assert (done.returncode, done.stderr) == (1, "the end\n")


def test_a_forked_child_may_not_use_the_engine(certificate: Certificate) -> None:
    done = run_script(
        """
manager = connected(certificate)
pair = manager.__enter__()
child = os.fork()
if child == 0:
    code = 0
    engine = pair.client.engine
    for call in (engine.start, engine.wait, engine.counters, pair.client_connection.info,
                 lambda: client_credentials(engine, certificate)):
        try:
            call()
        except LifecycleError:
            continue
        code = 1
    engine.stop()
    engine.close()
    other = Engine()
    other.start()
    other.close()
    os._exit(code)
_, status = os.waitpid(child, 0)
echo(pair, 100_000)
manager.__exit__(None, None, None)
sys.exit(os.waitstatus_to_exitcode(status))
""",
        certificate,
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_exits_normally(certificate: Certificate) -> None:
    """Neither its exit handlers nor its finalisation touch the parent's engine."""
    done = run_script(
        """
manager = connected(certificate)
pair = manager.__enter__()
child = os.fork()
if child == 0:
    sys.exit(0)
_, status = os.waitpid(child, 0)
echo(pair, 100_000)
manager.__exit__(None, None, None)
sys.exit(os.waitstatus_to_exitcode(status))
""",
        certificate,
    )
    assert done.returncode == 0, done.stderr


def test_close_at_the_worst_moment_of_a_call(certificate: Certificate) -> None:
    """Another thread closes between a call's look at the state and its entry into C."""
    done = run_script(
        """
from asport_sync.errors import EngineClosedError
engine = Engine()
engine.start()
look = engine.check
def look_and_be_overtaken():
    look()
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join()
engine.check = look_and_be_overtaken
try:
    engine.counters()
except EngineClosedError:
    sys.exit(0)
sys.exit(1)
""",
        certificate,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_engine_that_is_forgotten_does_not_keep_the_process(certificate: Certificate) -> None:
    done = run_script("engine = Engine()\nengine.start()\nengine = None\n", certificate)
    assert (done.returncode, done.stderr) == (0, "")
