"""The names of the exceptions, today's and former ones."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import asport_sync
from asport_sync import errors

RENAMED = {
    "AuthenticationFailed": "AuthenticationError",
    "BindFailed": "BindError",
    "EngineClosed": "GoneError",
    "HandshakeTimeout": "HandshakeTimeoutError",
    "NetworkDenied": "NetworkDeniedError",
    "PortDenied": "PortDeniedError",
}
EXCEPTIONS = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}

both_modules = pytest.mark.parametrize("module", [asport_sync, errors], ids=lambda module: module.__name__)


def test_every_exception_is_public_and_ends_in_error() -> None:
    assert len(EXCEPTIONS) > 15
    assert [name for name in EXCEPTIONS if not name.endswith("Error")] == ["ConfigErrors"]
    assert {name for name in asport_sync.__all__ if name in EXCEPTIONS} == EXCEPTIONS
    assert [name for name in EXCEPTIONS if not issubclass(getattr(errors, name), errors.AsportError)] == []


@both_modules
@pytest.mark.parametrize(("former", "name"), RENAMED.items())
def test_a_former_name_is_the_same_class_and_warns(module: ModuleType, former: str, name: str) -> None:
    said = f"^{module.__name__}.{former} is now {name}; the former name will be removed$"
    with pytest.warns(DeprecationWarning, match=said) as caught:
        assert getattr(module, former) is getattr(module, name)
    assert [warning.filename for warning in caught] == [__file__]
    assert former not in dir(module)


@both_modules
def test_an_import_of_a_former_name_warns_its_module(module: ModuleType) -> None:
    program = f"from {module.__name__} import BindFailed"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("<string>:1: DeprecationWarning: ")


@both_modules
def test_a_name_that_never_was_is_none(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"^module '{module.__name__}' has no attribute 'PortsDenied'$"):
        module.PortsDenied  # noqa: B018
    assert not hasattr(module, "__wrapped__")


def test_what_is_gone_is_one_object_or_all() -> None:
    assert issubclass(errors.HandleGoneError, errors.GoneError)
    assert issubclass(errors.EngineClosedError, errors.GoneError)
    assert not issubclass(errors.EngineClosedError, errors.HandleGoneError)
    assert issubclass(errors.GoneError, errors.EngineError)
