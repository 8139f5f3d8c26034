"""The compiled extension: loads it, converts addresses and times for it, and turns its errors into exceptions.

The only module that imports ``_aq``.
"""

from __future__ import annotations

import errno as errno_module
import socket
from typing import Any

from asport_sync._version import build_id
from asport_sync.errors import EngineClosedError, EngineError, HandleGoneError, NativeLibraryError
from asport_sync.hidden import HiddenBytes

try:
    from asport_sync import _aq
except ImportError as problem:
    from asport_sync.engine import missing

    raise NativeLibraryError(missing.explain(problem)) from problem

ffi: Any = _aq.ffi
lib: Any = _aq.lib

if ffi.string(lib.aq_build_id()).decode() != build_id():
    from asport_sync.engine import missing

    raise NativeLibraryError(
        f"the compiled extension asport_sync._aq belongs to another version of this package; {missing.BUILD}"
    )

#: An IP address as text (with ``%zone`` if a link-local IPv6 address needs one) and a port.
SocketAddress = tuple[str, int]


def nanoseconds(seconds: float) -> int:
    """Converts seconds to nanoseconds, the time unit of the C API.

    Never negative; excessive values are clamped to 2**63 (292 years).
    """
    return int(min(max(0.0, seconds * 1e9), 2.0**63))


def to_address(address: SocketAddress) -> Any:
    """Returns a new ``aq_address *``.

    Raises:
        OSError: The text is no IP address, or names a zone that does not exist.
    """
    host, port = address[0], address[1]
    raw = ffi.new("aq_address *")
    host, _, zone = host.partition("%")
    if ":" in host:
        raw.family = 6
        packed = socket.inet_pton(socket.AF_INET6, host)
        if zone:
            raw.scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    else:
        raw.family = 4
        packed = socket.inet_pton(socket.AF_INET, host)
    ffi.memmove(raw.ip, packed, len(packed))
    raw.port = port
    return raw


def from_address(raw: Any) -> SocketAddress:
    """Returns an ``aq_address`` as text and port."""
    if raw.family == 6:
        host = socket.inet_ntop(socket.AF_INET6, bytes(ffi.buffer(raw.ip, 16)))
        return (f"{host}%{raw.scope}" if raw.scope else host, raw.port)
    return (socket.inet_ntop(socket.AF_INET, bytes(ffi.buffer(raw.ip, 4))), raw.port)


def error_of(code: int) -> EngineError:
    """Returns the exception for a negative result."""
    buffer = ffi.new("char[]", 256)
    text = ffi.string(lib.aq_strerror(code, buffer, 256)).decode("utf-8", "replace")
    if code == lib.AQ_ERR_STOPPED:
        return EngineClosedError(code, text)
    if code == lib.AQ_ERR_GONE:
        return HandleGoneError(code, text)
    return EngineError(code, text)


def error_number(problem: EngineError) -> int | None:
    """Returns the errno behind an EngineError, or None if no system call failed."""
    number = lib.AQ_ERR_SYSTEM - problem.code
    return number if 0 < number < max(errno_module.errorcode) + 1 else None


def lacks_default_trust(problem: EngineError) -> bool:
    """Returns whether credentials were refused because GnuTLS's default trust store is missing or empty."""
    return problem.code == int(lib.AQ_ERR_NO_TRUST)


def equal(first: bytes, second: bytes) -> bool:
    """Returns whether two secrets are equal, in time that depends on their length only. Two empty ones never are."""
    return bool(first) and len(first) == len(second) and bool(lib.aq_equal(first, second, len(first)))


def derive_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Derives a 32-byte key from a secret: HKDF (RFC 5869) with SHA-256.

    Raises:
        EngineError: GnuTLS refused.
    """
    out = ffi.new("uint8_t[32]")
    result = int(lib.aq_derive_key(secret, len(secret), salt, len(salt), info, len(info), out))
    if result < 0:
        raise error_of(result)
    return HiddenBytes(ffi.buffer(out))


def certificate_pin(certificate: bytes) -> bytes:
    """Returns the SHA-256 of the SubjectPublicKeyInfo (RFC 7469, section 2.4) of the first certificate in PEM or DER.

    Raises:
        EngineError: There is no certificate in it.
    """
    out = ffi.new("uint8_t[32]")
    result = int(lib.aq_certificate_pin(certificate, len(certificate), out))
    if result < 0:
        raise error_of(result)
    return bytes(ffi.buffer(out))


def clock_watch() -> int:
    """Returns a descriptor that becomes readable when the wall clock jumps, as on resume from suspend.

    The caller owns it. Reading it then raises OSError (ECANCELED) and re-arms it.

    Raises:
        EngineError: The system does not support it, or is out of descriptors.
    """
    result = int(lib.aq_clock_watch())
    if result < 0:
        raise error_of(result)
    return result


def limit_arenas(maximum: int) -> None:
    """Limits the number of malloc() arenas if the C library is glibc.

    Each arena reserves 64 MiB of address space, as much as eight threads with large stacks, however little it holds.
    Must be called before there are other threads.
    """
    lib.aq_malloc_arenas(maximum)


def versions() -> dict[str, str]:
    """Returns the versions of linked components: build, ngtcp2 (and whether bundled or the system's) and GnuTLS."""
    return {
        "build": ffi.string(lib.aq_build_id()).decode(),
        "ngtcp2": ffi.string(lib.aq_ngtcp2_version()).decode(),
        "ngtcp2_origin": ffi.string(lib.aq_ngtcp2_origin()).decode(),
        "gnutls": ffi.string(lib.aq_gnutls_version()).decode(),
    }
