"""All exceptions that asport_sync raises deliberately.

One base class, one subclass per cause. Programs should branch on the class or on ``retryable``; the text is for humans
and never contains a password, a token or a private key. docs/api.md lists the classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from asport_sync.hidden import without_passwords as _without_passwords


class AsportError(Exception):
    """Base class of all errors of this package.

    Attributes:
        retryable: True if the same call may succeed later without any change of this program's settings: those of the
            server may be corrected, for example.
    """

    retryable: bool = False


# --- configuration ----------------------------------------------------------------------------------------------------


class ConfigError(AsportError, ValueError):
    """A configuration file or option is unusable.

    Attributes:
        problem: What is wrong and what was expected, without the location.
        path: The file, or None if the value did not come from a file.
        line: Line in that file, counted from 1, or None if unknown.
        column: Column in that line, in characters, counted from 1, or None if unknown.
        key: Dotted key, such as ``proxies[0].allow_ports``, or None.
        variable: The environment variable that the value came from, or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
        variable: str | None = None,
    ) -> None:
        # A URI, which has a password, may have been given in place of a file.
        self.problem = problem = _without_passwords(problem)
        self.path = path = None if path is None else _without_passwords(path)
        self.line = line
        self.column = column
        self.key = key
        self.variable = variable
        place = ""
        if path is not None:
            place = ":".join(str(part) for part in (path, line, column) if part is not None) + ": "
        if variable is not None:
            place = f"environment variable {variable}: "
        if key:
            place += f"{key}: "
        super().__init__(place + problem)


class ConfigErrors(ConfigError):
    """All errors of one configuration.

    All other attributes are those of the first error; the text has one line per error.

    Attributes:
        errors: In order of their places; never empty.
    """

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        # Errors without a line, such as missing keys, come last.
        self.errors = sorted(errors, key=lambda error: (error.line is None, error.line or 0, error.column or 0))
        first = self.errors[0]
        super().__init__(
            first.problem,
            path=first.path,
            line=first.line,
            column=first.column,
            key=first.key,
            variable=first.variable,
        )
        self.args = ("\n".join(map(str, self.errors)),)

    def __reduce__(self) -> tuple[type[ConfigErrors], tuple[list[ConfigError]]]:
        return ConfigErrors, (self.errors,)


# --- protocol ---------------------------------------------------------------------------------------------------------


class ProtocolError(AsportError):
    """The rules of the ASPORT wire format were violated."""


class LocalProtocolError(ProtocolError):
    """This side requested something the protocol cannot express: an error of the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that violate the protocol. The only exception raised for bytes from outside."""


# --- connecting to a server -------------------------------------------------------------------------------------------


class ConnectError(AsportError, OSError):
    """No QUIC connection to any of the server's addresses could be established, or the connection was lost."""

    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)


class HandshakeTimeoutError(ConnectError, TimeoutError):
    """The server did not complete the QUIC handshake or did not answer ClientHello in time."""


class CertificateError(ConnectError):
    """The server's certificate was rejected.

    Retried slowly: a certificate may be renewed, but a wrong one remains wrong.
    """


class UnhealthyError(AsportError):
    """The local service is unhealthy, so that no public port is requested until a health check succeeds."""

    retryable = True


class RefusedError(AsportError):
    """The server refused this client. Retried slowly, because the server's configuration may change.

    Raised directly, not as a subclass, if the server closed the connection without giving a reason.

    Attributes:
        code: The ServerHello code, or None if the server closed the connection without one.
    """

    code: int | None = None
    retryable = True


class AuthenticationError(RefusedError):
    """ServerHello AuthFailed: unknown UUID or wrong password."""

    code = 1


class BindError(RefusedError):
    """ServerHello BindFailed: no port in the expected range could be bound."""

    code = 2


class PortDeniedError(RefusedError):
    """ServerHello PortDenied: the user may not use any port in the expected range."""

    code = 3


class NetworkDeniedError(RefusedError):
    """ServerHello NetworkDenied: the user may not use the requested network (TCP, UDP)."""

    code = 4


# --- engine and lifecycle ---------------------------------------------------------------------------------------------


class NativeLibraryError(AsportError, ImportError):
    """The compiled extension cannot be loaded or does not match this package; the text names the command that helps."""


class EngineError(AsportError):
    """A call into the native engine failed.

    Attributes:
        code: The engine's negative error code.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class GoneError(EngineError):
    """What the call refers to no longer exists: one object of the engine, or the engine itself."""


class HandleGoneError(GoneError):
    """The connection, stream, socket or credentials that a handle refers to no longer exist."""


class EngineClosedError(GoneError):
    """The engine is stopped, and all its objects with it."""


class LifecycleError(AsportError, RuntimeError):
    """Start or stop at the wrong time: started twice, or used in a forked child."""


# --- former names -----------------------------------------------------------------------------------------------------

_RENAMED = {
    "AuthenticationFailed": AuthenticationError,
    "BindFailed": BindError,
    "EngineClosed": GoneError,
    "HandshakeTimeout": HandshakeTimeoutError,
    "NetworkDenied": NetworkDeniedError,
    "PortDenied": PortDeniedError,
}
"""Names up to release 0.1.1, kept for one more release."""


def _renamed(name: str, module: str, stacklevel: int) -> type[AsportError]:
    """Returns the class that had another name, and warns its user. For ``__getattr__`` of modules.

    Args:
        name: The former name.
        module: The module in which it is looked up.
        stacklevel: The frame of the program, counted from the caller of this function, which is 1.

    Raises:
        AttributeError: No class ever had this name.
    """
    found = _RENAMED.get(name)
    if found is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    message = f"{module}.{name} is now {found.__name__}; the former name will be removed"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
    return found


if not TYPE_CHECKING:  # a type checker would assume that every name is defined here

    def __getattr__(name: str) -> type[AsportError]:
        return _renamed(name, __name__, 2)
