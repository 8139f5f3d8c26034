"""Examples are accepted, and so is each key in them that is a comment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from asport_sync.config import WITHOUT_EFFECT, Side, load_client, load_server
from asport_sync.config.example import SCHEMA, example
from asport_sync.config.formats import parse
from asport_sync.config.structure import table_of
from asport_sync.config.writing import Format, Group, Note, Pair, written

from .samples import KEY, PEM, write
from .test_schema import problems

SIDES: tuple[Side, ...] = ("client", "server")
FORMATS: tuple[Format, ...] = get_args(Format)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the files that examples name."""
    for name, text in {"fullchain.pem": PEM, "privkey.pem": KEY, "password": "x\n", "reset.key": "y" * 32}.items():
        write(tmp_path, name, text)
    return tmp_path


def load(directory: Path, side: Side, form: Format, text: str) -> Any:
    path = write(directory, f"{side}.{form}", text)
    assert not problems(side, parse(text, path.suffix, path.name).tree)
    return load_client(path) if side == "client" else load_server(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("side", SIDES)
def test_examples_are_accepted(directory: Path, side: Side, form: Format) -> None:
    text = example(side, form)
    first = {
        "yaml": f"# yaml-language-server: $schema={SCHEMA[side]}",
        "toml": f"#:schema {SCHEMA[side]}",
        "json": "{",
    }
    assert text.splitlines()[0] == first[form]
    assert max(map(len, text.splitlines())) <= 120
    config = load(directory, side, form, text)
    other = load(directory, side, form, example(side, form))
    assert config != other  # the UUID and the password are random


def keys(side: Side, form: Format) -> list[int]:
    """The numbers of the lines that are keys as comments."""
    lines = example(side, form).splitlines()
    return [
        number for number, line in enumerate(lines) if line.lstrip().startswith("#") and line.lstrip()[1:2] not in " :"
    ]


@pytest.mark.parametrize(("side", "form"), [("client", "yaml"), ("server", "toml")])
def test_each_key_without_its_mark_is_accepted(directory: Path, side: Side, form: Format) -> None:
    text = example(side, form)
    lines = text.splitlines()
    default = load(directory, side, form, text)
    numbers = keys(side, form)
    assert len(numbers) > 30
    for number in numbers:
        name = lines[number].lstrip()[1:].split(":")[0].split(" =")[0]
        changed = [*lines[:number], lines[number].replace("#", "", 1), *lines[number + 1 :]]
        if name.endswith("_file"):  # instead of the password itself
            secret = name.removesuffix("_file")
            changed = [line for line in changed if not line.startswith((f"{secret}:", f"{secret} ="))]
        config = load(directory, side, form, "\n".join(changed))
        entry = table_of(side).entries.get(name)
        if side == "client" and entry is not None and entry.default is not None and entry.default != ():
            assert config == default, name


@pytest.mark.parametrize("side", SIDES)
def test_every_key_is_there_once(side: Side) -> None:
    text = example(side, "yaml")
    for name in table_of(side).entries:
        found = [line for line in text.splitlines() if line.startswith((f"{name}:", f"#{name}:"))]
        assert len(found) == (name not in WITHOUT_EFFECT), name


def test_formats_are_what_their_parsers_read() -> None:
    """Text that parsers could take for something else, or that has to be escaped."""
    odd = ["on", "1", "1e3", "0x1", "null", "~", "a: b", "#", " x ", '"', "\\", "\n\t", "\x7f\x85\u2028", "\ufeff"]
    odd += ["ä😀", "", "y", "No", "::1", "a:1", "22:22", "<<", *"-=*&!%@`{[,?|>", "*x", "&x", "!x"]
    tree = {name: name for name in odd} | {"list": odd, "table": {"in": "1", "n": [1, True, {"a": "b"}]}}
    lines = [Note("A note"), *(Pair(name, value) for name, value in tree.items()), Pair("no", 1, is_comment=True)]
    both: list[Any] = [*lines, Group("e", [Pair("x", 1), Group("i", [Pair("y", 2)])], is_element=True)]
    both += [Note("Second"), Group("e", [Note("note"), Pair("x", 3)], is_element=True), Group("t", [Pair("z", "on")])]
    expected = tree | {"e": [{"x": 1, "i": {"y": 2}}, {"x": 3}], "t": {"z": "on"}}
    for form in FORMATS:
        read = dict(parse(written(both, form, "schema"), f".{form}", "x").tree)
        assert read.pop("$schema", "schema") == "schema"
        assert read == expected, form
