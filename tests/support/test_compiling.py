from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import compiling


def test_a_program_is_compiled_when_what_it_is_made_from_has_changed(tmp_path: Path) -> None:
    compiling.compiler_or_skip()
    source, header = tmp_path / "answer.c", tmp_path / "answer.h"
    source.write_text('#include "answer.h"\nint main(void) { return ANSWER; }\n')
    made = tmp_path / "build" / "answer"
    for answer in (7, 42):
        header.write_text(f"#define ANSWER {answer}\n")
        if made.exists():
            later = made.stat().st_mtime + 1
            os.utime(header, (later, later))
        for _ in range(2):
            assert compiling.program(made, [source], also=[header]) == made
            assert subprocess.run([made], check=False).returncode == answer


def test_an_object_is_compiled_once_until_what_it_is_made_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = compiling.compiler_or_skip()
    monkeypatch.setattr(compiling, "BUILD", tmp_path / "build")
    source, header, part = tmp_path / "answer.c", tmp_path / "answer.h", tmp_path / "part.c"
    source.write_text('#include "answer.h"\n#include "part.c"\nint answer(void) { return ANSWER + more(); }\n')

    def made(*flags: str) -> Path:
        (result,) = compiling.objects([*command, *flags], [source], headers=[tmp_path])
        assert result.stat().st_size > 0
        return result

    header.write_text("#define ANSWER 7\n")
    part.write_text("static int more(void) { return 1; }\n")
    first = made()
    when = first.stat().st_mtime_ns
    assert made() == first
    assert first.stat().st_mtime_ns == when
    others = {made("-O2")}
    for changed, text in ((header, "#define ANSWER 8\n"), (part, "static int more(void) { return 2; }\n")):
        changed.write_text(text)
        others.add(made())
    source.write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    others.add(made())
    assert len(others - {first}) == 4


def test_what_it_rejects_is_said(tmp_path: Path) -> None:
    compiling.compiler_or_skip()
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(RuntimeError, match=r"(?s)program does not compile:.*nothing"):
        compiling.program(tmp_path / "program", [source])
    with pytest.raises(RuntimeError, match=r"(?s)wrong.c does not compile:.*nothing"):
        compiling.objects(compiling.compiler(), [source], headers=[])


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    source = tmp_path / "some.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(compiling.NoCompiler, match="no-such-compiler is not there"):
        compiling.program(tmp_path / "program", [source])
