"""Check numbers that users give: ValueError with the setting's name, what is allowed and what came."""

import math
import numbers
from typing import Any


def check_number(
    name: str,
    value: Any,
    meaning: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
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

    Raises:
        ValueError: it is not.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (at_least <= value <= at_most and above < value < below):
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


def whole_number(name: str, value: Any) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: it is not a whole number of 1 or more.
    """
    check_number(name, value, "1 or more", at_least=1)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)
