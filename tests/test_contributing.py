"""What contributors are told is true: commits, tools, settings of editors, and files and targets that pages name."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from asport_sync import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

ROOT = Path(__file__).resolve().parents[1]
LONGEST_SUBJECT = 72  # characters
# The last commit before the check; subjects up to this one are not checked.
CHECKED_SINCE = "a90dd33d4ab14e577caed7d71c0246899d206ff2"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# --- commits ----------------------------------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    """What git prints, without the end of the line; empty where it fails."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    return done.stdout.strip() if done.returncode == 0 else ""


def too_long(subjects: str) -> list[str]:
    return [subject for subject in subjects.splitlines() if len(subject) > LONGEST_SUBJECT]


def test_subjects_of_commits_are_short() -> None:
    if git("rev-parse", "--show-toplevel") != str(ROOT):
        pytest.skip("this is not a clone, but a copy without history")
    if git("merge-base", CHECKED_SINCE, "HEAD") != git("rev-parse", CHECKED_SINCE):
        pytest.skip(f"commit {CHECKED_SINCE[:7]} is not in this clone: a shallow one, or another history")
    assert too_long(git("log", "--no-merges", "--format=%s", f"{CHECKED_SINCE}..HEAD")) == []


def test_a_long_subject_is_found() -> None:
    assert too_long(f"Short\n{'x' * 72}\n{'x' * 73}\n") == ["x" * 73]


# --- tools ------------------------------------------------------------------------------------------------------------


def hooks() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [each["repo"] for each in loaded["repos"]] == ["local"], "other repositories would be fetched"
    found: list[dict[str, Any]] = loaded["repos"][0]["hooks"]
    return found


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: str(hook["id"]))
def test_a_hook_runs_what_lint_runs(hook: dict[str, Any]) -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [line for line in commands if line.rpartition(" ")[0] == hook["entry"]]
    assert hook["language"] == "system"
    tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
    assert [each for each in PYPROJECT["dependency-groups"]["dev"] if re.match(rf"{tool}\b", str(each))]


def test_editors_and_formatters_agree() -> None:
    settings = configparser.ConfigParser()
    settings.read_string("[DEFAULT]\n" + (ROOT / ".editorconfig").read_text(encoding="utf-8"))
    c_style = yaml.safe_load((ROOT / ".clang-format").read_text(encoding="utf-8"))
    assert settings["*"].getint("max_line_length") == PYPROJECT["tool"]["ruff"]["line-length"] == c_style["ColumnLimit"]
    assert settings["*"].getint("indent_size") == c_style["IndentWidth"]


# --- pages ------------------------------------------------------------------------------------------------------------

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/development.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_and_targets_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    spans = set(re.findall(r"`([\w/.*-]+)`", text))
    files = {span for span in spans if re.search(r"/$|\.(?:py|md|[ch]|toml)$", span) and not span.startswith(".venv")}
    assert [file for file in files if not any(ROOT.glob(file) if "/" in file else ROOT.rglob(file))] == []
    known = re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE)
    targets = re.findall(r"\bmake ([a-z0-9-]+)", "\n".join(re.findall(r"```.*?```|`[^`]*`", text, re.DOTALL)))
    assert targets
    assert [target for target in targets if target not in known] == []


def test_tests_that_the_development_page_names_exist() -> None:
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    names = re.findall(r"`(test_\w+)`", text)
    assert names
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in names if f"def {name}(" not in sources] == []


def test_the_development_page_knows_every_folder_of_tests() -> None:
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert [name for name in folders if f"`tests/{name}/`" not in text] == []


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in pages if f"]({name})" not in index] == []


def test_the_version_is_the_newest_in_the_changes() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = [title for title in re.findall(r"^## (\S+)", changes, re.MULTILINE) if title != "Unreleased"]
    assert releases[0] == __version__
