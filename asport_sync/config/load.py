"""Finds and reads configuration files, and reports all their errors at once.

Errors contain the file name as given by the caller, line and column if known, and the dotted key.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from asport_sync.config import environment
from asport_sync.config.client import ClientConfig, read_client
from asport_sync.config.credentials import open_file
from asport_sync.config.formats import FORMATS, parse
from asport_sync.config.places import Side
from asport_sync.config.positions import position_of
from asport_sync.config.reader import Source, bare
from asport_sync.config.server import ServerConfig, read_server
from asport_sync.config.uri import ServerUri
from asport_sync.errors import ConfigError, ConfigErrors

T = TypeVar("T")


def load_client(path: str | os.PathLike[str] | None = None, *, with_tunnels: bool = True) -> ClientConfig:
    """Returns the configuration of a client.

    Args:
        path: The file; its extension determines the format: .yaml, .yml, .toml or .json. If there is no such file,
            these extensions are appended in turn. None: the result of :func:`find`.
        with_tunnels: Whether it has tunnels; if not, a program adds them, to which the keys at the top level apply.

    Raises:
        ConfigErrors: One or more keys are wrong; all of them are listed.
        ConfigError: The file cannot be found, read or parsed.
    """
    return _load("client", path, functools.partial(read_client, with_tunnels=with_tunnels))


def client_of_uri(uri: ServerUri, keys: Mapping[str, object], *, with_tunnels: bool = True) -> ClientConfig:
    """Returns the configuration of a client without a file, as the commands have it.

    Environment variables set the keys that neither the URI nor ``keys`` set.

    Args:
        uri: The server and the user.
        keys: Further keys.
        with_tunnels: As for :func:`load_client`.

    Raises:
        ConfigErrors: One or more keys are wrong; all of them are listed.
        ConfigError: Nothing names the local service.
    """
    tree, source = tree_of_uri(uri, keys)
    try:
        if with_tunnels and "local" not in tree and "tunnels" not in tree:
            raise ConfigError(
                "a URI does not name the local service that becomes public: add --local, such as --local 8080, or set "
                f"{environment.PREFIX}LOCAL"
            )
        return read_client(tree, source, with_tunnels=with_tunnels)
    except ConfigError as error:
        problem = bare(error)
    finally:
        tree.clear()  # as bare() says
    raise problem


def load_server(path: str | os.PathLike[str] | None = None) -> ServerConfig:
    """Returns the configuration of a server. Argument and errors as for :func:`load_client`."""
    return _load("server", path, read_server)


def locate(side: Side, path: str | os.PathLike[str] | None = None) -> Path:
    """Returns the file that :func:`load_client` or :func:`load_server` reads.

    Args:
        side: Which of them.
        path: Their argument.

    Raises:
        ConfigError: There is none.
    """
    return find(side) if path is None else _with_extension(Path(path))


def origin(side: Side, path: str | os.PathLike[str] | None = None) -> Path | None:
    """Returns what :func:`locate` does; None if environment variables are the whole configuration.

    That is so if no path is given, there is no default file, and ``ASPORT_SERVER`` is set.

    Raises:
        ConfigError: There is none, nor in the environment. With variables that stand for no key, which may be misspelt:
            ConfigErrors.
    """
    try:
        return locate(side, path)
    except ConfigError as error:
        if path is not None or error.path is not None:
            raise
        if environment.is_given():
            return None
        if mistaken := environment.mistaken(side):
            raise ConfigErrors([error, *mistaken]) from None
        raise


def find(kind: Side) -> Path:
    """Returns the default file: the first existing ``client`` or ``server`` file, by directory and extension.

    Searches the working directory, then ``asport`` inside the XDG configuration directories (``XDG_CONFIG_HOME``, then
    those of ``XDG_CONFIG_DIRS``).

    Raises:
        ConfigError: There is none, or one of these directories cannot be entered.
    """
    directories = [Path(), *(directory / "asport" for directory in _xdg_directories())]
    for directory in directories:
        for extension in FORMATS:
            path = directory / f"{kind}{extension}"
            found = _look(path)
            if found is not None and stat.S_ISREG(found.st_mode):
                return path
    looked = ", ".join(str(directory) for directory in directories)
    raise ConfigError(f"no {kind} configuration: no {kind}{_one_of()} in any of {looked}")


def _xdg_directories() -> Iterator[Path]:
    """Yields the directories of the XDG Base Directory specification, which says to ignore relative ones."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    for directory in (home, *system.split(os.pathsep)):
        if os.path.isabs(directory):
            yield Path(directory)


def _one_of() -> str:
    return " or ".join((", ".join(list(FORMATS)[:-1]), list(FORMATS)[-1]))


def _load(side: Side, path: str | os.PathLike[str] | None, read: Callable[[Mapping[str, object], Source], T]) -> T:
    try:
        file = origin(side, path)
        return read(*(tree_of(side, file) if file else tree_of_environment(side)))
    except ConfigError as error:
        problem = bare(error)
    raise problem


def read_tree(side: Side, tree: Mapping[str, object], source: Source) -> ClientConfig | ServerConfig:
    """Returns the configuration in a tree.

    Raises:
        ConfigErrors: One or more keys are wrong; all of them are listed.
    """
    return read_client(tree, source) if side == "client" else read_server(tree, source)


def tree_of_uri(uri: ServerUri, keys: Mapping[str, object]) -> tuple[dict[str, Any], Source]:
    """Returns the tree that a URI, further keys and environment variables are, and its source.

    The latter set only what the others do not, and have the only positions.
    """
    tree: dict[str, Any] = {}
    source = Source(directory=Path.cwd())
    environment.put_variables(tree, "client", source)
    given = {**uri.options(), **keys}
    tree = {name: value for name, value in tree.items() if name != "password_file"} | given
    source.positions = {at: position for at, position in source.positions.items() if at[0] not in given}
    return tree, source


def tree_of_environment(side: Side) -> tuple[dict[str, Any], Source]:
    """Returns the tree that environment variables are, and its source. Relative paths start at the working directory.

    Variables that stand for no key are errors of the source.
    """
    tree: dict[str, Any] = {}
    source = Source("the environment", Path.cwd())
    environment.put_variables(tree, side, source)
    return tree, source


def tree_of(side: Side, file: Path) -> tuple[dict[str, Any], Source]:
    """Returns the tree of a file with what the environment replaces in it, and its source.

    Variables that are not set, or stand for no key, are errors of the source.

    Raises:
        ConfigError: The file cannot be read or parsed.
    """
    if file.suffix.lower() not in FORMATS:
        problem = f"expected a file name that ends in {_one_of()}"
        raise ConfigError(f"{problem}, not {file.suffix}" if file.suffix else problem, path=str(file))
    document = parse(read_text(file), file.suffix.lower(), str(file))
    source = Source(str(file), file.absolute().parent, document.positions, document.errors)
    tree = environment.with_values(document.tree, source)
    tree.pop("$schema", None)  # for editors
    environment.put_variables(tree, side, source)
    return tree, source


def _with_extension(path: Path) -> Path:
    """Returns the path, or if it does not exist, the first that exists with an extension appended."""
    candidates = [path, *(path.with_name(path.name + extension) for extension in FORMATS if path.name)]
    for candidate in candidates:
        if _look(candidate) is not None:
            return candidate
    tried = "" if path.suffix.lower() in FORMATS else f", nor with {_one_of()} appended"
    raise ConfigError(f"no such file{tried}", path=str(path))


def _look(path: Path) -> os.stat_result | None:
    """Returns the status of a path, or None if it does not exist.

    Not Path.exists(): for a directory that cannot be entered it raises up to Python 3.13, and returns False from 3.14
    on.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    problem = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "not a path"
    return ConfigError(problem, path=str(path))


def read_text(path: Path) -> str:
    """Returns the content of a file.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        with open_file(path) as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        wrong = f"invalid byte 0x{content[error.start]:02x}"
        hint = "it looks like UTF-16; save it as UTF-8" if utf16 else wrong
        before = content[: error.start].decode("utf-8-sig")
        line, column = (None, None) if utf16 else position_of(before, len(before))
        raise ConfigError(f"not UTF-8 text: {hint}", path=str(path), line=line, column=column) from None
