"""Check settings that users give: ValueError with the setting's name, what is allowed and what came."""

import math
import numbers
import sys
import warnings
from types import FrameType
from typing import Any

from torch import Tensor


def check(allowed: bool, name: str, value: object, meaning: str) -> None:
    """Raise a ValueError with a setting's name, what is allowed and what came, unless ``allowed``."""
    if not allowed:
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raise a ValueError unless a setting is true or false."""
    is_flag = isinstance(value, (bool, int)) or type(value).__name__ in {"bool", "bool_"}  # numpy's
    check(is_flag and value in (True, False), name, value, "True or False")


def warn(message: str) -> None:
    """Warn (UserWarning) at the line of the caller outside of torch and this package."""
    own = {"torch", __name__.partition(".")[0]}
    frame: FrameType | None = sys._getframe(1)
    depth = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in own:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UserWarning, stacklevel=depth)


def check_number(
    name: str,
    value: Any,
    meaning: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    or_tensor: bool = False,
) -> None:
    """Refuse what is not a finite real number within the bounds; truth values and text are none.

    Args:
        name: of the setting.
        value: what came.
        meaning: the bounds in words, as in "at least 0 and below 1".
        at_least: smallest value allowed.
        above: what the value must be larger than.
        at_most: largest value allowed.
        below: what the value must be smaller than.
        or_tensor: whether a tensor of one element is a number too; its value comes to the host.

    Raises:
        ValueError: it is not.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if or_tensor and isinstance(value, Tensor):
        is_number = value.numel() == 1 and not value.is_complex()
    number = float(value) if is_number else math.nan
    inside = math.isfinite(number) and at_least <= number <= at_most and above < number < below
    check(inside, name, value, meaning)


def whole_number(name: str, value: Any) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: it is not a whole number of 1 or more.
    """
    check_number(name, value, "a whole number, 1 or more", at_least=1)
    check(value == int(value), name, value, "a whole number, 1 or more")
    return int(value)
