"""Numbers and names as people read them; what is not known is a dash."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "\N{EN DASH}"


def percent(share: float | None, digits: int = 2) -> str:
    """A fraction in per cent.

    >>> percent(0.0512), percent(0.9, 4)
    ('5.12%', '90.0000%')
    """
    return ABSENT if share is None else f"{share:.{digits}%}"


def number(value: float | None, form: str = ".3f") -> str:
    """A number in this form."""
    return ABSENT if value is None else format(value, form)


def count(value: int | None) -> str:
    """A count with its thousands apart.

    >>> count(6190720)
    '6,190,720'
    """
    return ABSENT if value is None else f"{value:,}"


def interval(both: Sequence[float] | None, form: str = ".2%") -> str:
    """From where to where.

    >>> interval([0.0871, 0.1302])
    '8.71% to 13.02%'
    """
    return ABSENT if both is None else " to ".join(format(value, form) for value in both)


def large(value: float | None, unit: str = "") -> str:
    """Three digits of a large number.

    >>> large(1503014), large(58628352, "B"), large(950.0)
    ('1.50 M', '58.6 MB', '950')
    """
    if value is None:
        return ABSENT
    power = min(4, int(math.log10(value) // 3)) if value >= 1000 else 0
    short = value / 1000**power
    digits = max(0, 2 - int(math.log10(short))) if power else 0
    return f"{short:.{digits}f} {' kMGT'[power].strip()}{unit}".strip()


def share(part: float | None, whole: float | None, digits: int = 1) -> str:
    """A part of a whole in per cent."""
    return ABSENT if part is None or not whole else percent(part / whole, digits)


def point_name(cost: Mapping[str, Any]) -> str:
    """An operating point in short: its prior, and its costs where they are not 1.

    >>> point_name({"p_target": 0.01, "c_miss": 1.0, "c_fa": 1.0})
    '0.01'
    >>> point_name({"p_target": 0.05, "c_miss": 10.0, "c_fa": 1.0})
    '0.05, c_miss 10, c_fa 1'
    """
    costs = "" if cost["c_miss"] == cost["c_fa"] == 1 else f", c_miss {cost['c_miss']:g}, c_fa {cost['c_fa']:g}"
    return f"{cost['p_target']:g}{costs}"
