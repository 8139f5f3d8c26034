"""The extension module, which the build makes from _native/. Its functions get their types in engine.py."""

from typing import Any

ffi: Any
lib: Any
