"""Finds the certificate authorities of the system, for clients that trust those.

The first of these that applies is used, and nothing else:

1. ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, which OpenSSL, Go and curl know, too.
2. The default trust store of GnuTLS. It comes before the search: with p11-kit, it also has what the distribution or the
   administrator distrusts, which no bundle can express.
3. The bundle of a distribution. A GnuTLS that was built elsewhere, such as the one in a wheel, has no default store, or
   one that is not on this machine.
4. ``certifi``, if it is installed.

Without any, there is no verification and so no connection.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asport_sync.engine import Credentials, lacks_default_trust
from asport_sync.errors import ConfigError, EngineError

BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Alpine, Arch, Gentoo, NixOS
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # Fedora, RHEL
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # RHEL and its relatives, older releases
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE, SLES
    Path("/var/lib/ca-certificates/ca-bundle.pem"),  # the same, where /etc is not populated
    Path("/etc/ca-certificates/extracted/tls-ca-bundle.pem"),  # Arch, without the package of links
    Path("/etc/ssl/cert.pem"),  # Alpine, and what has LibreSSL
    Path("/etc/ssl/certs/ca-bundle.crt"),  # NixOS
    Path("/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt"),  # Nix on other distributions
)
"""Files with the authorities of a distribution, as PEM text; the most common ones first."""

GNUTLS = "the default trust store of GnuTLS"
"""The source of authorities that GnuTLS finds."""

_FILE, _DIRECTORY = "SSL_CERT_FILE", "SSL_CERT_DIR"
_CURE = (
    "install the package ca-certificates, or certifi from PyPI; or name a file in SSL_CERT_FILE or certificates.paths"
)
_MAX_SIZE = 16 << 20  # bytes of a file, and of all files together: what the engine accepts
_CERTIFICATE = re.compile(rb"-----BEGIN (X509 )?CERTIFICATE-----\s.+?-----END (X509 )?CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Certificate authorities.

    Attributes:
        source: Where they are from, for people.
        content: Their certificates, PEM text without duplicates.
    """

    source: str
    content: bytes = field(repr=False)


def trusting_system(
    make: Callable[..., Credentials],
    given: bytes,
    *,
    environ: Mapping[str, str] = os.environ,
    bundles: Sequence[Path] = BUNDLES,
) -> tuple[Credentials, str]:
    """Creates credentials that trust the system's authorities.

    Args:
        make: Creates credentials, given ``trust`` and ``system_trust`` as ``Engine.client_credentials``.
        given: More authorities, PEM text; they suffice if the system has none.
        environ: The environment.
        bundles: Where to search.

    Returns:
        The credentials, and the source of the system's authorities.

    Raises:
        ConfigError: There is no authority, or a file cannot be used.
        EngineError: Something else is wrong with the credentials.
    """
    found = of_environment(environ)
    if found is None:
        try:
            return make(trust=given, system_trust=True), GNUTLS
        except EngineError as problem:
            if not lacks_default_trust(problem):
                raise
        found = search(bundles)
    if found is None:
        if given:
            return make(trust=given, system_trust=False), "the system has none"
        raise ConfigError(
            "no certificate authority to verify the server with: GnuTLS has no default trust store, and none of the "
            f"files is here that distributions have, such as {BUNDLES[0]}; {_CURE}",
            key="certificates",
        )
    try:
        return make(trust=given + b"\n" + found.content, system_trust=False), found.source
    except EngineError as problem:
        if not str(problem).startswith("certificate authorities: "):
            raise
        # Those that are given are known to be usable.
        raise ConfigError(f"{found.source}: {problem}", key="certificates") from problem


def of_environment(environ: Mapping[str, str]) -> Authorities | None:
    """Returns the authorities that the environment names, which are then the only ones; None: it names none.

    Raises:
        ConfigError: It names some, and there are none, or their file cannot be read.
    """
    file, directories = environ.get(_FILE), environ.get(_DIRECTORY)
    found: list[bytes] = []
    if file:
        try:
            content = _read(Path(file))
        except OSError as problem:
            raise ConfigError(
                f"{file}: {problem.strerror}; expected a file with certificates as PEM text, or no such variable",
                variable=_FILE,
            ) from problem
        found += _certificates(content)
        if not found:
            raise ConfigError(
                f"{file}: has no certificate as PEM text; expected some, or no such variable", variable=_FILE
            )
    if directories:
        found += _in_directories(directories.split(os.pathsep))
        if not found:
            raise ConfigError(
                f"{directories}: no file there has a certificate as PEM text; expected some, or no such variable",
                variable=_DIRECTORY,
            )
    named = [f"{name}={value}" for name, value in ((_FILE, file), (_DIRECTORY, directories)) if value]
    return Authorities(" and ".join(named), _joined(found)) if named else None


def search(bundles: Iterable[Path]) -> Authorities | None:
    """Returns the authorities of the first file that has some, or else those of certifi; None: there are none."""
    for path in [*bundles, *_of_certifi()]:
        try:
            found = list(_certificates(_read(path)))
        except OSError:
            continue
        if found:
            return Authorities(str(path), _joined(found))
    return None


# --- internal ---------------------------------------------------------------------------------------------------------


def _of_certifi() -> Iterator[Path]:
    try:
        certifi = importlib.import_module("certifi")
    except ImportError:
        return
    yield Path(certifi.where())


def _in_directories(directories: Iterable[str]) -> Iterator[bytes]:
    """Yields the certificates in all files of some directories. What has none is skipped, such as private keys."""
    left = _MAX_SIZE
    for directory in directories:
        try:
            paths = sorted(Path(directory).iterdir())
        except OSError:
            continue  # as in OpenSSL: usually a list for several distributions
        for path in paths:
            try:
                content = _read(path)
            except OSError:
                continue
            left -= len(content)
            if left < 0:
                raise ConfigError(f"{directory}: more than {_MAX_SIZE >> 20} MiB; expected less", variable=_DIRECTORY)
            yield from _certificates(content)


def _read(path: Path) -> bytes:
    """Returns the content of a file that is not larger than certificates may be. A named pipe does not block.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "is no file")
        if status.st_size > _MAX_SIZE:
            raise OSError(0, f"is larger than {_MAX_SIZE >> 20} MiB")
        return file.read(_MAX_SIZE)


def _certificates(content: bytes) -> Iterator[bytes]:
    return (each[0] for each in _CERTIFICATE.finditer(content))


def _joined(certificates: Iterable[bytes]) -> bytes:
    return b"\n".join(dict.fromkeys(certificates))
