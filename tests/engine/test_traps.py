"""What the QUIC and TLS libraries do not do by themselves, or do wrong in some release, each with a test.

These run against our own build of ngtcp2 and, by ``make test-system``, against the distribution's. The programs that
play a peer by hand are in ``test_traps.c``; ``test_raw_peer`` below runs them.

============================================================  ==========================================================
trap                                                          test
============================================================  ==========================================================
the library aborts on wrong use, and on some input            ``make fuzz``, targets engine and engine_tls
a NAT that flaps during path validation aborts a server       test_a_nat_that_flaps, with path MTU discovery and without
  that has path MTU discovery switched off
qlog overflows a buffer                                       test_there_is_no_qlog
an empty UDP datagram aborts the parser                       test_empty_datagrams_at_any_time; test_endpoints.py,
                                                              test_noise_is_dropped_and_counted
an empty DATAGRAM frame, sent, aborts                         test_an_empty_datagram_frame_is_never_sent
an empty DATAGRAM or STREAM frame, received                   test_traps.c, empty_datagram_frame, empty_stream_frames
a server that confirms a handshake before its end crashes     test_traps.c, early_confirmation,
  the client                                                  confirmation_before_finished; vendor/adjustments.py
a server that takes its connection id back before the end of  test_traps.c, early_retirement
  the handshake aborts the client
a client that never acknowledges RETIRE_CONNECTION_ID aborts  test_traps.c, many_probed_paths, many_paths;
  the server when it changes its path                         native/test_frames.c; vendor/adjustments.py
a packet number among the last 2^32 aborts                    test_traps.c, last_packet_numbers;
                                                              test_the_last_packet_numbers; vendor/adjustments.py
a packet half built (WRITE_MORE) when something else is done  test_traps.c, half_built_packets
another time stamp for update_pkt_tx_time than for the write  conn_send.c uses one; shows in throughput only
a datagram too large for the path stalls its queue            test_traps.c, oversize_datagram
the packet size falls to 1200 after a migration               test_traffic.py, test_fragment_boundaries: cut when sent
no path MTU black-hole detection                              test_a_path_that_narrows
nothing is verified unless told                               test_connections.py, test_certificate_refused
resumption skips verification                                 test_no_session_is_resumed; native/test_tls.c
a peer without ALPN passes                                    test_traps.c, no_alpn; native/test_tls.c, test_no_alpn;
                                                              test_nobody_here_is_without_alpn
a client certificate is refused late                          there are no client certificates (mutual TLS) here
no handshake time-out unless set                              test_traps.c, silent_after_initial; test_connections.py,
                                                              test_nobody_answers
stream data must stay until acknowledged                      test_every_byte_arrives_over_a_path_that_loses
credit is granted by the program only                         test_windows_smaller_than_what_passes
an exhausted connection window says 0, not "blocked"          test_windows_smaller_than_what_passes; test_traps.c,
                                                              connection_window, no_credit
segmented sends fail as a whole                               native/test_udp.c, test_send_errors
headers newer than the library                                compat.h; Engine() fails, and nothing aborts
one thread for each connection, nothing from in callbacks     ``make sanitize``
packets before the handshake and after the close              test_traps.c, early_packets, late_packets
TLS messages at the wrong time, or without transport          hostile/independent/test_independent.py, and whatever
  parameters, abort                                             else aioquic can be made to send
a stateless reset must be shorter than what it answers        test_resets_do_not_chase_each_other
ports that reflect                                            test_traps.c, reflecting_port
Retry tokens that are not ours                                test_traps.c, foreign_retry_token
datagrams that the kernel cut                                 test_traps.c, truncated
timers that are due while the socket is full                  test_traps.c, full_socket
a timer for the pace of every packet, needed or not           test_traps.c, no_pace_for_the_few; vendor/adjustments.py
a byte out of order takes 8 KiB                               test_traps.c, sparse_data, too_much_sparse_data
the peer's faults look like the library's                     test_traps.c, fault_of_the_peer
============================================================  ==========================================================

What the tunnel does about peers that keep no rules:

============================================================  ==========================================================
ClientHello twice                                             tunnel/test_serving.py, test_a_second_hello_costs_...
ClientHello in pieces over seconds                            test_traps.c, slow_command, slow_connect
a command that a stalled path holds up                        test_traps.c, stalled_command
no ClientHello                                                tunnel/test_serving.py, test_a_client_without_a_hello_...
commands of the server sent to the server, and before         tunnel/test_serving.py, test_a_broken_rule_costs_...,
  authentication                                              test_a_stream_of_the_client_costs_...
commands of the client sent to the client                     tunnel/test_joining.py, test_a_server_that_breaks_...
all of it over QUIC                                           e2e/test_hostile.py
============================================================  ==========================================================
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from asport_sync.engine import CloseCause, Closed, Connected, StreamEnd, StreamResult, Transport
from asport_sync.engine.binding import ffi, lib
from asport_sync.errors import EngineError
from tests.engine.middle import Middle
from tests.engine.pair import (
    CLIENT_TRANSPORT,
    Pair,
    Relay,
    Side,
    client_credentials,
    connect,
    connected,
    echo,
    expect_closed,
    listen,
    open_stream,
    tcp_pair,
)
from tests.fuzz.targets import ALLOCATIONS, CALLS, NATIVE, SIMULATED, TLS, native_sources
from tests.support.certificates import Certificate
from tests.support.compiling import compiler_or_skip
from tests.support.waiting import wait_until
from vendor import ngtcp2

HERE = Path(__file__).resolve().parent
FUZZ = HERE.parent / "fuzz"

# Those of test_traps.c.
TRAPS = (
    "empty_datagram_frame",
    "empty_stream_frames",
    "early_confirmation",
    "confirmation_before_finished",
    "early_retirement",
    "half_built_packets",
    "no_credit",
    "connection_window",
    "oversize_datagram",
    "no_alpn",
    "silent_after_initial",
    "early_packets",
    "late_packets",
    "reflecting_port",
    "foreign_retry_token",
    "truncated",
    "slow_command",
    "slow_connect",
    "reset_before_connect",
    "stop_sending_alone",
    "stalled_command",
    "fault_of_the_peer",
    "sparse_data",
    "too_much_sparse_data",
    "full_socket",
    "no_pace_for_the_few",
    "many_probed_paths",
    "many_paths",
    "last_packet_numbers",
)


def joined(
    server: Side, client: Side, certificate: Certificate, middle: Middle, client_transport: Transport = CLIENT_TRANSPORT
) -> Pair:
    """A client and a server with a middle man between them, the server listening already."""
    client_connection = connect(client, certificate, middle.front.getsockname(), client_transport)
    client.expect(Connected)
    accepted = server.expect(Connected)
    assert accepted.endpoint is not None
    accepted.connection.set_joined(None)
    return Pair(server, client, accepted.endpoint, accepted.connection, client_connection)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_udp_payload", [1200, 65527])
def test_a_nat_that_flaps(certificate: Certificate, max_udp_payload: int) -> None:
    """Back to the old port while the new one is being validated, many times over."""
    transport = Transport(max_streams_bidi=64, max_udp_payload=max_udp_payload)
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, Transport(max_udp_payload=max_udp_payload))
        with Middle(address) as middle:
            pair = joined(server, client, certificate, middle, transport)
            pair.client_connection.heartbeat(b"\0\5", 0.002)
            middle.rebind()
            for number in range(30):
                wait_for_packets(pair, 1 + number % 4)
                middle.flap()
            echo(pair, 100_000)


def wait_for_packets(pair: Pair, count: int) -> None:
    """Until the server has had so many more datagrams."""
    wanted = pair.server.counter("quic_datagrams_received") + count
    wait_until(lambda: pair.server.counter("quic_datagrams_received") >= wanted, 15, "datagrams from the client")


def test_empty_datagrams_at_any_time(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _, address = listen(server, certificate)
        with Middle(address) as middle:
            sock.sendto(b"", address)
            connect(client, certificate, middle.front.getsockname())
            for _ in range(20):
                sock.sendto(b"", address)
            client.expect(Connected)
            accepted = server.expect(Connected).connection
            for _ in range(20):
                sock.sendto(b"", address)
                middle.to_client(b"")
            wait_until(lambda: server.counter("quic_drop_short") == 41, 15, "all of them at the server")
            wait_until(lambda: client.counter("quic_drop_short") == 20, 15, "all of them at the client")
            accepted.close()
            for _ in range(20):
                sock.sendto(b"", address)
                middle.to_client(b"")
            wait_until(lambda: server.counter("quic_drop_short") == 61, 15, "those behind the close")


# --- DATAGRAM frames --------------------------------------------------------------------------------------------------


def test_an_empty_datagram_frame_is_never_sent(certificate: Certificate) -> None:
    with connected(certificate) as pair:
        with pytest.raises(EngineError):
            pair.client_connection.heartbeat(b"", 0.01)
        pair.client_connection.heartbeat(b"", 0.0)  # the end of it needs no bytes
        echo(pair, 1000)


# --- packet sizes -----------------------------------------------------------------------------------------------------


def test_packets_stay_within_the_bound(certificate: Certificate) -> None:
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, Transport(max_udp_payload=1200))
        with Middle(address) as middle:
            pair = joined(server, client, certificate, middle, Transport(max_streams_bidi=64, max_udp_payload=1200))
            echo(pair, 1_000_000)
            assert middle.largest == 1200
            # So a path that takes no more, now or later, does not matter.
            middle.widest = 1200
            echo(pair, 100_000)


def test_a_path_that_narrows(certificate: Certificate) -> None:
    """What was found to pass is lost from then on; an idle timeout of few probe timeouts ends the connection first."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, Transport(idle_timeout=2.0))
        with Middle(address) as middle:
            pair = joined(server, client, certificate, middle, Transport(max_streams_bidi=64, idle_timeout=2.0))
            wait_until(lambda: pair.server_connection.info().path_payload > 1200, 15, "a larger packet got through")
            middle.widest = 1200
            stream, opened = open_stream(pair)
            public, visitor = tcp_pair()
            local, service = tcp_pair()
            relays = [Relay(stream, public), Relay(opened, local)]
            for relay in relays:
                relay.start()
            with visitor, service:
                visitor.sendall(os.urandom(100_000))
                # Both: what the services still hold unread must not reset the stream of the one that closes later.
                causes = {side.expect(Closed).cause for side in (server, client)}
            assert causes == {CloseCause.IDLE}
            for relay in relays:
                result = relay.finish()
                assert isinstance(result, StreamResult)
                assert result.end is StreamEnd.CONNECTION
            # What docs/operations.md says to set then.
            narrow = Transport(max_streams_bidi=64, max_udp_payload=1200)
            again = joined(server, client, certificate, middle, narrow)
            again.client_connection.heartbeat(b"\0\5", 0.5)
            assert again.client_connection.info().path_payload == 1200


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_nobody_here_is_without_alpn(certificate: Certificate) -> None:
    """What a peer without it gets is in ``test_traps.c`` and in ``native/test_tls.c``."""
    with Side("both") as side:
        with pytest.raises(EngineError, match="ALPN"):
            side.engine.client_credentials(alpn=(), trust=certificate.trusted.read_bytes(), system_trust=False)
        with pytest.raises(EngineError, match="ALPN"):
            side.engine.server_credentials(
                certificate=certificate.certificate.read_bytes(),
                private_key=certificate.private_key.read_bytes(),
                alpn=(),
            )


def test_no_session_is_resumed(certificate: Certificate, tmp_path: Path) -> None:
    """A client that was here before is asked for nothing less the second time, nor does it ask for less."""
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate)
        good = client_credentials(client.engine, certificate)
        for _ in range(2):
            connection = connect(client, certificate, address, credentials=good)
            client.expect(Connected)
            connection.close()
            expect_closed(client, connection)
        refused = connect(client, certificate, address, credentials=good, server_name="another.example")
        assert expect_closed(client, refused).cause is CloseCause.CERTIFICATE


# --- bytes and credit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose_every", [23, 7])
def test_every_byte_arrives_over_a_path_that_loses(certificate: Certificate, lose_every: int) -> None:
    """What was sent is kept where it is until it is acknowledged, and sent again from there."""
    small = Transport(max_streams_bidi=64, max_udp_payload=1200)
    with Side("server") as server, Side("client") as client:
        _, address = listen(server, certificate, small)
        with Middle(address) as middle:
            pair = joined(server, client, certificate, middle, small)
            middle.lose_every = lose_every
            echo(pair, 500_000)
            assert middle.lost > 500_000 / 1200 / lose_every


def test_windows_smaller_than_what_passes(certificate: Certificate) -> None:
    """Through windows of 16 KiB, for one stream and for all together: credit comes back as it is used."""
    small = Transport(max_streams_bidi=64, send_window=16384, receive_window=16384, connection_window=16384)
    with connected(certificate, server_transport=small, client_transport=small) as pair:
        for _ in range(3):
            echo(pair, 400_000)


# --- endpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [22, 23, 42, 43, 44, 100, 1200])
def test_resets_do_not_chase_each_other(certificate: Certificate, length: int) -> None:
    """A stateless reset looks like a packet of a connection that is gone; answered in kind, it would never end."""
    with Side("server") as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw_socket:
        _, address = listen(server, certificate)
        raw_socket.settimeout(0.3)
        raw_socket.sendto(b"\x40" + os.urandom(length - 1), address)
        wait_until(lambda: server.counter("quic_drop_unknown_connection") == 1, 15, "the packet came")
        try:
            answer = raw_socket.recv(2000)
        except TimeoutError:
            answer = b""
        assert len(answer) < length
        if answer:
            assert len(answer) <= 43
            assert answer[0] & 0xC0 == 0x40
        assert server.counter("stateless_resets_sent") == bool(answer)
        assert bool(answer) == (length > 22)


def test_there_is_no_qlog() -> None:
    sources = list(NATIVE.rglob("*.[ch]"))
    assert len(sources) > 20
    assert [path for path in sources if "qlog" in path.read_text()] == []


# --- a raw peer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw_peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``test_traps.c`` with the whole engine, linked with the kind of ngtcp2 that the package is built with."""
    command = compiler_or_skip()
    kind = {"ASPORT_NGTCP2": "system"} if ffi.string(lib.aq_ngtcp2_origin()).startswith(b"system") else {}
    try:
        library = ngtcp2.choose({**os.environ, **kind})
    except ngtcp2.LibraryMissing as problem:
        pytest.skip(str(problem))
    own = ("sim.c", "raw_peer.c", "raw_null.c", "null_tls.c", "fuzz_memory.c")
    program = tmp_path_factory.mktemp("traps") / "traps"
    done = subprocess.run(
        [
            *command,
            *("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"),
            *('-DAQ_BUILD_ID="test"', '-DAQ_NGTCP2_ORIGIN="test"'),
            *(f"-I{folder}" for folder in (NATIVE, FUZZ, HERE.parent / "native")),
            *library.compile_args,
            str(HERE / "test_traps.c"),
            *(str(FUZZ / name) for name in own),
            *(str(NATIVE / name) for name in native_sources() if name not in SIMULATED | TLS),
            *(f"-Wl,--wrap={name}" for name in (*ALLOCATIONS, *CALLS)),
            *library.archives,
            *library.link_args,
            *shlex.split(os.environ.get("LDFLAGS", "")),
            *("-o", str(program)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("trap", TRAPS)
def test_raw_peer(raw_peer: Path, trap: str) -> None:
    done = subprocess.run([raw_peer, trap], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(trap)


# Numbers that end in the last window of the 2^62 that there are. The function is none of the library's own, but in a
# static library it can be called.
NUMBERS = r"""
#include <stddef.h>
#include <stdint.h>
int64_t ngtcp2_pkt_adjust_pkt_num(int64_t max_pkt_num, int64_t pkt_num, size_t pkt_numlen);
int main(void)
{
    const int64_t last = (INT64_C(1) << 62) - 1;
    return ngtcp2_pkt_adjust_pkt_num(last - 1, 0, 4) > last && ngtcp2_pkt_adjust_pkt_num(9, 11, 1) == 11 ? 0 : 1;
}
"""


def test_the_last_packet_numbers(tmp_path: Path) -> None:
    if ffi.string(lib.aq_ngtcp2_origin()) != b"bundled, adjusted":
        pytest.skip("this ngtcp2 is none of our own; last_packet_numbers has what the engine does with it")
    compiler = compiler_or_skip()
    library = ngtcp2.choose(os.environ)
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text(NUMBERS)
    command = [*compiler, *library.compile_args, str(source), *library.archives, *library.link_args]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=60)
    assert subprocess.run([program], timeout=60).returncode == 0
