"""Validation of test parameters: errors name the field, what it must be, and its value."""

from __future__ import annotations

import math


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is a fraction, 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number between 0 and 1, not {value!r}")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number of seconds, 0 or more, or above 0 with ``above_zero``."""
    least = "above 0" if above_zero else "0 or more"
    good = _is_number(value) and (value > 0 if above_zero else value >= 0)  # type: ignore[operator]
    if not good:
        raise ValueError(f"{name} must be seconds, {least}, not {value!r}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
