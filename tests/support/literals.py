"""The texts of the package as they are in its source: string literals of Python, and of C."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

Line = tuple[int, str]


def of_python(text: str) -> Iterator[Line]:
    """String literals but docstrings, with their first lines; of an f-string each constant part."""
    tree = ast.parse(text)
    prose = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.lineno, node.value


def of_c(text: str) -> Iterator[Line]:
    """String literals outside of comments, neighbours not joined."""
    pattern = r'/\*.*?\*/|//[^\n]*|\'(?:[^\'\\]|\\.)\'|"((?:[^"\\\n]|\\.)*)"'
    for found in re.finditer(pattern, text, re.DOTALL):
        if found[1] is not None:
            yield text.count("\n", 0, found.start()) + 1, found[1]


def of_shell(text: str) -> Iterator[Line]:
    """Lines but comments: what a script prints is not told apart from its commands."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield number, line
