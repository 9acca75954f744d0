"""Numbers as text in tables and figures; a value that is not known is a dash."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "\N{EN DASH}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format a fraction in percent.

    >>> percent(0.0512), percent(0.9, 4)
    ('5.12%', '90.0000%')
    """
    return DASH if fraction is None else f"{fraction:.{digits}%}"


def number(value: float | None, spec: str = ".3f") -> str:
    """Format a number by a format specification."""
    return DASH if value is None else format(value, spec)


def count(value: int | None) -> str:
    """Format a count with separators of thousands.

    >>> count(6190720)
    '6,190,720'
    """
    return DASH if value is None else f"{value:,}"


def interval(ends: Sequence[float] | None, spec: str = ".2%") -> str:
    """Format the two ends of an interval.

    >>> interval([0.0871, 0.1302])
    '8.71% to 13.02%'
    """
    return DASH if ends is None else f"{ends[0]:{spec}} to {ends[1]:{spec}}"


def brackets(ends: Sequence[float], signed: bool = False) -> str:
    """Format the two ends of an interval of fractions in percent, in brackets and without the sign of percent.

    >>> brackets([0.0871, 0.1302]), brackets([-0.003, 0.027], signed=True)
    ('[8.71, 13.02]', '[-0.30, +2.70]')
    """
    low, high = (points(end) if signed else f"{100 * end:.2f}" for end in ends)
    return f"[{low}, {high}]"


def points(difference: float, digits: int = 2) -> str:
    """Format a difference of fractions in percentage points, with its sign; what rounds to zero has none.

    >>> points(0.012), points(-0.003), points(-0.00001)
    ('+1.20', '-0.30', '0.00')
    """
    text = f"{100 * difference:+.{digits}f}"
    return text if float(text) else text[1:]


def large(value: float, unit: str = "") -> str:
    """Format a large number with three digits and a prefix.

    >>> large(1503014), large(58628352, "B"), large(950)
    ('1.50 M', '58.6 MB', '950')
    """
    if value < 1000:
        return f"{value:.0f} {unit}".strip()
    power = min(4, int(math.log10(value) // 3))
    mantissa = value / 1000**power
    digits = max(0, 2 - int(math.log10(mantissa)))
    return f"{mantissa:.{digits}f} {' kMGT'[power]}{unit}"


def point_name(point: Mapping[str, Any]) -> str:
    """Return a short name of an operating point: its prior, and its costs if they are not 1.

    >>> point_name({"p_target": 0.01, "c_miss": 1.0, "c_fa": 1.0})
    '0.01'
    >>> point_name({"p_target": 0.05, "c_miss": 10.0, "c_fa": 1.0})
    '0.05, c_miss 10, c_fa 1'
    """
    name = f"{point['p_target']:g}"
    if point["c_miss"] != 1 or point["c_fa"] != 1:
        name += f", c_miss {point['c_miss']:g}, c_fa {point['c_fa']:g}"
    return name
