"""A server that was not told how its client takes UDP packets finds out, and none is lost or doubled meanwhile.

The clients are aioquic's, which do on their streams what the reference's clients do: one that wants DATAGRAMs stops a
stream as soon as it has read that a Packet comes on it, and one that wants streams reads them to their ends.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from asport_sync.engine import Carrier, Connected, Connection, SourceUnknown, Violation
from asport_sync.wire import Address as WireAddress
from asport_sync.wire import Packet, decode, encode
from tests.engine.pair import ALPN, EVENT_TIMEOUT, Side, connected, listen
from tests.engine.test_traffic import open_association
from tests.support.certificates import Certificate
from tests.support.services import Address
from tests.support.waiting import wait_until

pytest.importorskip("aioquic", reason="aioquic is for Python 3.11 and later")

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

ASSOCIATION = 7
HEADER = 17  # bytes of a Packet's header with an IPv4 address
PAYLOADS = [b"datagram %d" % number for number in range(30)]


class Client(threading.Thread):
    """A client that notes which Packets come on which carrier.

    Args:
        certificate: The server's.
        server: Where it is.
        stops: Whether it stops streams that carry a Packet, as one does that wants DATAGRAMs.
    """

    def __init__(self, certificate: Certificate, server: Address, *, stops: bool) -> None:
        super().__init__(name="a client of aioquic", daemon=True)
        configuration = QuicConfiguration(alpn_protocols=[ALPN[0].decode()], max_datagram_frame_size=65535)
        configuration.load_verify_locations(cafile=str(certificate.trusted))
        configuration.server_name = "localhost"
        self._quic = QuicConnection(configuration=configuration)
        self._server = server
        self._stops = stops
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.01)
        self._lock = threading.Lock()  # guards _quic and all below
        self._over = False
        self._streams: dict[int, bytes] = {}
        self.by_datagram: list[bytes] = []
        self.by_stream: list[bytes] = []
        self.resets: list[bytes] = []  # what had come on streams that were reset

    def run(self) -> None:
        self._quic.connect(self._server, now=time.monotonic())
        while not self._over:
            with self._lock:
                self._exchange()
            with contextlib.suppress(TimeoutError):
                data = self._socket.recv(65535)
                with self._lock:
                    self._quic.receive_datagram(data, self._server, now=time.monotonic())

    def close(self) -> None:
        with self._lock:
            self._quic.close()
            self._exchange()
        self._over = True
        self.join()
        self._socket.close()

    def send_datagram(self, data: bytes) -> None:
        """Sends a DATAGRAM frame."""
        with self._lock:
            self._quic.send_datagram_frame(data)

    def send_on_stream(self, data: bytes) -> None:
        """Sends a unidirectional stream."""
        with self._lock:
            number = self._quic.get_next_available_stream_id(is_unidirectional=True)
            self._quic.send_stream_data(number, data, end_stream=True)

    def _exchange(self) -> None:
        now = time.monotonic()
        timer = self._quic.get_timer()
        if timer is not None and timer <= now:
            self._quic.handle_timer(now)
        while (event := self._quic.next_event()) is not None:
            self._note(event)
        for data, _ in self._quic.datagrams_to_send(now):
            self._socket.sendto(data, self._server)

    def _note(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.DatagramFrameReceived):
            self.by_datagram.append(event.data[HEADER:])
        elif isinstance(event, events.StreamReset):
            self.resets.append(self._streams.pop(event.stream_id, b""))
        elif isinstance(event, events.StreamDataReceived):
            known = self._streams.get(event.stream_id, b"")
            self._streams[event.stream_id] = known + event.data
            if event.end_stream:
                self.by_stream.append(self._streams.pop(event.stream_id)[HEADER:])
            elif self._stops and not known:
                self._quic.stop_stream(event.stream_id, 0)


class Scene:
    """A client that has been admitted with a question, and a user with an association."""

    def __init__(self, server: Side, connection: Connection, client: Client) -> None:
        self.server = server
        self.client = client
        self._public = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._public.bind(("127.0.0.1", 0))
        self.visitor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.visitor.settimeout(EVENT_TIMEOUT)
        self.visitor.connect(self._public.getsockname())
        self.udp = connection.open_udp(self._public, public=True)
        connection.set_joined(Carrier.DATAGRAM, ask=True)
        for payload in PAYLOADS:
            self.visitor.send(payload)
        server.expect(SourceUnknown)
        self.udp.add_association(ASSOCIATION, self.visitor.getsockname())

    def close(self) -> None:
        self.udp.close()
        self._public.close()
        self.visitor.close()

    def answer(self) -> bytes:
        """A Packet from the client, with the payload "answer"."""
        host, port = self.visitor.getsockname()
        return encode(Packet(ASSOCIATION, 0, 1, 0, WireAddress.from_text(host, port), b"answer"))


@contextlib.contextmanager
def scene_of(certificate: Certificate, *, stops: bool) -> Iterator[Scene]:
    with Side("server") as server:
        _, address = listen(server, certificate)
        client = Client(certificate, address, stops=stops)
        client.start()
        try:
            scene = Scene(server, server.expect(Connected).connection, client)
            try:
                yield scene
            finally:
                scene.close()
        finally:
            client.close()


def expect(found: list[bytes], payloads: list[bytes]) -> None:
    wait_until(
        lambda: sorted(found) == sorted(payloads), EVENT_TIMEOUT, "all packets have come", detail=lambda: str(found)
    )


def test_a_client_that_stops_the_question_gets_datagrams(certificate: Certificate) -> None:
    with scene_of(certificate, stops=True) as scene:
        expect(scene.client.by_datagram, PAYLOADS)
        assert scene.client.by_stream == []
        assert scene.server.counter("carrier_asked") == scene.server.counter("carrier_told_datagram") == 1
        assert scene.server.counter("carrier_taken_stream") == 0
        # Certain is certain: a later Packet on a stream changes nothing.
        scene.client.send_on_stream(scene.answer())
        assert scene.visitor.recv(100) == b"answer"
        scene.visitor.send(b"one more")
        expect(scene.client.by_datagram, [*PAYLOADS, b"one more"])


def test_a_client_that_reads_the_question_gets_streams(certificate: Certificate) -> None:
    with scene_of(certificate, stops=False) as scene:
        expect(scene.client.by_stream, PAYLOADS)
        assert scene.client.by_datagram == []
        # The question was never whole: a header that announces one byte, which did not come.
        wait_until(lambda: scene.client.resets, EVENT_TIMEOUT, "the question is taken back")
        (question,) = scene.client.resets
        packet, _ = decode(question + b"?")
        assert isinstance(packet, Packet)
        assert (packet.assoc_id, packet.payload, len(question)) == (0, b"?", HEADER)
        assert scene.server.counter("carrier_taken_stream") == 1
        scene.client.send_on_stream(scene.answer())
        assert scene.visitor.recv(100) == b"answer"
        scene.visitor.send(b"one more")
        expect(scene.client.by_stream, [*PAYLOADS, b"one more"])


def test_the_first_packet_of_the_client_corrects_what_was_guessed(certificate: Certificate) -> None:
    with scene_of(certificate, stops=False) as scene:
        expect(scene.client.by_stream, PAYLOADS)
        scene.client.send_datagram(scene.answer())
        assert scene.visitor.recv(100) == b"answer"
        scene.visitor.send(b"one more")
        expect(scene.client.by_datagram, [b"one more"])


def test_a_client_that_sends_without_having_been_sent_anything_is_believed(certificate: Certificate) -> None:
    """The number of an association can be guessed. The question is taken back, whether it is open still or not."""
    with scene_of(certificate, stops=False) as scene:
        scene.client.send_datagram(scene.answer())
        assert scene.visitor.recv(100) == b"answer"
        wait_until(
            lambda: sorted(scene.client.by_datagram + scene.client.by_stream) == sorted(PAYLOADS),
            EVENT_TIMEOUT,
            "all packets have come once",
        )
        wait_until(lambda: scene.client.resets, EVENT_TIMEOUT, "the question is taken back")
        expected = [*scene.client.by_datagram, b"one more"]
        scene.visitor.send(b"one more")
        expect(scene.client.by_datagram, expected)


def test_our_client_takes_either_carrier_and_sees_no_fault_in_the_question(certificate: Certificate) -> None:
    with connected(certificate, joined=False) as pair:
        pair.server_connection.set_joined(Carrier.DATAGRAM, ask=True)
        pair.client_connection.set_joined(Carrier.DATAGRAM)
        with open_association(pair) as assoc:
            assoc.to_visitor(b"answer")
            assert assoc.visitor.recv(100) == b"answer"
            assoc.to_service(b"question")
            assert assoc.service.recv(100) == b"question"
        assert not [event for event in pair.client.seen() if isinstance(event, Violation)]
        assert pair.client.counter("violations") == 0
