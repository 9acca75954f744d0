"""Encoder and decoder of tensors without their zeros, exact to the last bit.

An encoded tensor has two zstd frames: the positions of its nonzero values, and the values. Positions
are one bit for each element (``bitmask``) or, where few are nonzero, the number of zeros before each
value (``gaps``: one byte; 255 stands for 255 zeros and no value). Values are stored byte by byte, all
first bytes, then all second ones.
"""

from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

KINDS = ("bitmask", "gaps", "dense")
# Bytes of a value by the type that it is stored in.
DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}
Float32Array = NDArray[np.float32]

# Level 19 takes four times as long and saves half a percent.
ZSTD_LEVEL = 12
# Bytes that a frame may ask the decoder to set aside.
MAX_ZSTD_WINDOW = 1 << 27
_ESCAPE = 255


class SparseTensorBytes(NamedTuple):
    """Encoded tensor: zstd frames of positions and values."""

    # Form of the positions, one of KINDS; "dense" has none.
    kind: str
    # Number of values that are stored.
    nnz: int
    positions: bytes
    values: bytes


class Nonzeros(NamedTuple):
    """Nonzero elements of a tensor, the same however they were compressed."""

    # Number of elements of the tensor, zeros included.
    size: int
    # [N], ascending, in the flattened tensor; None where no element is zero.
    positions: NDArray[np.int64] | None
    # [N].
    values: Float32Array

    def to_dense(self) -> Float32Array:
        """Return the flattened tensor, float32 [size]."""
        if self.positions is None:
            return self.values
        flat = np.zeros(self.size, np.float32)
        flat[self.positions] = self.values
        return flat


def encode(tensor: Float32Array, dtype: str = "fp32") -> SparseTensorBytes:
    """Return the smallest encoded form of a tensor; it keeps every bit but the sign of a zero.

    Args:
        tensor: float32, of any shape; read in the order of its axes.
        dtype: Type that values are rounded to, one of DTYPES; ``fp32`` keeps every bit.

    Raises:
        ValueError: A value is not finite, or too large for ``dtype``.

    >>> encode(np.array([0.0, 0.0, 3.0], np.float32)).nnz
    1
    """
    flat = round_to(tensor, dtype).ravel()
    if not np.isfinite(flat).all():
        raise ValueError(f"holds values that are not finite in {dtype}")
    mask = flat != 0
    nonzeros = _to_bits(flat[mask], dtype)
    # Byte by byte, so that zstd sees the exponents side by side.  DECISIONS 53
    shuffled = nonzeros.view(np.uint8).reshape(-1, DTYPES[dtype]).T
    values = compress(shuffled.tobytes())
    if len(nonzeros) == len(flat):
        return SparseTensorBytes("dense", len(nonzeros), b"", values)
    bitmask = compress(np.packbits(mask, bitorder="little").tobytes())
    gaps = compress(_gaps(mask))
    # Raw gaps are smaller below one nonzero value in eight; what zstd makes of either depends on the pattern.
    if len(bitmask) <= len(gaps):
        return SparseTensorBytes("bitmask", len(nonzeros), bitmask, values)
    return SparseTensorBytes("gaps", len(nonzeros), gaps, values)


def round_to(tensor: Float32Array, dtype: str) -> Float32Array:
    """Return values rounded to one of DTYPES, as float32; what is too large for it becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _from_bits(_to_bits(np.ascontiguousarray(tensor, np.float32), dtype), dtype)


def _to_bits(values: Float32Array, dtype: str) -> NDArray[Any]:
    """Return the bits of values rounded to a type, to the nearest and to even."""
    if dtype == "fp32":
        return values
    if dtype == "fp16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    # NaN would become infinite, or zero.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _from_bits(bits: NDArray[Any], dtype: str) -> Float32Array:
    if dtype == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32)


def decode(encoded: SparseTensorBytes, size: int, dtype: str = "fp32") -> Nonzeros:
    """Return the nonzero elements of an encoded tensor.

    Args:
        encoded: What ``encode`` returned.
        size: Number of elements of the tensor, zeros included.
        dtype: Type that the values were rounded to, one of DTYPES.

    Raises:
        ValueError: The bytes are not what ``encode`` makes of ``size`` values.
    """
    nnz = encoded.nnz
    itemsize = DTYPES[dtype]
    if not 0 <= nnz <= size:
        raise ValueError(f"claims {nnz} values for {size} positions")
    shuffled = decompress(encoded.values, nnz * itemsize).reshape(itemsize, nnz)
    kind = {"fp32": np.float32, "bf16": np.uint16, "fp16": np.float16}[dtype]
    values = _from_bits(shuffled.T.copy().ravel().view(kind), dtype)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    positions = _positions(encoded, size)
    # A stored zero would give equal tensors different nonzeros, and so different fingerprints.
    if not values.all():
        raise ValueError("stores a zero as a value that is not zero")
    return Nonzeros(size, None if nnz == size else positions, values)


def _positions(encoded: SparseTensorBytes, size: int) -> NDArray[np.int64] | None:
    """Return the positions of the values, ascending; None for a dense tensor."""
    if encoded.kind == "dense":
        if encoded.nnz != size:
            raise ValueError(f"has {encoded.nnz} values for {size} positions and does not say which")
        return None
    if encoded.kind == "bitmask":
        bits = np.unpackbits(decompress(encoded.positions, -(-size // 8)), bitorder="little")
        if bits[size:].any():
            raise ValueError(f"marks positions beyond its {size}")
        positions = np.flatnonzero(bits)
    elif encoded.kind == "gaps":
        gaps = decompress(encoded.positions, None, max_size=encoded.nnz + size // _ESCAPE)
        is_value = gaps != _ESCAPE
        positions = (np.cumsum(gaps + is_value, dtype=np.int64) - 1)[is_value]
        if len(positions) and positions[-1] >= size:
            raise ValueError(f"has a value at position {positions[-1]} of {size}")
    else:
        raise ValueError(f"is encoded as {encoded.kind!r}, expected one of {', '.join(KINDS)}")
    if len(positions) != encoded.nnz:
        raise ValueError(f"has {len(positions)} positions for {encoded.nnz} values")
    return positions


def _gaps(mask: NDArray[np.bool_]) -> bytes:
    num_zeros = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    num_escapes = num_zeros // _ESCAPE
    gaps = np.full(len(num_zeros) + int(num_escapes.sum()), _ESCAPE, np.uint8)
    gaps[np.arange(len(num_zeros)) + np.cumsum(num_escapes)] = num_zeros % _ESCAPE
    return gaps.tobytes()


def compress(content: bytes) -> bytes:
    """Return a zstd frame."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(content)


def decompress(frame: bytes, size: int | None, max_size: int = 0) -> NDArray[np.uint8]:
    """Return the content of a frame: exactly ``size`` bytes or, if that is None, up to ``max_size``."""
    try:
        # The announced size is checked first: a small frame can hold gigabytes of zeros.
        announced = zstandard.frame_content_size(frame)
        if size is not None and announced != size:
            raise ValueError(f"holds {announced} bytes where {size} were expected")
        if size is None and not 0 <= announced <= max_size:
            raise ValueError(f"holds {announced} bytes where at most {max_size} were expected")
        content = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompress(frame, announced)
    except zstandard.ZstdError as error:
        raise ValueError(f"cannot be decompressed ({error})") from error
    if len(content) != announced:
        raise ValueError(f"holds {len(content)} bytes where {announced} were announced")
    return np.frombuffer(content, np.uint8)
