"""Tensors to bytes without their zeros, and back to the last bit.

A packed tensor is a place for each value that is not zero, and these values. Places are a bit for each element
(``bitmask``) or, where few are left, the count of zeros before each (``gaps``, one byte; 255 stands for 255 zeros and
no value). Values lie byte by byte: all first bytes, all second ones, so that their exponents compress. Both are zstd
frames.
"""

from typing import NamedTuple

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

KINDS = ("bitmask", "gaps", "dense")
VALUES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_LEVEL = 12  # of zstd: level 19 takes four times as long for half a per cent
_ESCAPE = 255
_MAX_WINDOW = 1 << 27  # bytes that a frame may ask the decoder to keep

Bytes = NDArray[np.uint8]


class Packed(NamedTuple):
    """A tensor as it is stored.

    Attributes:
        kind: one of KINDS; ``dense`` has no places.
        kept: values that are stored.
        places: a zstd frame.
        values: a zstd frame.
    """

    kind: str
    kept: int
    places: bytes
    values: bytes

    @property
    def size(self) -> int:
        """Bytes of both frames."""
        return len(self.places) + len(self.values)


class Nonzeros(NamedTuple):
    """The nonzero elements of a tensor, the same however they were compressed.

    Attributes:
        size: elements of the tensor, with its zeros.
        places: of the nonzero ones in the flattened tensor, int64 [N], ascending; None where no element is zero.
        values: float32 [N].
    """

    size: int
    places: NDArray[np.int64] | None
    values: Tensor

    def tensor(self) -> Tensor:
        """The flattened tensor, float32 [size]."""
        if self.places is None:
            return self.values
        flat = torch.zeros(self.size)
        flat[torch.from_numpy(self.places)] = self.values
        return flat


def pack(tensor: Tensor, values: str = "fp32") -> Packed:
    """The smallest packed form, which keeps every bit but the sign of a zero.

    Args:
        tensor: float32, of any shape; walked in the order of its axes.
        values: what they are rounded to, one of VALUES; ``fp32`` keeps every bit.

    Raises:
        ValueError: a value is not finite, or too large for ``values``.

    >>> pack(torch.tensor([0.0, 0.0, 3.0])).kept
    1
    """
    flat = tensor.detach().contiguous().flatten().to(VALUES[values])
    if not flat.isfinite().all():
        raise ValueError(f"holds values that are not finite in {values}")
    alive = flat != 0
    kept = flat[alive]
    if len(kept) == len(flat):
        return Packed("dense", len(kept), b"", _shuffled(kept))
    found = _shuffled(kept)
    mask = alive.numpy()
    choices = (("bitmask", _frame(_bits(mask))), ("gaps", _frame(_gaps(mask))))
    return min((Packed(kind, len(kept), places, found) for kind, places in choices), key=lambda packed: packed.size)


def unpack(packed: Packed, count: int, values: str = "fp32") -> Tensor:
    """The float32 tensor [count] that was packed.

    Raises:
        ValueError: the bytes are not what ``pack`` makes of ``count`` values.
    """
    return unpack_nonzeros(packed, count, values).tensor()


def unpack_nonzeros(packed: Packed, count: int, values: str = "fp32") -> Nonzeros:
    """The nonzero elements of a packed tensor.

    Args:
        packed: the tensor.
        count: its elements, with the zeros.
        values: what they were rounded to, one of VALUES.

    Raises:
        ValueError: the bytes are not what ``pack`` makes of ``count`` values.
    """
    if not 0 <= packed.kept <= count:
        raise ValueError(f"claims {packed.kept} values for {count} places")
    dtype = VALUES[values]
    raw = _content(packed.values, packed.kept * dtype.itemsize)
    kept = torch.from_numpy(raw.reshape(dtype.itemsize, packed.kept).T.copy().ravel()).view(dtype).float()
    if not kept.isfinite().all():
        raise ValueError("holds values that are not finite")
    if packed.kind == "dense" and packed.kept != count:
        raise ValueError(f"has {packed.kept} values for {count} places and says nowhere which")
    places = None if packed.kind == "dense" else _places(packed, count)
    if not kept.all():  # a zero has no place here, so that equal tensors have equal nonzeros
        raise ValueError("stores a zero as a value that is not zero")
    return Nonzeros(count, None if packed.kept == count else places, kept)


def _places(packed: Packed, count: int) -> NDArray[np.int64]:
    """Where the values belong, ascending."""
    if packed.kind == "bitmask":
        bits = np.unpackbits(_content(packed.places, -(-count // 8)), bitorder="little")
        if bits[count:].any():
            raise ValueError(f"marks places beyond its {count}")
        places = np.flatnonzero(bits)
    elif packed.kind == "gaps":
        gaps = _content(packed.places, None, at_most=packed.kept + count // _ESCAPE)
        is_value = gaps != _ESCAPE
        places = (np.cumsum(gaps + is_value, dtype=np.int64) - 1)[is_value]
        if len(places) and places[-1] >= count:
            raise ValueError(f"has a value at place {places[-1]} of {count}")
    else:
        raise ValueError(f"is packed as {packed.kind!r}, known are {', '.join(KINDS)}")
    if len(places) != packed.kept:
        raise ValueError(f"has {len(places)} places for {packed.kept} values")
    return places


def _bits(mask: NDArray[np.bool_]) -> bytes:
    return np.packbits(mask, bitorder="little").tobytes()


def _gaps(mask: NDArray[np.bool_]) -> bytes:
    zeros = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    escapes = zeros // _ESCAPE
    found = np.full(len(zeros) + int(escapes.sum()), _ESCAPE, np.uint8)
    found[np.arange(len(zeros)) + np.cumsum(escapes)] = zeros % _ESCAPE
    return found.tobytes()


def _shuffled(kept: Tensor) -> bytes:
    size = kept.element_size()
    return _frame(kept.view(torch.uint8).numpy().reshape(-1, size).T.tobytes())


def _frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(content)


def _content(frame: bytes, size: int | None, at_most: int = 0) -> Bytes:
    """What a frame holds, which must be ``size`` bytes, or ``at_most`` so many; nothing larger is ever made."""
    try:
        told = zstandard.frame_content_size(frame)
        if told != size if size is not None else not 0 <= told <= at_most:
            wanted = f"{size}" if size is not None else f"at most {at_most}"
            raise ValueError(f"holds {told} bytes where {wanted} were expected")
        content = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress(frame, max_output_size=told)
    except zstandard.ZstdError as error:
        raise ValueError(f"cannot be decompressed ({error})") from error
    if len(content) != told:
        raise ValueError(f"holds {len(content)} bytes where {told} were announced")
    return np.frombuffer(content, np.uint8)
