"""Pages are read as they are meant, and nothing on them is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.console import Command, File, PageError, Shell, matches, parts_of

PAGE = """\
# Title

```yaml
# some.yaml
key: value  # a comment
```

```console
$ first
$ second \\
>   --option
its output

$ third
```
"""


def test_files_and_commands() -> None:
    assert list(parts_of(PAGE)) == [
        File(4, "some.yaml", "# some.yaml\nkey: value  # a comment\n"),
        Command(9, "first", ""),
        Command(10, "second \\\n  --option", "its output\n"),
        Command(14, "third", ""),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\n$ ls\n```\n", "neither a file"),
        ("```python\nprint()\n```\n", "neither a file"),
        ("```yaml\nkey: value\n```\n", "a comment with its name"),
        ("```yaml\n# some.yaml, mode 0600\n```\n", "a comment with its name"),
        ("```yaml\n```\n", "a comment with its name"),
        ("```console\nls\n```\n", "commands begin"),
        ("```console\n```\n", "commands begin"),
        ("```console\n$ ls\n", "has no end"),
        ("1. One:\n   ```console\n   $ ls\n   ```\n", "at the margin"),
        ("One:\n\n    $ ls\n", "at the margin"),
        ("~~~\n$ ls\n~~~\n", "at the margin"),
    ],
)
def test_what_is_not_executed_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(PageError, match=problem):
        list(parts_of(text))


@pytest.mark.parametrize(
    ("expected", "output", "result"),
    [
        ("", "", True),
        ("", "something\n", False),
        ("something", "", False),
        ("one\ntwo", "one\ntwo\n", True),
        ("one\ntwo", "one\n", False),
        ("one", "one\ntwo\n", False),
        ("one\n\ntwo", "one\ntwo\n", False),
        ("A   B  C", "A  B     C  \n", True),
        ("A B", "A  B\n", False),
        ("one.", "oneX\n", False),
        ("...", "", True),
        ("...\nlast", "first\nlast\n", True),
        ("...\nlast", "last\nmore\n", False),
        ("from ... to", "from here to\n", True),
        ("from ... to", "from\nto\n", False),
        ("up 3 s", "up 12 s\n", True),
        ("up 3 s", "up 12 h\n", False),
    ],
)
def test_an_output_is_what_the_page_shows(expected: str, output: str, result: bool) -> None:
    assert matches(expected, output, lambda line: line.replace("3 s", "N s").replace("12 s", "N s")) is result


def test_a_shell_keeps_its_state_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    with Shell(tmp_path, os.environ) as shell:
        assert shell.run("mkdir folder && cd folder && variable=1") == (0, "")
        assert shell.run("pwd; echo $variable") == (0, f"{tmp_path}/folder\n1\n")
        assert shell.run("echo 'to stderr' >&2; false") == (1, "to stderr\n")
        assert shell.run("echo $?") == (0, "1\n")
        assert shell.run("cat; printf 'no end of line'") == (0, "no end of line")  # nothing is typed into it
        assert shell.run("sleep 1000 & echo $!")[0] == 0
        _, pid = shell.run("jobs -p")
    stat = Path(f"/proc/{int(pid)}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # not reaped in some containers
