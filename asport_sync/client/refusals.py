"""Refusals of the server as exceptions."""

from __future__ import annotations

from asport_sync.config import PortRange
from asport_sync.errors import AuthenticationError, BindError, NetworkDeniedError, PortDeniedError, RefusedError
from asport_sync.wire import ServerHelloCode

# Refusals that depend on the requested ports.
REFUSALS_OF_PORTS = (ServerHelloCode.BIND_FAILED, ServerHelloCode.PORT_DENIED)

# Refusals that depend on how the server reads the mode byte.
_REFUSALS_OF_A_MODE = (ServerHelloCode.BIND_FAILED, ServerHelloCode.NETWORK_DENIED)

_REFUSALS: dict[ServerHelloCode, tuple[type[RefusedError], str]] = {
    ServerHelloCode.AUTH_FAILED: (AuthenticationError, "authentication failed: unknown UUID or wrong password"),
    ServerHelloCode.BIND_FAILED: (
        BindError,
        "bind failed: the server could not open any port of the expected range; all may be in use (see its log)",
    ),
    ServerHelloCode.PORT_DENIED: (
        PortDeniedError,
        "port denied: the server does not allow this user any port of the expected range",
    ),
    ServerHelloCode.NETWORK_DENIED: (
        NetworkDeniedError,
        "network denied: the server does not allow this user the requested network",
    ),
}


def why_refused(code: ServerHelloCode, asked: str, expected_port_range: PortRange) -> RefusedError:
    """Returns a refusal as an exception, given what was requested."""
    kind, text = _REFUSALS[code]
    if code in _REFUSALS_OF_A_MODE:
        text = f"{text}; {asked}"
    if code in REFUSALS_OF_PORTS:
        text = f"{text}; expected_port_range is {expected_port_range}"
    return kind(text)
