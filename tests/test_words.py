"""Comments, docstrings, documentation and messages use the terms of docs/glossary.md, and plain English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import literals

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "asport_sync"

# What is not to be read anywhere -> what to write. Whole words, any case.
RETIRED = {
    r"strangers?": "unauthenticated client",
    r"weather": "transient send error",
    r"signs? of life": "keep-alive probe, answer",
    r"mend(s|ed|ing)?": "fix, repair, correct",
    r"hears? of|heard of": "is notified of",
    r"looks? on": "watches, observes",
    r"what stands": "what is open, existing connections",
    r"for nothing": "in vain, needlessly",
    r"so many more": "a number",
    r"lulls?": "pause, idle period",
    r"at the most": "at most",
    r"at the least": "at least",
    r"to be had": "available",
    r"for want of": "for lack of",
    r"anew": "again",
    r"he|him|his|himself": "they, it",
}
_RETIRED = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): term for pattern, term in RETIRED.items()}

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "examples" / "README.md"]
PAGES += [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "glossary.md"]
SOURCES = [
    *sorted(PACKAGE.rglob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((PACKAGE / "_native").rglob("*.[ch]")),
]

VENDOR = [*sorted((ROOT / "vendor").glob("*.py")), *sorted((ROOT / "vendor").glob("*.sh")), ROOT / "setup.py"]


def prose_of_page(text: str) -> Iterator[literals.Line]:
    """Lines that somebody has written: not code, and not what a program has put between its markers."""
    is_code = is_generated = False
    for number, line in enumerate(text.splitlines(), 1):
        is_code ^= line.lstrip().startswith("```")
        if line.startswith("<!-- "):
            is_generated = line.startswith("<!-- written by")
        if not is_code and not is_generated:
            yield number, re.sub(r"`[^`]*`", "", line)


def prose_of_python(text: str) -> Iterator[literals.Line]:
    """Comments and docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate(node.value.value.splitlines(), node.lineno)


def prose_of_c(text: str) -> Iterator[literals.Line]:
    """Comments. No string of ours holds what begins one."""
    for comment in re.finditer(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL):
        first = text.count("\n", 0, comment.start()) + 1
        yield from enumerate(comment[0].splitlines(), first)


def lines(path: Path) -> Iterator[literals.Line]:
    """All prose of a file, then its string literals: what users read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from prose_of_page(text)
    elif path.suffix == ".py":
        yield from prose_of_python(text)
        for first, literal in literals.of_python(text):
            yield first, " ".join(literal.split())
    elif path.suffix == ".sh":
        yield from literals.of_shell(text)
    else:
        yield from prose_of_c(text)
        yield from literals.of_c(text)


def found(path: Path) -> list[str]:
    return [
        f'{path.relative_to(ROOT)}:{number}: "{match[0]}": write {term}'
        for number, line in lines(path)
        for pattern, term in _RETIRED.items()
        if (match := pattern.search(line))
    ]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES, *VENDOR], ids=lambda path: str(path.relative_to(ROOT)))
def test_retired_words_do_not_come_back(path: Path) -> None:
    assert found(path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "First.\n\nA stranger came.\n"),
        ("module.py", '"""First.\n\nA stranger came."""\n'),
        ("module.py", "x = 1\n\n# A stranger came.\n"),
        ("module.py", 'x = "first"\n\nlog.info("%s: a stranger came", x)\n'),
        ("module.py", 'x = "first"\n\nlog.info(f"{x}: a stranger came from {x}")\n'),
        ("module.py", 'x = 1\n\ny = ("a "\n"stranger came")\n'),
        ("module.c", "int x;\n/* First.\n * A stranger came. */\n"),
        ("module.c", 'int x;\nchar quote = \'"\';\nlog("a stranger came");\n'),
        ("script.sh", 'echo "first"\n# Second.\necho "a stranger came"\n'),
    ],
)
def test_they_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setattr("tests.test_words.ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert found(tmp_path / name) == [f'{name}:3: "stranger": write unauthenticated client']
