"""What the documentation names exists, and its examples work."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asport_sync import Client, config
from asport_sync.cli.main import _parser
from asport_sync.host.stats import METRICS
from asport_sync.wire.dialect import Dialect
from release import check
from tests.host.test_stats import client_stats
from tests.interop.install import VERSIONS
from tests.support import literals
from tests.support.certificates import self_signed, write_private
from tests.support.service_manager import COMMAND

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))
PAGES += [ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NATIVE = ROOT / "asport_sync" / "_native"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def boundary() -> str:
    """aq_api.h without comments."""
    text = (NATIVE / "aq_api.h").read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


def test_the_readme_begins_with_what_a_bare_machine_can_do() -> None:
    """Without make, and with a Python into which pip may not install, as on Debian 12 and later."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    try_it, install = (block.splitlines() for block in blocks[:2])
    assert try_it[0].startswith("sh vendor/bootstrap.sh && make demo ")
    targets = [line.partition("&& ")[2] or line for line in try_it]
    known = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [target for target in targets if target.split()[0] != "make" or target.split()[1] not in known] == []
    made = re.fullmatch(r"python3 -m venv (\S+)", install[0])
    assert made is not None
    # Where services of the system see it, and where the tests of these have it.
    assert f"{made[1]}/bin/asport-sync" == COMMAND
    assert f"{made[1]}/bin/pip install ." in (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert install[1:3] == [f"{made[1]}/bin/pip install .", f"export PATH={made[1]}/bin:$PATH"]
    assert len(re.findall(r"\bpip install\b", text)) == len(re.findall(r"/bin/pip install\b", text)) == 1


def test_the_boundary_page_names_every_function_and_event() -> None:
    functions = re.findall(r"\b(aq_\w+)\(", boundary())
    assert len(functions) > 30
    text = page("boundary.md")
    assert [name for name in functions if name not in text] == []
    events = re.findall(r"\bAQ_EVENT_(\w+)", boundary())
    assert len(events) > 5
    assert [name for name in events if f"| {name} |" not in text] == []


# --- log lines --------------------------------------------------------------------------------------------------------

# What lines on the page have in place of what a program inserts.
INSERTED = re.compile(
    r"\d+|ADDRESS:PORT|FIRST-LAST|\b(?:this|the|server|client|"
    r"ACTION|ADDRESS|CHANGES|CODE|DATE|DIALECT|ERROR|FILE|KEYS|LOCAL|N|NAME|NETWORKS?|PORTS|RANGE|RATES|REASON|SERVER|"
    r"SIGNAL|UUID|VERSION|VISITOR)\b"
)
# Where something is inserted in the source.
ARGUMENT = re.compile(r"%(?:[srdg]|\.\df)")


def pieces() -> set[str]:
    """What the package's texts are made of: string literals, cut where something is inserted. Not lone words: keys."""
    package = ROOT / "asport_sync"
    texts = [text for file in package.rglob("*.py") for _, text in literals.of_python(file.read_text(encoding="utf-8"))]
    texts += [text for file in NATIVE.rglob("*.c") for _, text in literals.of_c(file.read_text(encoding="utf-8"))]
    return {piece for text in texts for piece in ARGUMENT.split(text) if not piece.isalnum()}


def is_made_of(text: str, known: set[str]) -> bool:
    """Whether a text is a sequence of whole pieces and insertions. The first may be cut, the last one by "..."."""
    whole, cut, _ = text.partition("...")
    reached = {0} | {length for piece in known for length in range(1, len(piece)) if piece[-length:] == whole[:length]}
    for start in range(len(whole)):
        if start in reached:
            reached |= {start + len(piece) for piece in known if piece and whole.startswith(piece, start)}
            reached |= {inserted.end() for inserted in [INSERTED.match(whole, start)] if inserted is not None}
    ends = [whole[start:] for start in reached if start < len(whole)] if cut else []
    return len(whole) in reached or any(piece.startswith(end) for end in ends for piece in known)


def documented_lines(name: str, header: str, column: int) -> list[str]:
    """The code spans in one column of the table of a page with this header row."""
    rows = page(name).partition(f"{header}\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.removeprefix("| ").split(" | ")[column])]


def test_documented_log_lines_exist() -> None:
    known = pieces()
    lines = documented_lines("logs.md", "| line | level | when |", 0)
    header = "| client | server | what to do |"
    refusals = [line for column in (0, 1) for line in documented_lines("operations.md", header, column)]
    renamed = documented_lines("logs.md", "| old | new |", 1)
    assert min(len(lines), len(refusals), len(renamed)) > 8
    parts = re.compile("(?:client|server|lifecycle|log): ")
    texts = [parts.sub("", line, count=1) for line in [*lines, *refusals, *renamed]]
    assert [text for text in texts if not is_made_of(text, known)] == []
    assert not any(is_made_of(text, known) for text in documented_lines("logs.md", "| old | new |", 0))


def test_what_the_table_of_symptoms_names_exists() -> None:
    known = pieces()
    counters = {metric.name for metric in METRICS}
    keys = set(re.findall(r"^\| `(\w+)`", page("configuration.md"), re.MULTILINE))
    spans = [
        span
        for column in range(4)
        for span in documented_lines("operations.md", "| symptom | look with | cause | remedy |", column)
    ]
    commands = [span for span in spans if span.startswith("asport-sync ")]
    assert len(commands) > 5
    for command in commands:
        if command not in ("asport-sync server check", "asport-sync client check"):
            _parser().parse_args(command.split()[1:])
    names = [span for span in spans if "_" in span]
    assert len(names) > 10
    assert [name for name in names if name not in counters | keys] == []
    words = [span for span in spans if " " in span and span not in commands and "ctl " not in span]
    assert [span for span in words if not is_made_of(span, known)] == []


def test_a_line_that_was_renamed_is_found() -> None:
    known = {"accepting clients on ", ", users: ", ": ", " is public on port "}
    assert is_made_of("accepting clients on ADDRESS:PORT, users: N", known)
    assert is_made_of("clients on ADDRESS:PORT, us...", known)
    assert not is_made_of("accepting clients at ADDRESS:PORT, users: N", known)
    assert not is_made_of("accepting clients on ADDRESS:PORT, N users", known)
    assert not is_made_of("accepting clients on ADDRESS:PORT, us", known)


def test_the_architecture_page_names_every_c_file() -> None:
    files = {path.stem for path in NATIVE.rglob("*.c")}
    assert files - set(re.findall(r"`(\w+)`", page("architecture.md"))) == set()


@pytest.mark.parametrize("name", ["security.md", "trust.md"])
def test_tests_that_a_page_names_exist(name: str) -> None:
    files: list[tuple[str, list[str]]] = []
    for each in re.findall(r"`((?:tests/)?[\w/]*test_\w+)(?:\.py|\.c)?`", page(name)):
        if each.startswith("tests/"):
            files.append((each, []))
        else:
            files[-1][1].append(each)
    assert len(files) > 7
    for path, functions in files:
        (file,) = (file for suffix in (".py", ".c") if (file := ROOT / (path + suffix)).exists())
        text = file.read_text(encoding="utf-8")
        assert [each for each in functions if f" {each}(" not in text] == [], path


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "operations.md"], ids=lambda path: path.name)
def test_configurations_in_the_documentation_are_accepted(path: Path, tmp_path: Path) -> None:
    made = self_signed(tmp_path / "made")
    for name in ("fullchain.pem", "privkey.pem"):
        source = made.certificate if name == "fullchain.pem" else made.private_key
        write_private(tmp_path / name, source.read_bytes())
    write_private(tmp_path / "alice.password", b"a password\n")
    examples = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        file = tmp_path / f"example{number}.yaml"
        file.write_text(example.replace("/etc/asport/", ""))
        if "proxies:" in example:
            assert config.load_server(file).proxies
        else:
            assert next(iter(config.load_client(file).tunnels.values())).local.port == 8080


def test_the_program_in_the_readme_is_one() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    options = program.partition("with client")[0]
    names: dict[str, object] = {}
    exec(compile(options, "README.md", "exec"), names)
    client = names["client"]
    assert isinstance(client, Client)
    assert client.config.tunnels[""].server.host == "example.org"
    compile(program, "README.md", "exec")


def programs_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)


def test_the_program_with_a_queue_before_its_handler_logs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs_of("logs.md")
    names: dict[str, Any] = {}
    logger = logging.getLogger("asport_sync")
    before = list(logger.handlers)
    try:
        exec(compile(program, "logs.md", "exec"), names)
        logger.warning("a line")
    finally:
        names["listener"].stop()
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
    assert "a line" in capsys.readouterr().err


def test_the_program_that_reads_statistics_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs_of("counters.md")
    exec(compile(program, "counters.md", "exec"), {"client": SimpleNamespace(stats=client_stats)})
    assert capsys.readouterr().out.startswith("('192.0.2.1', 443) [0.25]\n0 1\n{\"running\": true, ")


def test_the_program_against_a_bad_network_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs_of("testing.md")
    exec(compile(program, "testing.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "reset after 5 bytes"
    assert re.fullmatch(r"a client would connect to \('127.0.0.1', \d+\)", said[1])
    assert said[2] == "0 dropped so far"


# --- compatibility ----------------------------------------------------------------------------------------------------


def test_the_compatibility_page_names_what_is_required_and_tested() -> None:
    text = page("compatibility.md")
    minimum = json.loads((ROOT / "vendor" / "packages.json").read_text(encoding="utf-8"))["minimum"]
    assert f"GnuTLS {minimum['gnutls']} or later" in text
    assert f"ngtcp2 {minimum['ngtcp2']} or later" in text
    assert f"CPython from {minimum['python']} on" in text
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={minimum["python"]}"' in project
    assert f"releases {' and '.join(VERSIONS)} of the reference implementation" in text
    assert [dialect for dialect in Dialect if f"`{dialect.value}`" not in text] == []


def test_the_page_about_releases_has_every_check() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", page("releasing.md"), re.MULTILINE)
    assert [name for name in check.CHECKS if name not in rows] == []
