"""The permissions of a configuration's file and of the files that it names."""

from __future__ import annotations

from pathlib import Path

from asport_sync.config.client import ClientConfig
from asport_sync.config.common import HostConfig
from asport_sync.config.credentials import loose_permissions
from asport_sync.config.server import ServerConfig


def loose_files(settings: ClientConfig | ServerConfig, file: Path | None) -> list[str]:
    """Returns a warning for each file of a configuration that others may change, or may read although it has a secret.

    Args:
        settings: The configuration.
        file: The file that it is from; None: it is from a URI or the environment.
    """
    secrets, others = files_with_secrets(settings, file)
    problems = (loose_permissions(path, secret=path in secrets) for path in sorted(secrets | others))
    return [problem for problem in problems if problem is not None]


def files_with_secrets(settings: ClientConfig | ServerConfig, file: Path | None) -> tuple[set[Path], set[Path]]:
    """Returns the files that hold secrets of a configuration, and its other files. Arguments: see ``loose_files``."""
    no_file = Path()
    secrets, others = _files(settings, file or no_file)
    return secrets - {no_file}, others - {no_file}


def _files(settings: ClientConfig | ServerConfig, file: Path) -> tuple[set[Path], set[Path]]:
    if isinstance(settings, ClientConfig):
        tunnels = settings.tunnels.values()
        trusted = {path for tunnel in tunnels for path in tunnel.tls.certificates.paths}
        secrets = {tunnel.password_file or file for tunnel in tunnels}
        return secrets | _token(settings, file), {file} | trusted
    users = [user for proxy in settings.proxies for user in proxy.users]
    secrets = {user.password_file or file for user in users} | {settings.tls.private_key.path or file}
    if settings.reset_key is not None:
        secrets.add(settings.reset_key_file or file)
    return secrets | _token(settings, file), {file, settings.tls.certificate.path or file}


def _token(settings: HostConfig, file: Path) -> set[Path]:
    """Returns the file that holds the token of the status address, if it has one."""
    status = settings.status
    return set() if status is None or status.token is None else {status.token_file or file}
