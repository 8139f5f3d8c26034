"""Opens the control socket and the status address, and closes them."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path

from asport_sync.config import HostConfig, StatusConfig
from asport_sync.control import control_socket
from asport_sync.control.application import MAY_CONTROL, Application
from asport_sync.control.control_socket import ControlSocket, SocketInUse
from asport_sync.control.operations import Operations
from asport_sync.control.wsgi_server import WsgiServer
from asport_sync.errors import AsportError, ConfigError, LifecycleError
from asport_sync.forked import new_socket
from asport_sync.runtime import sockets
from asport_sync.runtime.log import logger

_log = logger("control")

_STOP_TIMEOUT = 0.5  # seconds that requests get to end
_MAX_CONTROL_REQUESTS = 8
_BACKLOG = 64

_NOWHERE = (
    "no control socket, so status and other commands do not find this process: RUNTIME_DIRECTORY and XDG_RUNTIME_DIR "
    "name no directory that only this user may change; set one of them, or control_socket to a path"
)

_IN_USE = (
    "no control socket: %s has %s, so status, reload and other commands reach only that one; to reach this process as "
    "well, set control_socket to another path, and name that with --socket"
)


class Services:
    """The control socket and the status address of one client or server; either may be missing.

    Args:
        operations: The client or the server.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._servers: list[WsgiServer] = []
        self._control: ControlSocket | None = None

    def open_control(self, path: Path) -> None:
        """Opens the control socket.

        Raises:
            ConfigError: It can't be opened.
            LifecycleError: The system can't create a thread.
        """
        self._control = ControlSocket(path)
        server = WsgiServer(
            Application(self._operations),
            self._control.sock,
            name="asport-control",
            environ={MAY_CONTROL: True, "SERVER_NAME": "localhost", "SERVER_PORT": "0"},
            refusal=control_socket.refusal,
            on_refusal=self._operations.count_refusal,
            max_requests=_MAX_CONTROL_REQUESTS,
        )
        self._start(server)
        _log.info("control socket: %s", path)

    def open_status(self, config: StatusConfig) -> None:
        """Opens the status address.

        Raises:
            ConfigError: It can't be opened.
            LifecycleError: The system can't create a thread.
        """
        sock = _listening(config)
        host, port = sockets.local_address(sock)
        server = WsgiServer(
            Application(self._operations, config.token),
            sock,
            name="asport-status",
            environ={"SERVER_NAME": host, "SERVER_PORT": str(port)},
            on_refusal=self._operations.count_refusal,
        )
        self._start(server)
        _log.info("status address: http://%s/", sockets.text((host, port)))
        if importlib.util.find_spec("prometheus_client") is None:
            _log.info("no metrics for Prometheus: prometheus-client is missing; pip install 'asport-sync[metrics]'")

    def _start(self, server: WsgiServer) -> None:
        self._servers.append(server)
        try:
            server.start()
        except RuntimeError as problem:
            raise LifecycleError(str(problem)) from problem

    def stop(self) -> None:
        """Closes both. Idempotent; a request may call it."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.stop(_STOP_TIMEOUT)
        if self._control is not None:
            self._control.close()
            self._control = None


def open_configured(config: HostConfig, operations: Operations) -> Services:
    """Opens what the configuration names.

    Raises:
        ConfigError: Something can't be opened.
        LifecycleError: The system can't create a thread.
    """
    services = Services(operations)
    try:
        if isinstance(config.control_socket, Path):
            services.open_control(config.control_socket)
        if config.status is not None:
            services.open_status(config.status)
    except BaseException:
        services.stop()
        raise
    return services


@contextlib.contextmanager
def by_default(config: HostConfig, operations: Operations) -> Iterator[None]:
    """Opens the control socket of a command at its default location meanwhile, unless the configuration decides.

    Logs a warning if that fails: a command must not fail for something that nobody has asked for. Logs a line if there
    is no such location, or if another process has it: a second client is nothing unusual.
    """
    is_wanted = config.control_socket is None
    path = control_socket.default_path(operations.side) if is_wanted else None
    services = Services(operations)
    try:
        if path is None and is_wanted:
            _log.info(_NOWHERE)
        elif path is not None:
            try:
                control_socket.prepare_directory(path.parent)
                services.open_control(path)
            except SocketInUse as problem:
                _log.info(_IN_USE, problem.owner, path)
            except AsportError as problem:
                _log.warning("%s; set control_socket to another path, or to off", problem)
        yield
    finally:
        services.stop()


def _listening(config: StatusConfig) -> socket.socket:
    address = config.http
    sock = new_socket(sockets.family_of(address.host), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as problem:
        sock.close()
        raise ConfigError(f"cannot listen on {address}: {problem.strerror}", key="status.http") from problem
    return sock
