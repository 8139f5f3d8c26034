"""The manual pages, from the parser and the model: ``python -m tests.cli.manual [--write-docs]``.

asport-sync(1) has every command and option, asport-sync(5) every key. argparse's own texts are not used, because they
differ between releases of Python. Prints the pages, or writes them to docs/man, from where they are installed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from asport_sync.cli.main import _parser
from tests.config.reference import SECTIONS, rows
from tests.support.generated import Outputs, WholeFile, run

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "man"

SERVER_FILE = """server: "[::]:443"
certificate: fullchain.pem
private_key: privkey.pem
proxies:
  - users:
      00112233-4455-6677-8899-aabbccddeeff: "a long random password"
    allow_ports: {start: 30000, end: 30100}
"""
CLIENT_FILE = """server: tunnel.example.org:443
local: 127.0.0.1:8080
uuid: 00112233-4455-6677-8899-aabbccddeeff
password_file: password
"""
STATUSES = {
    "0": "ended by SIGINT or SIGTERM, or done; doctor found no problems",
    "1": "the configuration is wrong, the start failed, or no client or server answers, with a message on stderr; or "
    "doctor found problems",
    "2": "the command line is wrong; also, for doctor, the configuration",
    "130": "ended by a second SIGINT",
    "141": "the reader of the output is gone",
}


def roff(text: str) -> str:
    """Text as roff, in one line: with nothing in it that is a request."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def markdown(text: str) -> str:
    """Markdown as roff: code in bold."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    made = "".join(f"\\fB{roff_part(part)}\\fP" if index % 2 else roff_part(part) for index, part in enumerate(parts))
    return f"\\&{made}" if made.startswith((".", "'")) else made


def roff_part(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def example(text: str) -> Iterator[str]:
    """Lines that are printed as they are."""
    yield from (".PP", ".RS 4", ".nf")
    for line in text.splitlines():
        escaped = roff_part(line)
        yield f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
    yield from (".fi", ".RE")


def commands(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """The command lines without actions below them: words, what they do, and their parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, each in action.choices.items():
                deeper = list(commands(each, f"{words} {name}"))
                yield from deeper or [
                    (f"{words} {name}", each.description or f"{helps[name][:1].upper()}{helps[name][1:]}.", each)
                ]


def value_of(action: argparse.Action) -> str:
    """What stands for the value of an argument; empty if it has none."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def usage(parser: argparse.ArgumentParser) -> str:
    """The arguments in one line."""
    parts = []
    groups = {id(each): group for group in parser._mutually_exclusive_groups for each in group._group_actions}
    seen = set()
    for action in parser._actions:
        group = groups.get(id(action))
        if isinstance(action, argparse._HelpAction) or (group and id(group) in seen):
            continue
        if group:
            seen.add(id(group))
        together = group._group_actions if group else [action]
        text = " | ".join(" ".join(filter(None, [*each.option_strings[:1], value_of(each)])) for each in together)
        if action.nargs == "+":
            text += " ..."
        needed = not action.option_strings and action.nargs not in ("?", "*")
        parts.append(text if needed and not group else f"[{text}]")
    return " ".join(parts)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A paragraph for each argument."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            value = value_of(action)
            names = ", ".join(f"\\fB{roff(name)}\\fP" for name in action.option_strings)
            yield ".TP"
            yield " ".join(filter(None, [names, f"\\fI{roff(value)}\\fP" if value else ""]))
            text = (action.help or "") % vars(action)  # such as %(default)s
            yield roff(f"{text.rstrip('.')}.")


def page_of_commands() -> str:
    """The page asport-sync(1)."""
    parser = _parser()
    found = list(commands(parser, "asport-sync"))
    lines = ['.TH ASPORT\\-SYNC 1 "" "asport\\-sync" "User Commands"']
    lines += [".SH NAME", "asport\\-sync \\- reverse tunnel over QUIC", ".SH SYNOPSIS", ".nf"]
    lines += [f"\\fB{roff(words)}\\fP {roff(usage(each))}".rstrip() for words, _, each in found]
    lines += [".fi", ".SH DESCRIPTION", roff(parser.description or "")]
    lines += ["The keys of its configuration are in", ".BR asport\\-sync (5)."]
    lines += [".SH OPTIONS", *options_of_the_program(parser), ".SH COMMANDS"]
    for words, description, each in found:
        lines += [f".SS {roff(words)}", roff(description), *options(each)]
    lines += [".SH EXIT STATUS"]
    for status, meaning in STATUSES.items():
        lines += [".TP", f"\\fB{status}\\fP", roff(f"{meaning}.")]
    lines += [".SH ENVIRONMENT", ".TP", "\\fBASPORT_\\fP\\fIKEY\\fP", "Replaces a key of the configuration, see"]
    lines += [".BR asport\\-sync (5).", ".TP", "\\fBASPORT_URI\\fP"]
    lines += ["The server and the user, for client run, doctor client and expose without a URI or -c."]
    lines += [".SH SEE ALSO", ".BR asport\\-sync (5)"]
    return "\n".join(lines) + "\n"


def options_of_the_program(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of the program itself, without its commands."""
    plain = argparse.ArgumentParser(add_help=False)
    plain._actions = [each for each in parser._actions if not isinstance(each, argparse._SubParsersAction)]
    yield from options(plain)
    yield from (".TP", "\\fB\\-h\\fP, \\fB\\-\\-help\\fP", "print help and exit; also after each command.")


def page_of_keys() -> str:
    """The page asport-sync(5)."""
    lines = ['.TH ASPORT\\-SYNC 5 "" "asport\\-sync" "File Formats"']
    lines += [".SH NAME", "asport\\-sync \\- configuration of clients and servers", ".SH DESCRIPTION"]
    lines += paragraphs(
        "Files are `client.yaml` and `server.yaml`, or `.yml`, `.toml` or `.json`, in the working directory, or in "
        "`asport/` of the XDG configuration directories. A key that is not listed is an error. `asport-sync config "
        "example` prints a file with all keys.",
        "Environment variables replace keys: `ASPORT_` and the key in capitals, with `__` between a table, a name or "
        "an index and the key inside, such as `ASPORT_TUNNELS__WEB__LOCAL`. Lists and tables are JSON. A text that "
        "begins with `env:` is replaced: `env:NAME` by that variable, and `${NAME}` inside other text.",
        "A path that begins with `credential:` is a credential of systemd. Relative paths start at the directory of "
        "the file.",
    )
    lines += [".SH EXAMPLES", "A server:", *example(SERVER_FILE), ".PP", "A client:", *example(CLIENT_FILE)]
    for section in SECTIONS:
        lines.append(f".SH {roff(section.title.upper())}")
        for row in rows(section.cls):
            lines += [".TP", markdown(row.key), markdown(row.meaning)]
            default = "" if row.default == "not set" else f" Default: {row.default}."
            default = " Required." if row.default == "required" else default
            lines.append(markdown(f"Values: {row.values}.{default}"))
    lines += [".SH SEE ALSO", ".BR asport\\-sync (1)"]
    return "\n".join(lines) + "\n"


def paragraphs(*texts: str) -> Iterable[str]:
    for number, text in enumerate(texts):
        yield from [".PP"] if number else []
        yield markdown(text)


PAGES = {"asport-sync.1": page_of_commands, "asport-sync.5": page_of_keys}


OUTPUTS: Outputs = {WholeFile(FOLDER / name): page for name, page in PAGES.items()}

if __name__ == "__main__":
    run(__doc__, OUTPUTS)
