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


def test_what_it_rejects_is_said(tmp_path: Path) -> None:
    compiling.compiler_or_skip()
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(RuntimeError, match=r"(?s)program does not compile:.*nothing"):
        compiling.program(tmp_path / "program", [source])


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    source = tmp_path / "some.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(compiling.NoCompiler, match="no-such-compiler is not there"):
        compiling.program(tmp_path / "program", [source])
