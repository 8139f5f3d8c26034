"""UDP packets larger than a QUIC DATAGRAM frame: fragmentation and reassembly.

This is the readable specification of the rules (ASPORT draft, "Packet"). Only the engine fragments and reassembles,
in C; its tests compare it with this module.

* The first fragment carries the address, the others carry None, so the others have more room for payload.
* A fragment contains the number of fragments, so they may arrive in any order.
* Total length is not announced: a packet is complete when all its fragments have arrived, at most 65535 bytes together.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from asport_sync.errors import LocalProtocolError
from asport_sync.wire import Address, Packet, encode

MAX_FRAGMENTS = 255
"""Maximum fragments of one packet: frag_total is one byte."""

MAX_PAYLOAD_LENGTH = 65535
"""Bytes of one UDP packet's payload: maximum of the size field of an unfragmented Packet. UDP itself allows less."""


# --- fragmentation ---------------------------------------------------------------------------------------------------


def plan(max_datagram_size: int, address: Address, payload_length: int) -> list[int]:
    """Returns the payload length of each fragment.

    All fragments except the last are filled to the limit. There are as few as possible, and none is empty unless the
    payload is.

    Args:
        max_datagram_size: Bytes that the QUIC connection currently accepts in one DATAGRAM frame, including the Packet
            header.
        address: The address that the first fragment carries.
        payload_length: Length of the UDP payload, 0 to 65535.

    Raises:
        LocalProtocolError: The packet is too long, or the datagrams are too small for it (no room, or more than 255
            fragments).
    """
    if not 0 <= payload_length <= MAX_PAYLOAD_LENGTH:
        raise LocalProtocolError(f"payload has {payload_length} bytes, expected 0 to {MAX_PAYLOAD_LENGTH}")
    first = max_datagram_size - header_length(address)
    later = max_datagram_size - header_length(None)
    if first < min(payload_length, 1):
        needed = max_datagram_size - first + min(payload_length, 1)
        raise LocalProtocolError(
            f"datagrams of {max_datagram_size} bytes are too small for a fragment, expected at least {needed}"
        )
    if payload_length <= first:
        return [payload_length]
    full, last = divmod(payload_length - first, later)
    lengths = [first] + [later] * full + ([last] if last else [])
    if len(lengths) > MAX_FRAGMENTS:
        raise LocalProtocolError(
            f"{payload_length} bytes in datagrams of {max_datagram_size} take {len(lengths)} fragments, "
            f"expected at most {MAX_FRAGMENTS}"
        )
    return lengths


def header_length(address: Address | None) -> int:
    """Returns the bytes of a Packet before its payload: 11, 17 or 29."""
    return len(encode(Packet(0, 0, 1, 0, address, b"")))


def fragment(packet: Packet, max_datagram_size: int) -> list[Packet]:
    """Splits a complete packet into fragments that fit into datagrams; one that fits is returned unchanged.

    Args:
        packet: A complete packet: frag_total 1, frag_id 0, with an address.
        max_datagram_size: As for ``plan``.

    Raises:
        LocalProtocolError: As for ``plan``, or ``packet`` is already a fragment or has no address.
    """
    if packet.frag_total != 1 or packet.frag_id != 0:
        raise LocalProtocolError(f"fragment {packet.frag_id} of {packet.frag_total}, expected a whole packet")
    if packet.address is None:
        raise LocalProtocolError("packet without an address, expected one")
    lengths = plan(max_datagram_size, packet.address, packet.size)
    if len(lengths) == 1:
        return [packet]
    fragments = []
    offset = 0
    for frag_id, length in enumerate(lengths):
        address = packet.address if frag_id == 0 else None
        payload = packet.payload[offset : offset + length]
        fragments.append(Packet(packet.assoc_id, packet.pkt_id, len(lengths), frag_id, address, payload))
        offset += length
    return fragments


# --- reassembly ------------------------------------------------------------------------------------------------------


class DropReason(enum.Enum):
    """Why a fragment was dropped. The values are the names of the counters."""

    ZERO_TOTAL = "zero_total"
    """frag_total is 0."""
    ID_OUT_OF_RANGE = "id_out_of_range"
    """frag_id is not below frag_total."""
    ADDRESS_MISSING = "address_missing"
    """The first fragment has no address."""
    ADDRESS_UNEXPECTED = "address_unexpected"
    """A later fragment has one."""
    DUPLICATE = "duplicate"
    """The fragment was received already."""
    TOTAL_CONTRADICTED = "total_contradicted"
    """An earlier fragment of the packet had another frag_total."""
    TOO_LONG = "too_long"
    """The packet's fragments exceed 65535 bytes together; the packet is discarded."""
    TOO_MANY_PACKETS = "too_many_packets"
    """Discarded as the oldest because of the limit on incomplete packets."""
    TOO_MANY_BYTES = "too_many_bytes"
    """Discarded as the oldest because of the limit on held bytes."""
    EXPIRED = "expired"
    """The rest of the packet did not arrive in time."""
    DISSOCIATED = "dissociated"
    """The association ended before the packet was complete."""


@dataclass(slots=True)
class _Incomplete:
    """A packet with missing fragments. Guarded by the Reassembler's owner."""

    first_seen: float
    frag_total: int
    fragments: dict[int, Packet] = field(default_factory=dict)
    length: int = 0


class Reassembler:
    """Reassembles fragments: one instance per connection and direction. One owner at a time; no lock, no clock.

    No input from a peer raises. Each fragment ends in exactly one of three places: in a returned packet, among the
    pending fragments, or in ``drops``.

    pkt_id wraps after 65536 packets. The lifetime should be shorter than the time a sender at full speed takes for
    that, otherwise fragments of two packets can be mixed.

    Args:
        max_packets: Maximum incomplete packets held, at least 1. Another one evicts the oldest.
        max_bytes: Maximum payload bytes held, at least 65535, so that every packet fits. The oldest packets are evicted
            to stay below it.
        lifetime: Seconds from a packet's first fragment until it is discarded, more than 0.

    Raises:
        LocalProtocolError: A limit is too low to ever reassemble a packet.
    """

    def __init__(self, max_packets: int, max_bytes: int, lifetime: float) -> None:
        if max_packets < 1:
            raise LocalProtocolError(f"max_packets is {max_packets}, expected at least 1")
        if max_bytes < MAX_PAYLOAD_LENGTH:
            raise LocalProtocolError(f"max_bytes is {max_bytes}, expected at least {MAX_PAYLOAD_LENGTH}")
        if not lifetime > 0:
            raise LocalProtocolError(f"lifetime is {lifetime} seconds, expected more than 0")
        self._max_packets = max_packets
        self._max_bytes = max_bytes
        self._lifetime = lifetime
        # By (assoc_id, pkt_id), oldest first: entries are appended and never moved.
        self._incomplete: dict[tuple[int, int], _Incomplete] = {}
        self._pending_bytes = 0
        self._drops: Counter[DropReason] = Counter()

    @property
    def pending_packets(self) -> int:
        """Incomplete packets held now."""
        return len(self._incomplete)

    @property
    def pending_fragments(self) -> int:
        """Fragments held now."""
        return sum(len(entry.fragments) for entry in self._incomplete.values())

    @property
    def pending_bytes(self) -> int:
        """Payload bytes held now."""
        return self._pending_bytes

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """Fragments dropped so far, by reason. A live view; a reason that never occurred reads as 0."""
        return MappingProxyType(self._drops)

    def add(self, packet: Packet, now: float) -> Packet | DropReason | None:
        """Adds a fragment or a complete packet.

        Args:
            packet: As decoded.
            now: Seconds on the caller's monotonic clock. Incomplete packets that have expired by then are discarded
                first.

        Returns:
            The complete packet (frag_total 1, frag_id 0) if this was the last missing fragment; None if more are
            missing; the reason if this fragment was dropped. Other fragments discarded meanwhile show in ``drops``
            only.
        """
        self.expire(now)
        reason = _broken_rule(packet)
        if reason is not None:
            return self._drop(reason)
        if packet.frag_total == 1:
            return packet
        key = (packet.assoc_id, packet.pkt_id)
        entry = self._incomplete.get(key)
        if entry is not None:
            if entry.frag_total != packet.frag_total:
                return self._drop(DropReason.TOTAL_CONTRADICTED)
            if packet.frag_id in entry.fragments:
                return self._drop(DropReason.DUPLICATE)
            if entry.length + packet.size > MAX_PAYLOAD_LENGTH:
                self._give_up(key, DropReason.TOO_LONG)
                return self._drop(DropReason.TOO_LONG)
            if len(entry.fragments) + 1 == entry.frag_total:
                self._remove(key)
                entry.fragments[packet.frag_id] = packet
                return _join(entry)
        else:
            if len(self._incomplete) == self._max_packets:
                self._give_up(next(iter(self._incomplete)), DropReason.TOO_MANY_PACKETS)
            entry = self._incomplete[key] = _Incomplete(now, packet.frag_total)
        self._make_room(key, packet.size)
        entry.fragments[packet.frag_id] = packet
        entry.length += packet.size
        self._pending_bytes += packet.size
        return None

    def expire(self, now: float) -> None:
        """Discards incomplete packets whose first fragment came ``lifetime`` or longer before ``now``."""
        while self._incomplete:
            key, entry = next(iter(self._incomplete.items()))
            if now - entry.first_seen < self._lifetime:
                return
            self._give_up(key, DropReason.EXPIRED)

    def forget(self, assoc_id: int) -> None:
        """Discards the incomplete packets of an association that ended; its ID and packet IDs may be reused."""
        for key in [key for key in self._incomplete if key[0] == assoc_id]:
            self._give_up(key, DropReason.DISSOCIATED)

    def _drop(self, reason: DropReason) -> DropReason:
        self._drops[reason] += 1
        return reason

    def _make_room(self, keep: tuple[int, int], size: int) -> None:
        """Evicts the oldest packets other than ``keep``. Always suffices: no single packet exceeds the limit."""
        while self._pending_bytes + size > self._max_bytes:
            oldest = next(key for key in self._incomplete if key != keep)
            self._give_up(oldest, DropReason.TOO_MANY_BYTES)

    def _give_up(self, key: tuple[int, int], reason: DropReason) -> None:
        self._drops[reason] += len(self._remove(key).fragments)

    def _remove(self, key: tuple[int, int]) -> _Incomplete:
        entry = self._incomplete.pop(key)
        self._pending_bytes -= entry.length
        return entry


def _broken_rule(packet: Packet) -> DropReason | None:
    """Returns the rule that a fragment violates on its own, if any."""
    if packet.frag_total == 0:
        return DropReason.ZERO_TOTAL
    if packet.frag_id >= packet.frag_total:
        return DropReason.ID_OUT_OF_RANGE
    if packet.frag_id == 0:
        return DropReason.ADDRESS_MISSING if packet.address is None else None
    return None if packet.address is None else DropReason.ADDRESS_UNEXPECTED


def _join(entry: _Incomplete) -> Packet:
    first = entry.fragments[0]
    payload = b"".join(entry.fragments[frag_id].payload for frag_id in range(entry.frag_total))
    return Packet(first.assoc_id, first.pkt_id, 1, 0, first.address, payload)
