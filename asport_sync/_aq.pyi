"""The extension module that the build creates from _native/. The types of its functions are in engine.py."""

from typing import Any

ffi: Any
lib: Any
