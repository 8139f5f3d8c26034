"""Calls the control socket of a running client or server: the other side of ``application.py``, for the commands."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from asport_sync.control import control_socket
from asport_sync.control.status import Status, from_dict
from asport_sync.errors import AsportError
from asport_sync.host.stats import Side

_TIMEOUT = 30.0  # seconds: a reload resolves names


class ControlError(AsportError):
    """A running client or server cannot be reached, or refuses what was asked of it."""


class NoneFoundError(ControlError):
    """There is no control socket in the usual directories."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Caller:
    """One running client or server.

    Args:
        path: Its control socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def status(self) -> Status:
        """Returns its current state.

        Raises:
            ControlError: It can't be reached, or the answer is unusable.
        """
        try:
            return from_dict(self.get("/v1/status"))
        except ValueError as problem:
            raise ControlError(f"{self.path}: {problem}") from None

    def get(self, resource: str) -> Any:
        """Returns the answer to a question.

        Raises:
            ControlError: It can't be reached, or refuses.
        """
        return self._call("GET", resource, None)

    def post(self, resource: str, **values: str) -> Any:
        """Has it do something; returns the answer.

        Raises:
            ControlError: It can't be reached, or refuses.
        """
        return self._call("POST", resource, json.dumps(values) if values else None)

    def _call(self, method: str, resource: str, body: str | None) -> Any:
        connection = _Connection(self.path)
        try:
            connection.request(method, resource, body, {} if body is None else {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as problem:
            why = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
            raise ControlError(f"{self.path}: no answer: {why}") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise ControlError(f"{self.path}: {answer.get('error', response.reason)}")
        return answer


def running(which: str | None = None) -> Caller:
    """Returns the one client or server that runs.

    Args:
        which: The path of its control socket; "client" or "server": the only one of these; None: the only one of both.

    Raises:
        NoneFoundError: There is none.
        ControlError: None answers, or several do.
    """
    sides = {side.value: side for side in (Side.CLIENT, Side.SERVER)}
    if which is not None and which not in sides:
        return Caller(Path(which))
    what = which or "client or server"
    answering, silent = everyone(None if which is None else sides[which])
    if len(answering) == 1:
        return answering[0]
    if answering:
        listed = "".join(f"\n  --socket {each.path}" for each in answering)
        raise ControlError(f"more than one {what} is running; choose one:{listed}")
    if silent:
        raise ControlError("\n  ".join([f"no {what} answers:", *silent]))
    raise NoneFoundError(f"{none_found(what)}: name its socket (key control_socket) with --socket")


def none_found(what: str = "client or server") -> str:
    """Returns the text for a search that has found no control socket."""
    return (
        f"no {what} is running, or it has no control socket in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/asport*, "
        f"/run/user/{os.geteuid()}/asport* or /run/asport*"
    )


def everyone(side: Side | None = None) -> tuple[list[Caller], list[str]]:
    """Returns the clients, servers, or both that answer, and what is wrong with the sockets that do not."""
    answering, silent = [], []
    for path in control_socket.find(side):
        caller = Caller(path)
        try:
            caller.get("/v1/log-level")
        except ControlError as problem:
            silent.append(str(problem))
        else:
            answering.append(caller)
    return answering, silent
