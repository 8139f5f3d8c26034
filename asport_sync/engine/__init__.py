"""The only interface to the native engine: handles, events, and errors as exceptions.

The engine owns every connection, stream and socket; the objects here are handles to them. Using a handle whose object
is gone raises HandleGoneError, or EngineClosedError if the whole engine is stopped, and never crashes. Methods may be
called from any thread unless stated otherwise. Blocking calls release the interpreter lock, so any number of threads
may block in them.

After ``fork`` a child must not use its parent's engines: every call in the child raises LifecycleError.
"""

from __future__ import annotations

from .binding import (
    SocketAddress,
    certificate_pin,
    clock_watch,
    derive_key,
    equal,
    error_number,
    limit_arenas,
    versions,
)
from .engine import COUNTERS, Engine
from .events import (
    AcceptFailed,
    AssociationEnded,
    AssociationWanted,
    Closed,
    CommandReceived,
    Connected,
    Event,
    LogRecord,
    Probed,
    Silence,
    SourceUnknown,
    StreamBegun,
    StreamEnded,
    StreamLargeTransfer,
    StreamOpened,
    UdpLargeTransfer,
    UdpRefused,
    Violation,
    VisitorsRefused,
)
from .handles import Bucket, Connection, Credentials, Endpoint, Group, Listener, Stream, UdpSocket
from .values import (
    STREAM_REFUSED,
    Balance,
    BucketInfo,
    Carrier,
    Certificate,
    CloseCause,
    CongestionControl,
    ConnectionInfo,
    CounterDescription,
    Direction,
    RefusedBy,
    StreamEnd,
    StreamResult,
    Transport,
    VisitorLimits,
    packed_ranges,
)

__all__ = [
    "COUNTERS",
    "STREAM_REFUSED",
    "AcceptFailed",
    "AssociationEnded",
    "AssociationWanted",
    "Balance",
    "Bucket",
    "BucketInfo",
    "Carrier",
    "Certificate",
    "CloseCause",
    "Closed",
    "CommandReceived",
    "CongestionControl",
    "Connected",
    "Connection",
    "ConnectionInfo",
    "CounterDescription",
    "Credentials",
    "Direction",
    "Endpoint",
    "Engine",
    "Event",
    "Group",
    "Listener",
    "LogRecord",
    "Probed",
    "RefusedBy",
    "Silence",
    "SocketAddress",
    "SourceUnknown",
    "Stream",
    "StreamBegun",
    "StreamEnd",
    "StreamEnded",
    "StreamLargeTransfer",
    "StreamOpened",
    "StreamResult",
    "Transport",
    "UdpLargeTransfer",
    "UdpRefused",
    "UdpSocket",
    "Violation",
    "VisitorLimits",
    "VisitorsRefused",
    "certificate_pin",
    "clock_watch",
    "derive_key",
    "equal",
    "error_number",
    "limit_arenas",
    "packed_ranges",
    "versions",
]
