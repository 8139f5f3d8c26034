"""Maps the command line to function calls, and errors to exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

# Nothing else of this package, which takes ten times as long as --help itself.
from asport_sync.cli import output
from asport_sync.errors import AsportError
from asport_sync.hidden import without_passwords
from asport_sync.runtime.log import FORMS, LEVELS

if TYPE_CHECKING:
    from uuid import UUID

    from _typeshed import SupportsWrite

_FAILED = 1
_GRACE_PERIOD = 500  # grace period in milliseconds for a full pipe to accept the last line
_INTERRUPTED = 130  # 128 + SIGINT, as in shells
_NOT_READ = 141  # 128 + SIGPIPE, as in shells


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None: those of the process.

    Returns:
        The exit status. A wrong command line and ``--help`` raise SystemExit, as argparse does.
    """
    try:
        arguments = _arguments(argv)
        gc.collect()  # frees the parser, which has reference cycles: the command may run for months
        status: int = arguments.call(arguments)
        return status
    except output.NotRead:
        return _NOT_READ
    except (AsportError, OSError) as problem:
        _complain(f"{_plain(problem)}{_where_refused(problem)}")
        return _FAILED
    except KeyboardInterrupt:
        # A second Ctrl-C: no traceback is wanted.
        return _INTERRUPTED


def _complain(problem: str) -> None:
    """Prints on stderr why the command ends, unless that could block it from ending."""
    with contextlib.suppress(OSError, ValueError):  # no descriptor, so it is no pipe
        poll = select.poll()
        poll.register(sys.stderr, select.POLLOUT)
        if not poll.poll(_GRACE_PERIOD):
            return
    output.complain(problem)


def _plain(problem: Exception) -> str:
    """Returns what is wrong: for errors of the system the file, if it is about one, and the cause, without a number."""
    if isinstance(problem, AsportError) or not isinstance(problem, OSError) or problem.strerror is None:
        return str(problem)
    file = problem.filename if problem.filename2 is None else problem.filename2
    return problem.strerror if file is None else f"{os.fsdecode(file)}: {problem.strerror}"


def _where_refused(problem: BaseException) -> str:
    """Returns the call that the system refused unexpectedly, as a seccomp filter may; else an empty text."""
    if not isinstance(problem, OSError) or problem.errno not in (errno.EPERM, errno.ENOSYS) or problem.filename:
        return ""
    import traceback  # not at the top: it takes a megabyte

    frames = traceback.extract_tb(problem.__traceback__)
    return f" (refused by the system: {frames[-1].line})" if frames else ""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        arguments.call = _command("commands", "version")
    elif arguments.call is None:
        parser.error("the following arguments are required: COMMAND")
    elif arguments.more:
        parser.error("-v is for --version here, and otherwise follows the command")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(  # the subparsers have the same class
        prog="asport-sync",
        description="A reverse tunnel over QUIC: makes a local service reachable on a server's port.",
    )
    parser.set_defaults(call=None)
    parser.add_argument("--version", action="store_true", help="print the versions of all components and exit")
    parser.add_argument(
        "-v",
        "--verbose",
        dest="more",
        action="store_true",
        help="with --version: print where the certificate authorities are from that a client trusts by default, too",
    )
    sides = parser.add_subparsers(metavar="COMMAND")  # required unless there is --version
    for side, what in (("client", "make a local service public"), ("server", "open public ports for clients")):
        actions = sides.add_parser(side, help=what, description=f"The {side}: {what}.").add_subparsers(
            metavar="ACTION", required=True
        )
        _run(actions.add_parser("run", help="run until SIGINT or SIGTERM; SIGHUP reloads the configuration"), side)
        _check(actions.add_parser("check", help="validate the configuration: print ok, or all errors"), side)
    _init(sides.add_parser("init", help="write the files of a new server, and print the URI of its first client"))
    _user(sides.add_parser("user", help="add, list and remove the users of a server, or change their passwords"))
    _expose(sides.add_parser("expose", help="make local services public until Ctrl-C"))
    _doctor(sides.add_parser("doctor", help="find out why a client or a server does not work"))
    _config(sides.add_parser("config", help="explain, begin or convert a configuration"))
    _pin(sides.add_parser("pin", help="print the pin of a certificate"))
    _systemd(sides.add_parser("systemd", help="run a client or a server as a service of systemd"))
    completion = sides.add_parser(
        "completion",
        help="print a script that lets a shell complete command lines",
        description="Prints a script that lets a shell complete command lines. It needs shtab: "
        "pip install 'asport-sync[completion]'",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose script")
    completion.set_defaults(call=_completion)
    identifier = sides.add_parser("uuid", help="print a new UUID for a user")
    identifier.set_defaults(call=_command("commands", "uuid"))
    _of_running(sides)
    return parser


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Prints the help on stdout. argparse's own method does not report write errors."""
        assert file is None
        output.say(self.format_help().removesuffix("\n"))

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Prints usage and errors, without passwords of URIs, which are arguments. Ignores write errors.

        argparse's own method raises them on older Pythons. The exit status must depend on the error in the command
        line, not on whether it can be printed.
        """
        with contextlib.suppress(AttributeError, OSError):
            super()._print_message(without_passwords(message), file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the command with that status, whether or not the message can be written."""
        try:
            super().exit(status, message)
        finally:
            output.flush_errors()


def _command(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """Returns a command, whose module is not imported before it runs: clients and servers may run for months."""
    return functools.partial(_call, module, function)


def _call(module: str, function: str, arguments: argparse.Namespace) -> int:
    call: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"asport_sync.cli.{module}"), function)
    return call(arguments)


def _run(parser: argparse.ArgumentParser, side: str) -> None:
    _source(parser, side)
    _log_level(parser)
    parser.add_argument("--log-format", choices=FORMS, help="overrides log_format of the configuration")
    parser.set_defaults(call=_command("commands", "run"))


def _log_level(parser: argparse.ArgumentParser) -> None:
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "--log-level",
        choices=list(LEVELS),
        help="overrides log_level of the configuration",
    )
    level.add_argument("-v", "--verbose", action="count", default=0, help="log level info; if given twice, debug")


def _expose(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Makes local services public and prints their addresses, until SIGINT or SIGTERM. The server is that of URI, "
        "which - reads from standard input; or that of FILE; or that of the URI in $ASPORT_URI. Other users of this "
        "machine can see a URI that is an argument."
    )
    parser.add_argument(
        "target",
        metavar="TARGET|URI",
        nargs="+",
        help="a port, host:port or unix:PATH; udp:PORT or udp:host:port; or dir:PATH, whose files anyone can read "
        "then, except those that are hidden or that others on this machine may not read",
    )
    _file(parser, "client")
    parser.add_argument("--port", metavar="PORT|FIRST-LAST", type=_ports, help="public ports to ask for; default: any")
    parser.add_argument("--network", choices=["tcp", "udp", "both"], help="of targets without udp:; default: tcp")
    parser.add_argument("--json", action="store_true", help="print a JSON object about each target")
    _trust_on_first_use(parser)
    _log_level(parser)
    parser.set_defaults(call=functools.partial(_call_expose, parser))


def _call_expose(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from asport_sync.cli import expose  # not at the top: clients and servers may run for months without it

    expose.sort_arguments(parser, arguments)
    return expose.run(arguments)


def _uuid(text: str) -> UUID:
    from uuid import UUID  # not at the top: one command needs it

    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid UUID value: {text!r}") from None


def _ports(text: str) -> tuple[int, int]:
    """Returns a range of ports. The configuration's own check follows."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise argparse.ArgumentTypeError("expected a port, or two with a hyphen between them")
    return int(first), int(last or first)


def _source(parser: argparse.ArgumentParser, side: str) -> None:
    """Adds the arguments that say what is run or checked: a configuration, for a client also a URI."""
    source = _file(parser, side)
    if side == "server":
        return
    source.add_argument(
        "uri",
        metavar="URI",
        nargs="?",
        help="instead of a configuration: asport://UUID:PASSWORD@HOST:PORT?pin=..., as init prints it; -: the first "
        "line of standard input; default: $ASPORT_URI. Other users of this machine can see a URI that is an argument",
    )
    parser.add_argument("--local", metavar="ADDRESS", help="with a URI: the local service, as in the key local")
    _trust_on_first_use(parser)


def _trust_on_first_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-on-first-use",
        action="store_true",
        help="with a URI without pin: accept any key of a server that is new, and from then on only that key",
    )


def _check(parser: argparse.ArgumentParser, side: str) -> None:
    _source(parser, side)
    parser.set_defaults(call=_command("commands", "check"))


def _pin(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints the pin of a certificate file, or of the certificate that a server's configuration names."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("certificate", metavar="CERTIFICATE", nargs="?", help="certificate file in PEM or DER")
    source.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="server configuration; default: the file that server run would use",
    )
    parser.set_defaults(call=_command("commands", "pin"))


def _config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def added(name: str, text: str, description: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=description)
        action.set_defaults(call=_command("configuration", name))
        return action

    def with_side(action: argparse.ArgumentParser) -> argparse.ArgumentParser:
        action.add_argument("side", choices=("client", "server"), help="whose configuration")
        return action

    show = with_side(
        added(
            "show",
            "print every key with its effective value and its origin",
            "Prints every key with its effective value and its origin: a line of a file, an environment variable, a "
            "credential of systemd, or the default. Passwords, tokens and keys are printed as ***.",
        )
    )
    show.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration; default: what client run or server run would use",
    )
    show.add_argument("--json", action="store_true", help="as JSON, with the origins in parts")
    schema = with_side(
        added(
            "schema",
            "print the JSON Schema of configuration files, for editors",
            "Prints the JSON Schema of configuration files. Editors check and complete with it, if the file begins "
            "with a line that names it: # yaml-language-server: $schema=FILE in YAML, #:schema FILE in TOML, or a key "
            "$schema in JSON.",
        )
    )
    schema.add_argument("-o", "--output", metavar="FILE", help="write it into this file, such as client.schema.json")
    example = with_side(
        added(
            "example",
            "print a configuration with every key and its description",
            "Prints a configuration to begin with. Every key is there with its description; those that are not "
            "required are comments. UUID and password are random.",
        )
    )
    _new_file(example)
    convert = added(
        "convert",
        "print what a configuration of frp, rathole or chisel is here",
        "Converts frpc.toml, frps.toml, the TOML file of a rathole client or server, or a command line of chisel. What "
        "has no counterpart is listed in comments, and on stderr.",
    )
    _new_file(convert)
    convert.add_argument("--uuid", type=_uuid, help="the user's UUID, the same for both sides; default: random")
    convert.add_argument("program", choices=("frp", "rathole", "chisel"), help="whose configuration")
    convert.add_argument(
        "input",
        metavar="FILE|ARGUMENTS",
        nargs="+",
        help='the file; of chisel the command line, after -- or as one word, such as "client HOST R:2222:localhost:22"',
    )


def _new_file(action: argparse.ArgumentParser) -> None:
    """Adds the options of commands that make a configuration."""
    action.add_argument("--format", choices=("yaml", "toml", "json"), default="yaml", help="default: yaml")
    action.add_argument("-o", "--output", metavar="FILE", help="write it into this new file, readable by you only")


def _completion(arguments: argparse.Namespace) -> int:
    from asport_sync.cli import completion  # not at the top: clients and servers may run for months without it

    output.say(completion.script(_parser(), arguments.shell))
    return 0


def _init(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes server.yaml, client.yaml, certificate.pem and private_key.pem, which only their owner can read, and "
        "prints the URI of a client. Nothing that exists is overwritten."
    )
    parser.add_argument("host", metavar="HOST", help="the name or IP address by which clients reach the server")
    parser.add_argument("--port", type=int, default=443, help="the server's UDP port; default: %(default)s")
    parser.add_argument(
        "--directory", metavar="DIR", default=".", help="where to write; default: the working directory"
    )
    parser.add_argument("--user", metavar="NAME", default="first", help="the first user's name; default: %(default)s")
    parser.add_argument(
        "--days", type=int, default=3650, help="how long the certificate is valid; default: %(default)s"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--qr", action="store_true", help="print the URI as a QR code, too")
    shown.add_argument("--json", action="store_true", help="print URI, pin and files as JSON")
    parser.set_defaults(call=_command("trust", "init"))


def _user(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def added(name: str, call: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"The users of a server's configuration: {text}.")
        _file(action, "server")
        action.set_defaults(call=_command("trust", call))
        return action

    def changes(action: argparse.ArgumentParser) -> argparse.ArgumentParser:
        action.add_argument("--no-reload", action="store_true", help="do not have a running server reload the file")
        return action

    def prints_uri(action: argparse.ArgumentParser) -> None:
        action.add_argument(
            "--host",
            metavar="HOST[:PORT]",
            help="the address in the URI; default: the name in the certificate, and the port of the configuration",
        )
        shown = action.add_mutually_exclusive_group()
        shown.add_argument("--qr", action="store_true", help="print the URI as a QR code, too")
        shown.add_argument("--json", action="store_true", help="print URI, UUID and password as JSON")

    add = changes(added("add", "add_user", "add one with a random UUID and password, and print the URI for clients"))
    add.add_argument("name", metavar="NAME", help="1 to 64 letters, digits, -, _ and .")
    place = add.add_mutually_exclusive_group()
    place.add_argument("--entry", metavar="N", type=int, default=0, help="index in proxies; default: the first")
    place.add_argument(
        "--ports",
        metavar="PORT|FIRST-LAST",
        type=_ports,
        help="public ports of this user: makes a new entry of proxies, whose other keys have their defaults",
    )
    prints_uri(add)
    listing = added("list", "list_users", "print them, without passwords")
    listing.add_argument("--json", action="store_true", help="as JSON")
    remove = changes(added("remove", "remove_user", "remove one"))
    remove.add_argument("user", metavar="NAME|UUID", help="whom to remove")
    rotate = changes(added("rotate", "rotate_password", "give one a new password, and print the URI for clients"))
    rotate.add_argument("user", metavar="NAME|UUID", help="whose password is replaced")
    prints_uri(rotate)


def _systemd(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    install = actions.add_parser(
        "install",
        help="write a unit file",
        description="Writes the unit file of a service that runs a client or a server, and says how to start it.",
    )
    _install(install)


def _install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("side", choices=("client", "server"), help="what the service runs")
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration; default: the file that client run or server run would use",
    )
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--user", action="store_true", help="for your own service manager instead of the system's")
    whose.add_argument(
        "--account",
        metavar="NAME",
        help="run as this existing account, which must be able to read the files; default: an account that systemd "
        "makes up, with copies of the files",
    )
    parser.add_argument("--command", metavar="FILE", help="the installed asport-sync; default: this one")
    result = parser.add_mutually_exclusive_group()
    result.add_argument("--print", action="store_true", help="print the unit file instead of writing it")
    result.add_argument("--force", action="store_true", help="overwrite an existing unit file")
    parser.set_defaults(call=_command("commands", "install_unit"))


def _doctor(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="SIDE", required=True)
    for side, what in (
        ("client", "checks the way from the local service to the public port, through the server"),
        ("server", "checks what a server on this machine needs, running or not"),
    ):
        action = actions.add_parser(
            side,
            help=what,
            description=f"Prints findings and what to do about them: {what}. Exit status: 0 without problems, 1 with "
            "some, 2 if the configuration is not usable.",
        )
        if side == "client":
            action.add_argument(
                "-c",
                "--config",
                metavar="FILE|URI",
                help="configuration; or the URI of a server, or - to read one from standard input (other users can see "
                "one on the command line); default: the URI in ASPORT_URI, or the file that client run would use",
            )
            action.add_argument(
                "--nat", action="store_true", help="measure how long bindings of a NAT last, which may take minutes"
            )
        else:
            action.add_argument(
                "-c", "--config", metavar="FILE", help="configuration; default: the file that server run would use"
            )
        action.add_argument("--json", action="store_true", help="all findings as one JSON object, at the end")
        action.set_defaults(call=_command("doctor", "run"), side=side)


def _of_running(commands_: argparse._SubParsersAction[_Parser]) -> None:
    """Adds the commands for running clients and servers."""

    def added(name: str, text: str, function: str = "") -> argparse.ArgumentParser:
        parser = commands_.add_parser(name, help=text, description=f"Running clients and servers: {text}.")
        parser.set_defaults(call=_command("running", function or name))
        return parser

    def with_socket(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument(
            "--socket",
            metavar="PATH",
            help="control socket, or client or server; default: the only one in the runtime directories",
        )
        return parser

    status = with_socket(added("status", "print tunnels, traffic, round-trip times and drops"))
    status.add_argument("--json", action="store_true", help="as JSON, which has more")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    added("list", "print one line for each client and server", "list_running")
    with_socket(added("reload", "read the configuration again and apply what has changed"))
    with_socket(added("drain", "accept nothing new; what is open goes on"))
    disconnect = with_socket(
        added("disconnect", "close the QUIC connections of a tunnel or user; it may connect again")
    )
    disconnect.add_argument(
        "name", metavar="USER|NAME", help="the user's UUID or name on a server, the tunnel's name on a client"
    )
    level = with_socket(added("log-level", "print or set the log level, until the next start", "log_level"))
    level.add_argument("level", metavar="LEVEL", nargs="?", choices=list(LEVELS), help=", ".join(LEVELS))


def _file(parser: argparse.ArgumentParser, side: str) -> argparse._MutuallyExclusiveGroup:
    """Adds the argument that names a configuration; returns the group of those that take its place."""
    parser.set_defaults(side=side)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"configuration; default: {side}.yaml, .yml, .toml or .json in the working directory, or in asport/ of "
        "the XDG configuration directories",
    )
    return source
