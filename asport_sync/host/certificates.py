"""Certificates, keys and trust, from the files of a configuration to GnuTLS.

``run`` and ``check`` use the same code, so that each accepts what the other accepts.
"""

from __future__ import annotations

import binascii
import collections
import contextlib
import functools
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from asport_sync.config import ClientConfig, Credential, ServerConfig, TunnelConfig, loose_permissions
from asport_sync.engine import Certificate, Credentials, Engine, derive_key
from asport_sync.errors import ConfigError, ConfigErrors, EngineError, GoneError
from asport_sync.host.authorities import trusting_system

SOON = 14 * 86400
"""A warning is logged this many seconds before a certificate expires: renewal programs start a month before."""

_Make: TypeAlias = Callable[..., Credentials]


@dataclass(frozen=True, slots=True)
class Validity:
    """Problems that prevent connections between clients and server, although all files are usable.

    Attributes:
        faults: Permanent problems, one line each.
        dates: Certificates whose validity period counts: their name in log lines, the certificate, and what to do once
            it has expired.
    """

    faults: Sequence[str] = ()
    dates: Sequence[tuple[str, Certificate, str]] = ()

    def ends(self, now: float) -> list[str]:
        """Returns a line for each certificate that is not valid, or expires soon.

        Args:
            now: As ``time.time``.
        """
        lines = []
        for name, certificate, cure in self.dates:
            first, last = certificate.not_before, certificate.not_after
            left = last - now
            if now < first:
                lines.append(f"{name} is not valid before {_date(first)}: {cure}; or correct this machine's clock")
            elif left < 0:
                lines.append(f"{name} expired on {_date(last)}: {cure}")
            elif left < SOON:
                days = int(left // 86400)
                when = ("within a day", "in 1 day")[days] if days < 2 else f"in {days} days"
                lines.append(f"{name} expires on {_date(last)}, {when}: {cure}")
        return lines

    def problems(self, now: float) -> list[str]:
        """Returns the lines of ``faults`` and ``ends``."""
        return [*self.faults, *self.ends(now)]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a server or client needs for TLS.

    Attributes:
        credentials: For the engine.
        validity: The problems found in them.
        private_key: The server's; empty on a client. Not shown by ``repr``.
        authorities: On a client, where the system's certificate authorities are from; empty if they are not trusted.
        digests: A digest of the content of the server's certificate and key, by key; empty on a client.
    """

    credentials: Credentials
    validity: Validity
    private_key: bytes = field(default=b"", repr=False)
    authorities: str = ""
    digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def renewed_since(self, before: Loaded) -> list[str]:
        """Returns the keys whose content differs from before."""
        return [key for key, found in self.digests.items() if before.digests.get(key, found) != found]

    def free(self) -> None:
        """Releases the credentials. Connections that use them keep them."""
        with contextlib.suppress(GoneError):
            self.credentials.free()


def digest(content: bytes) -> bytes:
    """Returns 32 bytes that identify the content of a file; computed by GnuTLS, as hashlib would load OpenSSL."""
    return derive_key(content, salt=b"asport-sync", info=b"content of a file")


def load_server(config: ServerConfig, engine: Engine, log: logging.Logger | None) -> Loaded:
    """Loads the certificate and the key of a server.

    Args:
        config: The server's configuration.
        engine: Need not be started.
        log: Receives warnings about the key log; None: this is a trial, and no key log is opened or created.

    Raises:
        ConfigError: Something is not usable. It names the file and the key.
    """
    tls = config.tls
    private_key = tls.private_key.read("private_key")
    certificate = tls.certificate.read("certificate")
    make = functools.partial(
        engine.server_credentials,
        certificate=certificate,
        private_key=private_key,
        alpn=[name.encode() for name in tls.alpn],
    )
    try:
        credentials = _make(make, config.keylog, log)
    except GoneError:
        raise  # the engine is being closed
    except EngineError as problem:
        places = {"certificate": ("certificate", tls.certificate), "private key": ("private_key", tls.private_key)}
        raise _not_usable(problem, places, "certificate") from problem
    validity = _of_server(tls.certificate, engine.certificates(certificate))
    digests = {"certificate": digest(certificate), "private_key": digest(private_key)}
    return Loaded(credentials, validity, private_key, digests=digests)


def load_client(config: TunnelConfig, engine: Engine, log: logging.Logger | None) -> Loaded:
    """Loads what a tunnel of a client trusts.

    Args:
        config: The tunnel's configuration.
        engine: Need not be started.
        log: As for ``load_server``.

    Raises:
        ConfigError: Something is not usable. It names the file and the key.
    """
    return _load_trust(config, list(_trusted(config)), engine, log)


class SharedTrust:
    """What the tunnels of a client trust. Tunnels that trust the same share it. Any thread.

    The system's certificate authorities alone take 10 ms and more than a megabyte each time they are loaded.

    Args:
        engine: Need not be started.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # guards the two tables
        self._loaded: dict[Hashable, Loaded] = {}
        self._users: collections.Counter[Hashable] = collections.Counter()

    def __len__(self) -> int:
        """The number of different ones."""
        return len(self._loaded)

    def acquire(self, config: TunnelConfig, log: logging.Logger) -> Loaded:
        """Returns what a tunnel trusts. Files are read each time; the system's authorities only by the first user.

        Raises:
            ConfigError: Something is not usable. It names the file and the key.
        """
        trusted = list(_trusted(config))
        key = _identity(config, trusted)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = _load_trust(config, trusted, self._engine, log)
            self._users[key] += 1
            return self._loaded[key]

    def release(self, loaded: Loaded) -> None:
        """Gives back what ``acquire`` returned. The last user frees it."""
        with self._lock:
            key = next(key for key, each in self._loaded.items() if each is loaded)
            self._users[key] -= 1
            if self._users[key] > 0:
                return
            del self._users[key], self._loaded[key]
        loaded.free()


def _identity(config: TunnelConfig, trusted: Sequence[tuple[str, Credential, bytes]]) -> Hashable:
    """Returns a value that is equal for tunnels whose credentials are the same."""
    tls = config.tls
    contents = tuple((key, source.path, digest(content)) for key, source, content in trusted)
    options = (tls.alpn, tls.certificates.pins, tls.certificates.disable_native, tls.verifies_certificate)
    return contents, options, config.keylog


def _load_trust(
    config: TunnelConfig,
    trusted: Sequence[tuple[str, Credential, bytes]],
    engine: Engine,
    log: logging.Logger | None,
) -> Loaded:
    tls = config.tls
    dates = []
    if tls.verifies_certificate:
        for key, source, content in trusted:
            try:
                found = engine.certificates(content)
            except GoneError:
                raise
            except EngineError as problem:
                raise _not_usable(problem, {"certificate": (key, source)}, key) from problem
            # A bundle usually contains some expired certificates; it is useless only once all have expired.
            if found:
                last = max(found, key=lambda each: each.not_after)
                dates.append(
                    (f"{_name(source, key)}: the trusted certificate", last, "servers that depend on it are rejected")
                )
    make = functools.partial(
        engine.client_credentials,
        alpn=[name.encode() for name in tls.alpn],
        verify=tls.verifies_certificate,
        pins=tls.certificates.pins,
    )

    def with_trust(trust: bytes, *, system_trust: bool) -> Credentials:
        return _make(functools.partial(make, trust=trust, system_trust=system_trust), config.keylog, log)

    authorities = ""
    try:
        if tls.verifies_certificate and not tls.certificates.disable_native:
            credentials, authorities = trusting_system(with_trust, _bundle(trusted))
        else:
            credentials = with_trust(_bundle(trusted), system_trust=False)
    except GoneError:
        raise
    except EngineError as problem:
        raise _not_usable(problem, {"certificate authorities": ("certificates", None)}, "certificates") from problem
    if authorities and log is not None:
        log.debug("the system's certificate authorities: %s", authorities)
    return Loaded(credentials, Validity(dates=dates), authorities=authorities)


def load_all(tunnels: Iterable[TunnelConfig], load: Callable[[TunnelConfig], Loaded]) -> list[Loaded]:
    """Loads what each of several tunnels trusts.

    Raises:
        ConfigErrors: Something is not usable; it has the errors of all tunnels, the same error only once.
    """
    loaded = []
    problems: dict[str, ConfigError] = {}
    for tunnel in tunnels:
        try:
            loaded.append(load(tunnel))
        except ConfigError as problem:
            problems.setdefault(str(problem), problem)
    if problems:
        raise ConfigErrors(problems.values())
    return loaded


def default_authorities() -> str:
    """Returns where the certificate authorities are from that clients trust unless their configuration says otherwise.

    Raises:
        ConfigError: There are none, or the environment names something that is not usable.
        EngineError: The system does not allow an engine to be created.
    """
    engine = Engine()
    try:
        return trusting_system(functools.partial(engine.client_credentials, alpn=[b"asport"]), b"")[1]
    finally:
        engine.close()


def try_out(config: ClientConfig | ServerConfig) -> list[str]:
    """Loads what ``run`` would load, without a socket, and discards it.

    Returns:
        The warnings.

    Raises:
        ConfigError: Something is not usable; ConfigErrors if there are several problems.
        EngineError: The system does not allow an engine to be created.
    """
    engine = Engine()
    try:
        if isinstance(config, ClientConfig):
            loaded = load_all(config.tunnels.values(), lambda tunnel: load_client(tunnel, engine, None))
        else:
            loaded = [load_server(config, engine, None)]
        # Several tunnels may have the same file.
        return list(dict.fromkeys(line for each in loaded for line in each.validity.problems(time.time())))
    finally:
        engine.close()


def make_credentials(make: _Make, path: os.PathLike[str] | None, log: logging.Logger) -> Credentials:
    """Creates credentials that log TLS secrets to the configured file, or else to the file that SSLKEYLOGFILE names.

    Logs a warning that names the file. The environment may be meant for other programs or another user: if its file
    can't be written, that is only a warning too, and no secrets are logged.

    Args:
        make: Creates the credentials, given ``keylog``.
        path: The configured file.
        log: Receives the warnings.

    Raises:
        ConfigError: The configured file can't be written.
        EngineError: Something else is wrong with the credentials.
    """
    file = os.fspath(path) if path is not None else os.environ.get("SSLKEYLOGFILE") or None
    if file is None:
        return make(keylog=None)
    try:
        credentials = make(keylog=file)
    except EngineError as problem:
        credentials = make(keylog=None)  # raises if something else is wrong
        if path is not None:
            raise ConfigError(str(problem), key="keylog") from problem
        log.warning("SSLKEYLOGFILE is ignored: %s", problem)
        return credentials
    log.warning("TLS secrets are written to %s: anyone who can read it can decrypt all traffic", file)
    loose = loose_permissions(file)  # of an existing file; a new one is accessible to its owner only
    if loose is not None:
        log.warning("%s", loose)
    return credentials


# --- internal ---------------------------------------------------------------------------------------------------------


def _make(make: _Make, keylog: Path | None, log: logging.Logger | None) -> Credentials:
    if log is not None:
        return make_credentials(make, keylog, log)
    credentials = make(keylog=None)
    if keylog is not None:
        _check_keylog(keylog)
    return credentials


def _check_keylog(path: Path) -> None:
    """Checks that the file could be written, without creating it: it would belong to the user who runs the check.

    Raises:
        ConfigError: It can't be written.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError as problem:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            said = problem.strerror if not path.parent.exists() else "its folder is not writable"
            raise ConfigError(f"key log {path}: {said}", key="keylog") from None
    except OSError as problem:
        raise ConfigError(f"key log {path}: {problem.strerror}", key="keylog") from None


def _not_usable(
    problem: EngineError, places: Mapping[str, tuple[str, Credential | None]], otherwise: str
) -> ConfigError:
    """Converts an engine error about credentials to one that names the file and the key concerned.

    Args:
        problem: The engine's error.
        places: The key and the file of each part, by the engine's name for the part.
        otherwise: The key to name if the error concerns none of them.
    """
    part, colon, said = str(problem).partition(": ")
    if not colon or part not in places:
        return ConfigError(f"not usable: {problem}", key=otherwise)
    key, source = places[part]
    path = None if source is None or source.path is None else str(source.path)
    if path is not None:
        said = said.replace("-in OLD", f"-in {shlex.quote(path)}")
    return ConfigError(said, path=path, key=key)


def _name(source: Credential, key: str) -> str:
    """Returns how log lines name a file or, if there is none, the key."""
    return key if source.path is None else str(source.path)


def _of_server(source: Credential, chain: Sequence[Certificate]) -> Validity:
    name = _name(source, "certificate")
    faults = []
    if chain and not chain[0].signs:
        faults.append("may not sign handshakes (keyUsage without digitalSignature), so no client can connect")
    if chain and not chain[0].serves:
        faults.append("is not for TLS servers (extendedKeyUsage without serverAuth), so clients reject it")
    if chain and not chain[0].names:
        faults.append(
            "has no DNS name or IP address in its subjectAltName, so clients reject it (RFC 9525): create a new one, "
            "with openssl: -addext subjectAltName=DNS:NAME"
        )
    if not all(each.strong for each in chain):
        faults.append("or an issuer's has a key that is too short, so clients reject it: RSA needs 2,048 bits")
    if not all(each.sealed for each in chain):
        faults.append("or an issuer's is signed by too weak an algorithm, such as SHA-1, so clients reject it")
    cure = "clients reject a server without a valid certificate; renew it and reload the server"
    dates = [
        (f"{name}: the certificate" if place == 1 else f"{name}: certificate {place} of the chain", each, cure)
        for place, each in enumerate(chain, 1)
    ]
    return Validity([f"{name}: the certificate {fault}" for fault in faults], dates)


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _trusted(config: TunnelConfig) -> Iterable[tuple[str, Credential, bytes]]:
    """Yields key, source and content of each certificate file or text that a client is configured to trust.

    Raises:
        ConfigError: A file can't be read.
    """
    for path in config.tls.certificates.paths:
        source = Credential(path=path)
        yield "certificates.paths", source, source.read("certificates.paths")
    if config.tls.certificates.pem is not None:
        content = config.tls.certificates.pem.encode()
        yield "certificates.pem", Credential(data=content), content


def _bundle(trusted: Iterable[tuple[str, Credential, bytes]]) -> bytes:
    return b"\n".join(content if b"-----BEGIN " in content else _pem_of(content) for _, _, content in trusted)


def _pem_of(der: bytes) -> bytes:
    """Returns a certificate as PEM (RFC 7468), without the module ssl, which would load a second TLS library."""
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])
