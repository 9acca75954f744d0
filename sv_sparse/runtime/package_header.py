"""Header of a package: JSON with its checksum in front, checked part by part before any of it is used."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from sv_sparse.io import checksum
from sv_sparse.models.features import check_features
from sv_sparse.runtime.sparse_codec import DTYPES, KINDS
from sv_sparse.scoring.calibration import QUALITY_MEASURES, Calibration

FORMAT = 4
# Of all tensors together, zeros included: one gibibyte of float32.
MAX_VALUES = 1 << 28
_MAX_TENSORS = 10_000
_MAX_AXES = 5
# Finite in float32 after any sum that scoring makes of it.
_MAX_NUMBER = 1e30
_KEYS = {"format", "fingerprint", "model", "features", "backend", "card", "program", "tensors"}
_OLDER = f"sv-sparse 0.1 reads formats 1 and 2, 0.2 reads 3, this version reads format {FORMAT}: export the run again"


class TensorSpec(NamedTuple):
    """Description of a stored tensor, with the checksum of its bytes."""

    # Form of its positions, one of KINDS.
    kind: str
    shape: tuple[int, ...]
    # Number of nonzero values.
    nnz: int
    # Type that the values were rounded to, one of DTYPES.
    dtype: str
    checksum: str


@dataclass(frozen=True)
class PackageHeader:
    """Everything in a package but its tensors; plain data."""

    # 64 hexadecimal digits that stand for the trained network and its features.
    fingerprint: str
    # Settings of the network, for information.
    model: dict[str, Any]
    # sample_rate in Hz, mel_bins, and kind, the name of the network's features.
    features: dict[str, Any]
    # top_n and calibration of the scoring back-end.
    backend: dict[str, Any]
    card: dict[str, Any]
    # What ProgramParts.about holds, and the number and checksum of the program's integers as steps.
    program: dict[str, Any]
    tensors: Mapping[str, TensorSpec]

    def to_text(self) -> str:
        """Return the header as text that begins with its checksum; raise an error for what is not JSON."""
        backend = self.backend
        calibration = backend["calibration"]
        if calibration is not None:
            # JSON has no numbers as keys, so the thresholds become pairs.
            thresholds = list(calibration["thresholds"].items())
            backend = backend | {"calibration": calibration | {"thresholds": thresholds}}
        content = {"format": FORMAT} | vars(self) | {"backend": backend}
        return with_checksum(json.dumps(content, allow_nan=False, separators=(",", ":")))

    @classmethod
    def from_text(cls, text: str) -> "PackageHeader":
        """Return the header that a text holds, or raise ValueError, which says what is wrong with it."""
        # Before format 2 the JSON stood alone.
        if text.startswith("{"):
            raise ValueError(f"its header is damaged: it has no checksum, or is of format 1; {_OLDER}")
        _, _, json_text = text.partition(" ")
        if text != with_checksum(json_text):
            raise ValueError("its header is damaged: it has changed since it was written")
        content = json.loads(json_text)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("its header has no format")
        # The format first: another one has other keys.
        if not _is_int_between(content["format"], FORMAT, FORMAT):
            raise ValueError(f"it has format {content['format']!r}; {_OLDER}")
        if set(content) != _KEYS:
            raise ValueError(f"its header has {sorted(content)}, expected {sorted(_KEYS)}")
        for key in sorted(_KEYS - {"format", "fingerprint"}):
            if not isinstance(content[key], dict):
                raise ValueError(f"{key} is a {type(content[key]).__name__}, expected names and values")
        _check_features(content["features"])
        fingerprint = content["fingerprint"]
        if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", fingerprint):
            raise ValueError(f"fingerprint is {str(fingerprint)[:80]}, expected 64 hexadecimal digits")
        # The program is checked when it is read. Model and card may say anything.
        backend = _parse_backend(content["backend"])
        tensors = _parse_tensors(content["tensors"])
        return cls(
            fingerprint,
            content["model"],
            content["features"],
            backend,
            content["card"],
            content["program"],
            tensors,
        )


def with_checksum(json_text: str) -> str:
    """Return the JSON of a header as it is stored: after its checksum and a space."""
    return f"{checksum(json_text.encode())} {json_text}"


def _check_features(features: dict[str, Any]) -> None:
    if set(features) != {"sample_rate", "mel_bins", "kind"}:
        raise ValueError(f"features has {sorted(features)}, expected kind, mel_bins and sample_rate")
    check_features(features["kind"])
    if not _is_int_between(features["sample_rate"], 16000, 16000):
        raise ValueError(f"features has sample_rate {features['sample_rate']!r}, this version computes 16000")
    if not _is_int_between(features["mel_bins"], 4, 256):
        raise ValueError(f"features has mel_bins {features['mel_bins']!r}, expected 4 to 256")


def _parse_tensors(tensors: dict[str, Any]) -> dict[str, TensorSpec]:
    # Sizes are limited here, before anything of such a size is allocated.
    if len(tensors) > _MAX_TENSORS:
        raise ValueError(f"it has {len(tensors)} tensors, at most {_MAX_TENSORS} are read")
    specs = {}
    num_values = 0
    for name, fields in tensors.items():
        specs[name] = _parse_tensor(name, fields)
        num_values += prod(specs[name].shape)
    if num_values > MAX_VALUES:
        raise ValueError(f"it has {num_values} values with its zeros, at most {MAX_VALUES} are read")
    return specs


def _parse_tensor(name: str, fields: Any) -> TensorSpec:
    if not isinstance(fields, list) or len(fields) != len(TensorSpec._fields):
        raise ValueError(f"{name} is described by {str(fields)[:60]}, expected {', '.join(TensorSpec._fields)}")
    kind, shape, nnz, dtype, checksum = fields
    is_shape = isinstance(shape, list) and len(shape) <= _MAX_AXES
    if not is_shape or not all(_is_int_between(size, 1, MAX_VALUES) for size in shape):
        raise ValueError(f"{name} has shape {str(shape)[:60]}")
    # A list, since what JSON holds may not be hashable.
    if kind not in KINDS or dtype not in list(DTYPES) or not _is_int_between(nnz, 0, min(prod(shape), MAX_VALUES)):
        raise ValueError(f"{name} is described by {str(fields)[:60]}, which is not allowed")
    return TensorSpec(kind, tuple(shape), nnz, dtype, str(checksum))


def _parse_backend(backend: dict[str, Any]) -> dict[str, Any]:
    if set(backend) != {"top_n", "calibration"} or not _is_int_between(backend["top_n"], 0, MAX_VALUES):
        raise ValueError(f"backend is {str(backend)[:60]}, expected top_n and calibration")
    if backend["calibration"] is None:
        return backend
    return backend | {"calibration": _parse_calibration(backend["calibration"])}


def _parse_calibration(calibration: Any) -> dict[str, Any]:
    """Return the arguments of ``Calibration``."""
    # Each number is checked: an infinite slope or threshold would accept everybody, or nobody.
    keys = set(Calibration.__dataclass_fields__)
    if not isinstance(calibration, dict) or set(calibration) != keys:
        raise ValueError(f"calibration is {str(calibration)[:60]}, expected {sorted(keys)}")
    try:
        thresholds = {float(far): threshold for far, threshold in calibration["thresholds"]}
    except (TypeError, ValueError, OverflowError):
        raise ValueError("calibration has thresholds that are not pairs of numbers") from None
    calibration = calibration | {"thresholds": thresholds}
    for name, value in calibration.items():
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        if not all(map(_is_number, numbers)):
            raise ValueError(f"calibration has something in {name} that is not a number")
    qualities = calibration["qualities"]
    if not isinstance(qualities, dict) or not set(qualities) <= set(QUALITY_MEASURES):
        raise ValueError(
            f"calibration has qualities {str(qualities)[:60]}, expected some of {', '.join(QUALITY_MEASURES)}"
        )
    for probability in (calibration["p_target"], *thresholds):
        if not 0 < probability < 1:
            raise ValueError(f"calibration has the probability {probability}, expected above 0 and below 1")
    return calibration


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _is_int_between(value: Any, minimum: int, maximum: int) -> bool:
    # JSON's true is an int to Python.
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
