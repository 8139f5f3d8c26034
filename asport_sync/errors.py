"""Every exception that asport_sync raises on purpose.

One base class, one subclass per cause. A program decides with the class or with ``retryable``; the text is for people
and never contains a password, a token or a private key.
"""

from __future__ import annotations


class AsportError(Exception):
    """Base of all errors of this package.

    Attributes:
        retryable: True where the same call may succeed later without anybody changing a setting.
    """

    retryable: bool = False


# --- configuration ----------------------------------------------------------------------------------------------------


class ConfigError(AsportError, ValueError):
    """A configuration file or option is not usable.

    Attributes:
        problem: What is wrong and what was expected, without the place.
        path: The file, or None where the value did not come from a file.
        line: Line in that file, counted from 1, or None where it isn't known.
        key: Dotted key, such as ``proxies[0].allow_ports``, or None.
    """

    def __init__(
        self, problem: str, *, path: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        self.problem = problem
        self.path = path
        self.line = line
        self.key = key
        place = ""
        if path is not None:
            place = f"{path}:{line}: " if line is not None else f"{path}: "
        if key:
            place += f"{key}: "
        super().__init__(place + problem)


# --- protocol ---------------------------------------------------------------------------------------------------------


class ProtocolError(AsportError):
    """The rules of the ASPORT wire format were broken."""


class LocalProtocolError(ProtocolError):
    """This side asked for something the protocol can't express: a fault of the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that break the protocol. Nothing else is raised for bytes from outside."""


# --- reaching and joining a server ------------------------------------------------------------------------------------


class ConnectError(AsportError, OSError):
    """No QUIC connection to the server came about on any of its addresses, or it was lost."""

    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)


class HandshakeTimeout(ConnectError, TimeoutError):
    """The server did not finish the QUIC handshake, or did not answer ClientHello, in time."""


class CertificateError(ConnectError):
    """The server's certificate was not accepted.

    Retried slowly: a certificate may be renewed, a wrong one stays wrong.
    """


class RefusedError(AsportError):
    """The server refused this client. Retried slowly, for the server's configuration may change.

    Raised as such where the server closed the connection without saying why.

    Attributes:
        code: The ServerHello code, or None where the server closed without one.
    """

    code: int | None = None
    retryable = True


class AuthenticationFailed(RefusedError):
    """ServerHello AuthFailed: unknown UUID or wrong password."""

    code = 1


class BindFailed(RefusedError):
    """ServerHello BindFailed: no port of the expected range could be bound."""

    code = 2


class PortDenied(RefusedError):
    """ServerHello PortDenied: the user may use no port of the expected range."""

    code = 3


class NetworkDenied(RefusedError):
    """ServerHello NetworkDenied: the user may not use the network (TCP, UDP) asked for."""

    code = 4


# --- engine and lifecycle ---------------------------------------------------------------------------------------------


class NativeLibraryError(AsportError, ImportError):
    """The compiled extension is missing or does not fit this package; the text names the command that mends it."""


class EngineError(AsportError):
    """A call into the native engine failed.

    Attributes:
        code: The engine's negative error code.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class EngineClosed(EngineError):
    """The engine is stopped, or the connection, stream or socket named in the call is gone."""


class LifecycleError(AsportError, RuntimeError):
    """A start or stop at the wrong time: started twice, or used in a forked child."""
