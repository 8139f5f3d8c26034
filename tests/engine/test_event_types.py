"""Every event of the boundary has a class, and its record becomes an object of that class."""

from __future__ import annotations

import socket
from typing import get_args

import pytest

from asport_sync import engine as engine_module
from asport_sync.engine import Engine, StreamLargeTransfer
from asport_sync.engine.binding import ffi, lib
from asport_sync.engine.events import Event, event_of

CLASSES: dict[str, type] = {cls.__name__: cls for cls in get_args(Event)}
EVENTS = [name for name in dir(lib) if name.startswith("AQ_EVENT_")]


def class_of(event: str) -> type:
    return CLASSES["".join(word.capitalize() for word in event.removeprefix("AQ_EVENT_").split("_"))]


@pytest.mark.parametrize("event", EVENTS)
def test_a_record_becomes_an_object_of_its_class(event: str) -> None:
    raw = ffi.new("aq_event *")
    raw.type = getattr(lib, event)
    raw.peer.family = 4
    # What the events that need more than zeros have: CLOSED a cause, and STREAM_LARGE_TRANSFER a socket.
    raw.code = lib.AQ_CLOSE_LOCAL if event == "AQ_EVENT_CLOSED" else 0
    if class_of(event) is StreamLargeTransfer:
        with socket.socket() as sock:
            raw.value = sock.detach()
    engine = Engine()
    made = event_of(engine, raw)
    engine.close()
    assert type(made) is class_of(event)
    if isinstance(made, StreamLargeTransfer):
        made.sock.close()


def test_every_class_has_an_event_and_is_exported() -> None:
    assert {class_of(event) for event in EVENTS} == set(CLASSES.values())
    assert [name for name in CLASSES if name not in engine_module.__all__] == []
