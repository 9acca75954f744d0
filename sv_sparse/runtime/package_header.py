"""What a package says of itself: JSON with its check sum before it, checked part by part before any of it is used.

Format 1, which had no check sums, is still read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from sv_sparse.io import checksum
from sv_sparse.runtime.sparse_codec import KINDS, VALUES
from sv_sparse.scoring.calibration import QUALITY_MEASURES, Calibration

FORMAT = 2
_OLDEST = 1
MAX_VALUES = 1 << 28  # of all tensors together: one gibibyte with their zeros
_MAX_TENSORS, _MAX_AXES = 10_000, 5
_LARGEST = 1e30  # number in a description
_PARTS = {"format", "model", "features", "backend", "card", "tensors"}


class Stored(NamedTuple):
    """How a tensor is stored.

    Attributes:
        kind: one of KINDS.
        shape: with its zeros.
        kept: values that are not zero.
        values: what they were rounded to, one of VALUES.
        check_sum: of the bytes that are stored; None in format 1.
    """

    kind: str
    shape: tuple[int, ...]
    kept: int
    values: str
    check_sum: str | None = None


@dataclass(frozen=True)
class Description:
    """All of a package but its tensors.

    Attributes:
        model: settings of the network.
        features: ``sample_rate`` and ``mel_bins``.
        backend: ``top_n`` and ``calibration`` as ``Backend.from_dict`` takes them.
        card: plain data.
        stored: the tensors by name.
        has_check_sums: whether the file has them: format 1 has none.
    """

    model: dict[str, Any]
    features: dict[str, int]
    backend: dict[str, Any]
    card: dict[str, Any]
    stored: Mapping[str, Stored]
    has_check_sums: bool = True


def to_text(about: Description) -> str:
    """The text of a description, which begins with its check sum.

    Raises:
        TypeError: the card, or the model's settings, are no plain data.
        ValueError: they hold a number that is not finite.
    """
    backend = dict(about.backend)
    if backend["calibration"] is not None:  # JSON has no numbers as keys
        backend["calibration"] = backend["calibration"] | {
            "thresholds": list(map(list, backend["calibration"]["thresholds"].items()))
        }
    whole = {
        "format": FORMAT,
        "model": about.model,
        "features": about.features,
        "backend": backend,
        "card": about.card,
        "tensors": about.stored,
    }
    return with_check_sum(json.dumps(whole, allow_nan=False, separators=(",", ":")))


def with_check_sum(content: str) -> str:
    """A description's JSON as it is stored: after its check sum and a space."""
    return f"{checksum(content.encode())} {content}"


def of_text(text: str | None) -> Description:
    """The description that a text holds.

    Raises:
        ValueError: it is damaged, or none; says what is wrong.
    """
    if text is None:
        raise ValueError("it has no description of a network, which sv-sparse export writes: damaged, or another file")
    has_check_sums = not text.startswith("{")
    content = text.partition(" ")[2] if has_check_sums else text
    if has_check_sums and text != with_check_sum(content):
        raise ValueError("its description is damaged: it has changed since it was written")
    whole = json.loads(content)
    if not isinstance(whole, dict) or "format" not in whole:
        raise ValueError("its description has no format")
    if not _whole(whole["format"], _OLDEST, FORMAT):
        raise ValueError(f"it has format {whole['format']!r}, this version reads {_OLDEST} to {FORMAT}")
    if whole["format"] > 1 and not has_check_sums:
        raise ValueError("its description is damaged: it has lost its check sum")
    if set(whole) != _PARTS:
        raise ValueError(f"its description has {sorted(whole)}, expected {sorted(_PARTS)}")
    for part in _PARTS - {"format"}:
        if not isinstance(whole[part], dict):
            raise ValueError(f"{part} is a {type(whole[part]).__name__}, expected names and values")
    features, backend = _features(whole["features"]), _backend(whole["backend"])
    stored = _stored(whole["tensors"], has_check_sums)
    return Description(whole["model"], features, backend, whole["card"], stored, has_check_sums)


def _features(features: dict[str, Any]) -> dict[str, int]:
    if set(features) != {"sample_rate", "mel_bins"}:
        raise ValueError(f"features has {sorted(features)}, expected mel_bins and sample_rate")
    if not _whole(features["sample_rate"], 16000, 16000):
        raise ValueError(f"features has sample_rate {features['sample_rate']!r}, this version computes 16000")
    if not _whole(features["mel_bins"], 4, 256):
        raise ValueError(f"features has mel_bins {features['mel_bins']!r}, expected 4 to 256")
    return features


def _stored(tensors: dict[str, Any], has_check_sums: bool) -> dict[str, Stored]:
    if len(tensors) > _MAX_TENSORS:
        raise ValueError(f"it has {len(tensors)} tensors, at most {_MAX_TENSORS} are read")
    found = {name: _one_stored(name, each, has_check_sums) for name, each in tensors.items()}
    total = sum(prod(each.shape) for each in found.values())
    if total > MAX_VALUES:
        raise ValueError(f"it has {total} values with its zeros, at most {MAX_VALUES} are read")
    return found


def _one_stored(name: str, each: Any, has_check_sum: bool) -> Stored:
    if not isinstance(each, list) or len(each) != 4 + has_check_sum:
        raise ValueError(f"{name} is described by {str(each)[:60]}, expected kind, shape, kept, values and check sum")
    kind, shape, kept, values, *sums = each
    axes: list[Any] = shape if isinstance(shape, list) and len(shape) <= _MAX_AXES else [None]
    if not all(_whole(axis, 1, MAX_VALUES) for axis in axes) or prod(axes) > MAX_VALUES:
        raise ValueError(f"{name} has shape {str(shape)[:60]}")
    if kind not in KINDS or values not in list(VALUES) or not _whole(kept, 0, prod(axes)):
        raise ValueError(f"{name} is described by {str(each)[:60]}, which is not allowed")
    return Stored(kind, tuple(axes), kept, values, *map(str, sums))


def _backend(backend: dict[str, Any]) -> dict[str, Any]:
    if set(backend) != {"top_n", "calibration"} or not _whole(backend["top_n"], 0, MAX_VALUES):
        raise ValueError(f"backend is {str(backend)[:60]}, expected top_n and calibration")
    if backend["calibration"] is not None:
        backend = backend | {"calibration": _calibration(backend["calibration"])}
    return backend


def _calibration(given: Any) -> dict[str, Any]:
    """As ``Calibration`` takes it."""
    names = set(Calibration.__dataclass_fields__)
    if not isinstance(given, dict) or set(given) != names:
        raise ValueError(f"calibration is {str(given)[:60]}, expected {sorted(names)}")
    qualities, thresholds = given["qualities"], given["thresholds"]
    pairs = thresholds if isinstance(thresholds, list) and all(_pair(each) for each in thresholds) else None
    fits = isinstance(qualities, dict) and set(qualities) <= set(QUALITY_MEASURES) and pairs is not None
    numbers = [given["slope"], given["offset"], *(qualities.values() if fits else ())]
    counts = [given["trials"], given["targets"], given["speakers"]]
    if not fits or not all(map(_number, numbers)) or not all(_whole(count, 0, 1 << 60) for count in counts):
        raise ValueError("calibration holds something that is no number")
    if not _number(given["p_target"]) or not 0 < given["p_target"] < 1:
        raise ValueError(f"calibration has p_target {given['p_target']!r}, expected above 0 and below 1")
    return given | {"thresholds": dict(map(tuple, pairs or ()))}


def _pair(each: Any) -> bool:
    return isinstance(each, Sequence) and len(each) == 2 and all(map(_number, each)) and 0 < each[0] < 1


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
