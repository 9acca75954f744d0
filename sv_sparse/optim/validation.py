"""Checks of arguments: a ValueError with the argument's name, what is allowed and what came. Warnings for users."""

import math
import numbers
import sys
import warnings
from types import FrameType
from typing import Any

from torch import Tensor

NONNEGATIVE = "a finite number, 0 or more"


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError with an argument's name, what is allowed and what came, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def require_flag(name: str, value: object) -> None:
    """Raise a ValueError unless an argument is true or false."""
    # numpy's.
    is_flag = isinstance(value, (bool, int)) or type(value).__name__ in {"bool", "bool_"}
    require(is_flag and value in (True, False), name, value, "True or False")


def require_number(
    name: str,
    value: Any,
    allowed: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    or_tensor: bool = False,
) -> None:
    """Raise a ValueError unless an argument is a finite real number within bounds; truth values and text are none.

    Args:
        name: of the argument.
        value: what came.
        allowed: the bounds in words, as in "at least 0 and below 1".
        at_least: smallest value allowed.
        above: what the value must be larger than.
        at_most: largest value allowed.
        below: what the value must be smaller than.
        or_tensor: accept a tensor of one element too; its value comes to the host.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if or_tensor and isinstance(value, Tensor):
        is_number = value.numel() == 1 and not value.is_complex()
    number = float(value) if is_number else math.nan
    in_bounds = math.isfinite(number) and at_least <= number <= at_most and above < number < below
    require(in_bounds, name, value, allowed)


def require_fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a number of at least 0 and below 1."""
    require_number(name, value, "at least 0 and below 1", at_least=0, below=1)


def positive_int(name: str, value: Any) -> int:
    """Return an argument as an int.

    Raises:
        ValueError: it is not a whole number of 1 or more.
    """
    allowed = "a whole number, 1 or more"
    require_number(name, value, allowed, at_least=1)
    require(value == int(value), name, value, allowed)
    return int(value)


def warn(message: str) -> None:
    """Warn (UserWarning) at the line of the caller outside of torch and this package."""
    packages = {"torch", __name__.partition(".")[0]}
    frame: FrameType | None = sys._getframe(1)
    depth = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        frame = frame.f_back
        depth += 1
    warnings.warn(message, UserWarning, stacklevel=depth)
