"""The matrix sees what it is there to see: its own checks, shown what they must not let pass."""

from __future__ import annotations

import contextlib
import socket
import threading

from asport_sync.engine import COUNTERS
from asport_sync.testing import DirectionCounters, RelayCounters
from tests.faults import cells, datagrams, injected, report
from tests.faults.cells import Outcome
from tests.faults.transfers import Ending, data_of, exchange

SIZE = 300_000


def against(peer_sends: bytes, *, reset: bool = False) -> Ending:
    """What an exchange makes of a peer that takes everything and sends this."""
    ours, theirs = data_of(1, SIZE, of_service=False), data_of(1, SIZE, of_service=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as user:
            peer, _ = listener.accept()

            def play() -> None:
                with peer, contextlib.suppress(OSError):  # the user may have seen enough
                    peer.sendall(peer_sends)
                    if reset:
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        return
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(1 << 16):
                        pass

            player = threading.Thread(target=play)
            player.start()
            try:
                return exchange(user, ours, theirs)
            finally:
                user.close()
                player.join()


THEIRS = bytes(data_of(1, SIZE, of_service=True))


def test_a_whole_exchange() -> None:
    assert against(THEIRS) == Ending(SIZE, whole=True)


def test_a_silent_truncation_is_seen() -> None:
    for missing in (1, SIZE):
        ending = against(THEIRS[: SIZE - missing])
        assert "a clean end" in ending.problem
        assert not ending.whole
        assert not ending.reset


def test_wrong_bytes_are_seen() -> None:
    for place in (0, SIZE // 2, SIZE - 1):
        wrong = bytearray(THEIRS)
        wrong[place] ^= 1
        assert "wrong bytes" in against(bytes(wrong)).problem
    assert "wrong bytes" in against(THEIRS + b"more").problem


def test_a_reset_is_none_of_both() -> None:
    ending = against(THEIRS[:1000], reset=True)
    assert (ending.reset, ending.whole, ending.problem) == (True, False, "")


def test_data_differ_by_connection_and_side() -> None:
    samples = {bytes(data_of(number, 5000, of_service=side)) for number in range(20) for side in (False, True)}
    assert len(samples) == 40


def test_datagrams_are_judged() -> None:
    sent = [datagrams.datagram(number) for number in range(30)]
    assert datagrams.judge(sent) == datagrams.Arrived(30, (), True)
    assert datagrams.judge([*sent[:3], *sent[5:]]).in_order
    swapped = datagrams.judge([sent[1], sent[0]])
    assert (swapped.in_order, swapped.problems) == (False, ())
    assert datagrams.judge([sent[0], sent[0]]).problems == ("1 datagrams came twice",)
    for wrong in (b"", sent[3][:-1], sent[3] + b"x", sent[3][:10] + b"\0" + sent[3][11:]):
        assert len(datagrams.judge([wrong]).problems) == 1


def _account(
    *, sent: int = 100, there: int = 95, path: int = 5, path_packets: int = 5, lossless: bool = False
) -> tuple[dict[str, int], list[str]]:
    """The account of datagrams one way, of which the path took some, with a service that does not answer."""
    names = {each.name: 0 for each in COUNTERS}
    server = {**names, "udp_received": sent, "packets_sent": sent}
    client = {**names, "packets_received": sent - path, "quic_datagrams_received": 200 - path_packets}
    done = datagrams.Exchanged(sent, 0, datagrams.Arrived(there, (), True), 0, datagrams.Arrived(0, (), True), 0, 1.0)
    way = DirectionCounters(received=200, delivered=200 - path_packets, lost=path_packets)
    counters = RelayCounters(DirectionCounters(), way, 1, 0)
    return datagrams.account(done, server, client, counters, lossless=lossless, alive=True)


def test_an_account_that_adds_up() -> None:
    assert _account() == ({"the path": 5}, [])
    assert _account(there=100, path=0) == ({}, [])


def test_datagrams_that_nobody_names_are_seen() -> None:
    assert any("are missing" in problem for problem in _account(there=94)[1])
    assert any("are missing" in problem for problem in _account(there=96)[1])


def test_more_than_the_path_can_have_taken_is_seen() -> None:
    assert any("the path has taken" in problem for problem in _account(path_packets=2)[1])
    assert _account(path_packets=3)[1] == []


def test_a_loss_in_quic_mode_is_seen() -> None:
    assert any("the path has taken" in problem for problem in _account(lossless=True)[1])


def test_names_of_faults_are_unique() -> None:
    names = [fault.name for fault in injected.FAULTS]
    assert len(names) == len(set(names))
    assert {fault.name for fault in injected.QUICK} | {fault.name for fault in injected.LONG} == set(names)


def test_the_table_says_what_was_broken() -> None:
    fault = injected.FAULTS[0]
    outcomes = {(fault.name, traffic): Outcome(f"figure of {traffic}", seconds=2.0) for traffic in cells.TRAFFIC}
    text = report.table([fault], outcomes, cells.LONG)
    assert "64 MiB each way" in text
    assert "| kept | figure of TCP |" in text
    assert text.endswith("| 10 s |")
    outcomes[fault.name, "UDP quic"].problems.append("lost")
    assert "| **broken**: UDP quic |" in report.table([fault], outcomes, cells.LONG)
    assert report.problems(outcomes) == [f"{fault.name}, UDP quic: lost"]
    columns = {line.count("|") for line in text.splitlines()}
    assert len(columns) == 1


def test_a_faults_own_text_fits_the_table() -> None:
    for fault in injected.FAULTS:
        assert "|" not in fault.name + fault.injected
