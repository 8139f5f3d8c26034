"""YAML, TOML and JSON: what is read, what is refused, and in which position."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asport_sync.config.bad_value import KeyPath
from asport_sync.config.formats import FORMATS, Document, parse
from asport_sync.config.positions import Position
from asport_sync.errors import ConfigError

from .samples import UUID, WRITERS


def read(suffix: str, text: str) -> Document:
    return parse(text, suffix, "file" + suffix)


def refusal(suffix: str, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(suffix, text)
    assert caught.value.path == "file" + suffix
    return caught.value


# --- what can't be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(FORMATS))
@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_an_empty_file(suffix: str, text: str) -> None:
    assert str(refusal(suffix, text)) == f"file{suffix}: the file is empty"


@pytest.mark.parametrize(
    ("suffix", "text", "found"),
    [
        (".yaml", "# nothing\n", "nothing but comments"),
        (".yaml", "- a\n", "a list"),
        (".yml", "text", "text"),
        (".yaml", "1.5", "a number with a fraction"),
        (".json", "[]", "a list"),
        (".json", "true", "true or false"),
        (".json", "null", "nothing but comments"),
        (".json", '"x"', "text"),
    ],
)
def test_the_top_level_must_be_a_table(suffix: str, text: str, found: str) -> None:
    assert refusal(suffix, text).problem == f"expected keys and values at the top level, not {found}"


@pytest.mark.parametrize(
    ("suffix", "text", "line", "problem"),
    [
        (".yaml", "a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML: expected ',' or ']'"),
        (".yaml", "a: 1\n\tb: 2\n", 2, "not valid YAML: found character"),
        (".yaml", "a: 'x\n", 2, "not valid YAML: found unexpected end of stream"),
        (".yaml", "a: 1\n---\nb: 2\n", 2, "not valid YAML: but found another document"),
        (".yaml", "a: 1\nb: \x07\n", 2, "not valid YAML: the character U+0007 is not allowed"),
        (".yaml", 'a: 1\nb: "\\UFFFFFFFF"\n', None, "not valid YAML: an escape or number is out of range"),
        (
            ".yaml",
            "a: 1\nb: !!python/object:os.system x\n",
            2,
            "not valid YAML: only the standard YAML tags are supported",
        ),
        (".yaml", "a: !!set {x}\n", 1, "not valid YAML: only the standard YAML tags"),
        (".yaml", "a: !!binary aGk=\n", 1, "not valid YAML: only the standard YAML tags"),
        (".yaml", "a: 1\n? [b, c]\n: 2\n", 2, "not valid YAML: a list or a table cannot be a key"),
        (".yaml", "a: 1\nb: 0123\n", 2, "not valid YAML: a number in an unusual form"),
        (".yaml", "b: 0x10\n", 1, "not valid YAML: a number in an unusual form"),
        (".yaml", "b: +1\n", 1, "not valid YAML: a number in an unusual form"),
        (".yaml", "b: !!int x\n", 1, "not valid YAML: a number in an unusual form"),
        (".yaml", "b: !!bool maybe\n", 1, "not valid YAML: a number in an unusual form"),
        (".yaml", "b: " + "9" * 5000, 1, "not valid YAML: a number in an unusual form"),
        (".yaml", "a: &x [*x]\n", None, "not usable YAML: nested too deeply"),
        (".yaml", "a: " + "[" * 5000, None, "not usable YAML: nested too deeply"),
        (".toml", "a = 1\nb = \n", 2, "not valid TOML: invalid value"),
        (".toml", "a = 1\na = 2\n", 2, "not valid TOML: cannot overwrite a value"),
        (".toml", "a = 1\n\n[b", 3, "not valid TOML: expected ']' at the end of a table declaration"),
        (".toml", "a = 1\nb", 2, "not valid TOML: expected '=' after a key"),
        (".toml", "a = " + "9" * 5000, None, "not valid TOML: a number or date is out of range"),
        (".toml", "a = " + "[" * 5000, None, "not usable TOML: nested too deeply"),
        # Python 3.13 and later point at the comma, those before at what follows it.
        (".json", '{"a": 1,\n "b": 2,\n}', 2 if sys.version_info >= (3, 13) else 3, "not valid JSON: "),
        (".json", '{"a": 1\n "b": 2}', 2, "not valid JSON: expecting ',' delimiter"),
        (".json", '{"a": 1} x', 1, "not valid JSON: extra data"),
        (".json", '{"a": NaN}', None, "not valid JSON: NaN is not a valid JSON number"),
        (".json", '{"a": -Infinity}', None, "not valid JSON: -Infinity is not a valid JSON number"),
        (".json", '{"a": ' + "9" * 5000 + "}", None, "not valid JSON: a number has too many digits"),
        (".json", '{"a": ' + "[" * 100_000, None, "not usable JSON: nested too deeply"),
    ],
)
def test_syntax_errors(suffix: str, text: str, line: int | None, problem: str) -> None:
    error = refusal(suffix, text)
    assert error.problem.startswith(problem)
    assert error.line == line


def test_aliases_cannot_blow_up_a_file() -> None:
    names = "abcdefghi"
    text = "".join(f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in itertools.pairwise(names))
    assert "values after alias expansion" in refusal(".yaml", "a: &a [x]\n" + text).problem


def test_aliases_are_followed() -> None:
    assert read(".yaml", "a: &x [1, 2]\nb: *x\n").tree == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "password: *hunter2\n"),
        (".yaml", "password: !hunter2 x\n"),
        (".yaml", "password: !hunter2!x y\n"),
        (".yaml", "password: &hunter2 a\nb: &hunter2 c\n"),
        (".yaml", "password: @hunter2\n"),
        (".yaml", "password: {hunter2\n"),
        (".yaml", "password: 'hunter2' x\n"),
        (".yaml", "%hunter2 x\n--- {}\n%hunter2"),
        (".toml", "password = hunter2\n"),
        (".toml", "password = 'hunter2\n"),
        (".toml", 'password = "hunter2" x\n'),
        (".json", '{"password": hunter2}'),
        (".json", '{"password": "hunter2}'),
    ],
)
def test_syntax_errors_do_not_quote_the_file(suffix: str, text: str) -> None:
    assert "hunter2" not in str(refusal(suffix, text))


# --- YAML as the reference reads it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("22:22", "22:22"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1e3", 1000.0),
        (".inf", float("inf")),
        ("-.5", -0.5),
        ("-5", -5),
        ("~", None),
        ("", None),
        ("null", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("=", "="),
        ("|\n  a\n  b", "a\nb\n"),
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    found = read(".yaml", f"a: {text}\n").tree["a"]
    assert (found, type(found)) == (value, type(value))


def test_yaml_keys_are_text_as_written() -> None:
    digits = "0" * 32
    assert read(".yaml", f"{digits}: a\ntrue: b\n~: c\n1.50: d\n<<: e\n").tree == {
        digits: "a",
        "true": "b",
        "~": "c",
        "1.50": "d",
        "<<": "e",
    }


# --- keys given twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "a:\n  b: 1\n  c: 2\n  b: 3\nd: 1\nd: 2\n"),
        (".json", '{"a": {\n"b": 1,\n"c": 2, \n "\\u0062": 3},\n"d": 1,\n"d": 2}'),
    ],
)
def test_keys_given_twice(suffix: str, text: str) -> None:
    errors = read(suffix, text).errors
    assert [(error.key, error.line, error.problem) for error in errors] == [
        ("a.b", 4, "given twice"),
        ("d", 6, "given twice"),
    ]


def test_a_table_given_twice_is_one_error() -> None:
    errors = read(".json", '{"a": {"b": 1},\n "a": {"b": 1}}').errors
    assert [(error.key, error.line) for error in errors] == [("a", 2)]


# --- positions -------------------------------------------------------------------------------------------------------

YAML = f"""# a comment
server: "[::]:443"

proxies:
- users:
    {UUID}: one
  allow_ports: [1,
    2]
- users: {{
    x: y}}
security:
  tls: {{alpn: [h3,
    asport]}}
"""
# With every key on the line it has in the YAML.
JSON = f"""{{
  "server": "[::]:443",

  "proxies": [
  {{"users": {{
      "{UUID}": "one"}},
   "allow_ports": [1,
      2]}},
  {{"users":
      {{"x": "}}],:\\"\\\\"}}}}],
  "security": {{
   "tls": {{"alpn": ["h3",
        "asport"]}}
}}}}
"""
TOML = f'''# a comment = [
server = "[::]:443" # {{
motd = """
not_a_key = 1
[not.a.table]
""\\"""" # still no key
raw = \'\'\'
also = "not a key\'\'\'
when = 1979-05-27 07:32:00.5Z
"quoted = key" . \'and.literal\'.bare = [ # a comment
  1.5,
  [2, "]"],
  {{x = 1, y.z = 2}},
]
[[proxies]]
users.{UUID} = "one"
[[proxies]]
[proxies.users]
"x\\u0079" = \'"\'
[proxies.deeper]
[[proxies.deeper.array]]
a = -inf
[[proxies.deeper.array]]
a = 0xff
[ security . tls ]
alpn = ["h3",
  "asport"]
'''


YAML_POSITIONS: dict[KeyPath, Position] = {
    ("server",): Position(2, 1),
    ("proxies",): Position(4, 1),
    ("proxies", 0): Position(5, 3),
    ("proxies", 0, "users"): Position(5, 3),
    ("proxies", 0, "users", UUID): Position(6, 5),
    ("proxies", 0, "allow_ports"): Position(7, 3),
    ("proxies", 0, "allow_ports", 0): Position(7, 17),
    ("proxies", 0, "allow_ports", 1): Position(8, 5),
    ("proxies", 1): Position(9, 3),
    ("proxies", 1, "users"): Position(9, 3),
    ("proxies", 1, "users", "x"): Position(10, 5),
    ("security",): Position(11, 1),
    ("security", "tls"): Position(12, 3),
    ("security", "tls", "alpn"): Position(12, 9),
    ("security", "tls", "alpn", 0): Position(12, 16),
    ("security", "tls", "alpn", 1): Position(13, 5),
}
JSON_POSITIONS: dict[KeyPath, Position] = {
    ("server",): Position(2, 3),
    ("proxies",): Position(4, 3),
    ("proxies", 0): Position(5, 3),
    ("proxies", 0, "users"): Position(5, 4),
    ("proxies", 0, "users", UUID): Position(6, 7),
    ("proxies", 0, "allow_ports"): Position(7, 4),
    ("proxies", 0, "allow_ports", 0): Position(7, 20),
    ("proxies", 0, "allow_ports", 1): Position(8, 7),
    ("proxies", 1): Position(9, 3),
    ("proxies", 1, "users"): Position(9, 4),
    ("proxies", 1, "users", "x"): Position(10, 8),
    ("security",): Position(11, 3),
    ("security", "tls"): Position(12, 4),
    ("security", "tls", "alpn"): Position(12, 12),
    ("security", "tls", "alpn", 0): Position(12, 21),
    ("security", "tls", "alpn", 1): Position(13, 9),
}
TOML_POSITIONS: dict[KeyPath, Position] = {
    ("server",): Position(2, 1),
    ("motd",): Position(3, 1),
    ("raw",): Position(7, 1),
    ("when",): Position(9, 1),
    ("quoted = key",): Position(10, 1),
    ("quoted = key", "and.literal"): Position(10, 1),
    ("quoted = key", "and.literal", "bare"): Position(10, 1),
    ("quoted = key", "and.literal", "bare", 0): Position(11, 3),
    ("quoted = key", "and.literal", "bare", 1): Position(12, 3),
    ("quoted = key", "and.literal", "bare", 1, 0): Position(12, 4),
    ("quoted = key", "and.literal", "bare", 1, 1): Position(12, 7),
    ("quoted = key", "and.literal", "bare", 2): Position(13, 3),
    ("quoted = key", "and.literal", "bare", 2, "x"): Position(13, 4),
    ("quoted = key", "and.literal", "bare", 2, "y"): Position(13, 11),
    ("quoted = key", "and.literal", "bare", 2, "y", "z"): Position(13, 11),
    ("proxies",): Position(15, 1),
    ("proxies", 0): Position(15, 1),
    ("proxies", 0, "users"): Position(16, 1),
    ("proxies", 0, "users", UUID): Position(16, 1),
    ("proxies", 1): Position(17, 1),
    ("proxies", 1, "users"): Position(18, 1),
    ("proxies", 1, "users", "xy"): Position(19, 1),
    ("proxies", 1, "deeper"): Position(20, 1),
    ("proxies", 1, "deeper", "array"): Position(21, 1),
    ("proxies", 1, "deeper", "array", 0): Position(21, 1),
    ("proxies", 1, "deeper", "array", 0, "a"): Position(22, 1),
    ("proxies", 1, "deeper", "array", 1): Position(23, 1),
    ("proxies", 1, "deeper", "array", 1, "a"): Position(24, 1),
    ("security",): Position(25, 1),
    ("security", "tls"): Position(25, 1),
    ("security", "tls", "alpn"): Position(26, 1),
    ("security", "tls", "alpn", 0): Position(26, 9),
    ("security", "tls", "alpn", 1): Position(27, 3),
}


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [(".yaml", YAML, YAML_POSITIONS), (".json", JSON, JSON_POSITIONS), (".toml", TOML, TOML_POSITIONS)],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_positions(suffix: str, text: str, expected: dict[KeyPath, Position], newline: str) -> None:
    document = read(suffix, text.replace("\n", newline))
    assert {at: position for at, position in document.positions.items() if at} == expected
    assert paths(document.tree) == set(expected)


def paths(value: object, at: KeyPath = ()) -> set[KeyPath]:
    """The way to every key and element of a tree."""
    found: set[KeyPath] = {at} if at else set()
    if isinstance(value, Mapping):
        inside: Any = value.items()
    else:
        inside = enumerate(value) if isinstance(value, list) else ()
    for part, each in inside:
        found |= paths(each, (*at, part))
    return found


printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Co", "Zl", "Zp")), max_size=8)
trees = st.dictionaries(
    printable,
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63) | printable,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(printable, inner, max_size=4),
        max_leaves=12,
    ),
    min_size=1,
)


@pytest.mark.parametrize("suffix", list(WRITERS))
@given(tree=trees)
def test_every_key_has_its_position(suffix: str, tree: dict[str, Any]) -> None:
    text = "\n\n" + WRITERS[suffix](tree)
    document = read(suffix, text)
    assert document.tree == tree
    assert document.errors == []
    found = {at: position for at, position in document.positions.items() if at}
    assert found.keys() == paths(tree)
    rows = text.split("\n")
    assert all(rows[position.line - 1][position.column - 1 :].strip() for position in found.values())
    if suffix == ".toml":  # one key of the top level per line
        assert [found[(name,)] for name in tree] == [Position(3 + index, 1) for index in range(len(tree))]


@given(st.sampled_from(list(FORMATS)), st.text(max_size=40) | st.text("{}[]:,=\"'.#- \n!&*|>%@\\0ax", max_size=60))
def test_any_text_is_read_or_refused(suffix: str, text: str) -> None:
    errors, in_tree, known = read_or_errors(suffix, text)
    assert in_tree <= known
    for error in errors:
        assert error.path == "file" + suffix
        assert error.line is None or 1 <= error.line <= len(text) + 1


def read_or_errors(suffix: str, text: str) -> tuple[list[ConfigError], set[KeyPath], set[KeyPath]]:
    try:
        document = read(suffix, text)
    except ConfigError as error:
        return [error], set(), set()
    return document.errors, paths(document.tree), set(document.positions)
