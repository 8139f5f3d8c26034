"""One Python target under atheris: ``python -m tests.fuzz.python_main NAME [libFuzzer options and folders]``."""

from __future__ import annotations

import importlib
import sys


def main(arguments: list[str]) -> None:
    """Hand a target to libFuzzer, which ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["asport_sync.wire", "tests.wire"]):
        targets = importlib.import_module("tests.fuzz.python_targets")
    atheris.Setup([sys.argv[0], *arguments[1:]], targets.FUNCTIONS[arguments[0]])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
