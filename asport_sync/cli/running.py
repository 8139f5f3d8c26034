"""The commands that ask a running client or server through its control socket, or change something in it."""

from __future__ import annotations

import argparse
import json
import sys
import time

from asport_sync.cli import output, table
from asport_sync.control.caller import ControlError, everyone, none_found, running
from asport_sync.control.status import Status

_SAMPLE = 0.5  # seconds between the two looks from which rates are calculated
_INTERVAL = 2.0  # seconds between two tables of --watch
_CLEAR = "\x1b[H\x1b[2J"  # cursor home, erase display (ECMA-48)


def status(arguments: argparse.Namespace) -> int:
    """Prints the state of a client or a server, once or repeatedly."""
    caller = running(arguments.socket)
    before = None if arguments.json else caller.status()
    while True:
        if before is not None:
            time.sleep(_SAMPLE)
        now = caller.status()
        output.say(json.dumps(now.as_dict(), ensure_ascii=False) if arguments.json else _screen(now, before, arguments))
        if not arguments.watch:
            return 0
        time.sleep(_INTERVAL - (0 if arguments.json else _SAMPLE))
        before = None if arguments.json else caller.status()


def _screen(now: Status, before: Status | None, arguments: argparse.Namespace) -> str:
    text = table.text_of(now, before)
    if not arguments.watch:
        return text
    return f"{_CLEAR}{text}" if sys.stdout.isatty() else f"{text}\n"


def list_running(_: argparse.Namespace) -> int:
    """Prints one line for each running client and server whose control socket is in a runtime directory.

    Returns:
        The exit status: 1 if none answers, for which stderr has the reason.
    """
    answering, silent = everyone()
    for problem in silent:
        output.complain(problem)
    if not answering and not silent:
        output.complain(none_found())
    rows = []
    for caller in answering:
        try:
            state = caller.status()
        except ControlError as problem:  # it has just ended
            output.complain(str(problem))
            continue
        rows.append([state.side, str(state.pid), str(len(state.tunnels)), str(caller.path), state.summary])
    if not rows:
        return 1
    output.say("\n".join(table.columns([["SIDE", "PID", "TUNNELS", "SOCKET", "STATE"], *rows])))
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """Has a client or a server read its configuration again, and prints what has changed."""
    done = running(arguments.socket).post("/v1/reload")
    lines = [*done["changes"], *(f"needs a restart: {each}" for each in done["needs_restart"])]
    output.say("\n".join(lines) if lines else "nothing has changed")
    return 0


def drain(arguments: argparse.Namespace) -> int:
    """Has a client or a server accept nothing new, and prints how much is open."""
    done = running(arguments.socket).post("/v1/drain")
    output.say(f"draining: {done['open']} connections and UDP associations are open")
    return 0


def disconnect(arguments: argparse.Namespace) -> int:
    """Closes the QUIC connections of a tunnel or a user, and prints how many there were."""
    done = running(arguments.socket).post("/v1/disconnect", name=arguments.name)
    output.say(f"disconnected: {done['disconnected']}")
    return 0


def log_level(arguments: argparse.Namespace) -> int:
    """Sets the log level of a client or a server, and prints the previous one; without a level, prints it."""
    caller = running(arguments.socket)
    if arguments.level is None:
        output.say(caller.get("/v1/log-level")["level"])
    else:
        done = caller.post("/v1/log-level", level=arguments.level)
        output.say(f"{done['level']} (was {done['before']})")
    return 0
