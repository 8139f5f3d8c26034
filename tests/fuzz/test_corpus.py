"""Every committed input again, without a fuzzer: what was found and mended stays mended."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz import corpus
from tests.fuzz.python_targets import FUNCTIONS
from tests.fuzz.targets import HERE, NATIVE, TARGETS, NativeTarget, PythonTarget
from tests.native.test_native import VARIANTS, WHOLE_SECONDS, Libraries, linked, ngtcp2_libraries, why_unusable
from tests.support.compiling import compiler_or_skip

FLAGS = VARIANTS["address-undefined"]
# Without engine_tls, which takes as long to compile as engine and runs through the same files; "make fuzz" has it.
NATIVE_TARGETS = [each for each in TARGETS if isinstance(each, NativeTarget) and each.name != "engine_tls"]


@pytest.mark.parametrize("target", [each for each in TARGETS if isinstance(each, PythonTarget)], ids=lambda t: t.name)
def test_python(target: PythonTarget) -> None:
    if target.name == "oracle":
        compiler_or_skip()
    inputs = corpus.seeds(target.name)
    assert inputs
    for data in inputs:
        FUNCTIONS[target.name](data)


@pytest.mark.timeout(WHOLE_SECONDS)
@pytest.mark.parametrize("target", NATIVE_TARGETS, ids=lambda t: t.name)
def test_native(target: NativeTarget, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = compiler_or_skip()
    reason = why_unusable(tuple(command), FLAGS, tmp_path_factory.getbasetemp())
    flags = () if reason else FLAGS
    program = linked(
        [HERE / "replay.c", *(HERE / name for name in target.sources), *(NATIVE / name for name in target.native)],
        ("-std=gnu11", *flags, *target.flags),
        ngtcp2_libraries() if target.ngtcp2 else Libraries(),
        tmp_path / "program",
        headers=(HERE, NATIVE),
        wraps=target.wraps,
    )
    corpus.unpack(target.name, tmp_path / "inputs")
    inputs = sorted((tmp_path / "inputs").iterdir())
    assert inputs
    ran = subprocess.run([program, *inputs], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr
