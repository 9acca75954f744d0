"""Encoded tensors: every bit comes back, and nothing else is taken for one."""

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sv_sparse.runtime.sparse_codec import DTYPES, KINDS, SparseTensorBytes, decode, encode


def sparse(count: int, density: float, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    return values.where(torch.rand(count, generator=generator) < density, 0).numpy()


def floats(values) -> np.ndarray:
    return np.array(values, np.float32)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 1000))
def test_every_bit_comes_back(count, density, seed):
    tensor = sparse(count, density, seed)
    found = decoded(encode(tensor), count)
    assert np.array_equal(found.view(np.int32), tensor.view(np.int32))


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros(700, np.float32),
        np.ones(9, np.float32),
        floats([0.0] * 255 + [1.0]),
        floats([0.0] * 510 + [1.0] + [0.0] * 600),
        floats([1.0] + [0.0] * 254 + [2.0] + [0.0] * 255 + [3.0]),
        floats([0.0, 1e-45, -1e-45, 3.4e38]),
    ],
)
def test_gaps_of_any_length_come_back(tensor):
    found = decoded(encode(tensor), len(tensor))
    assert np.array_equal(found.view(np.int32), tensor.view(np.int32))


def test_the_smaller_kind_is_chosen():
    kinds = [encode(sparse(100_000, density)).kind for density in (0.001, 0.3, 2.0)]
    assert kinds == ["gaps", "bitmask", "dense"]
    assert set(kinds) == set(KINDS)


def test_an_axis_order_of_its_own_is_no_matter():
    tensor = sparse(60, 0.5).reshape(3, 4, 5).transpose(2, 0, 1)
    assert np.array_equal(decoded(encode(tensor), 60).reshape(5, 3, 4), tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_values_are_those_of_their_type(dtype):
    tensor = sparse(5000, 0.1)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    expected = torch.from_numpy(tensor).to(kind).float().numpy()
    assert np.array_equal(decoded(encode(tensor, dtype), 5000, dtype), expected)


def decoded(encoded: SparseTensorBytes, size: int, dtype: str = "fp32") -> np.ndarray:
    return decode(encoded, size, dtype).to_dense()


def test_equal_tensors_have_equal_nonzeros_however_they_are_packed():
    mask = np.zeros(600, bool)
    mask[[3, 4, 300]] = True
    values = frame(np.array([1, 2, 3], "<f4").view(np.uint8).reshape(-1, 4).T.tobytes())
    bits = frame(np.packbits(mask, bitorder="little").tobytes())
    marked = decode(SparseTensorBytes("bitmask", 3, bits, values), 600)
    counted = decode(SparseTensorBytes("gaps", 3, frame(bytes([3, 0, 255, 40])), values), 600)
    assert marked.positions.tolist() == counted.positions.tolist() == [3, 4, 300]
    assert marked.values.tolist() == counted.values.tolist() == [1, 2, 3]
    full = decode(SparseTensorBytes("bitmask", 3, frame(bytes([7])), values), 3)
    assert full.positions is None
    assert decode(SparseTensorBytes("dense", 3, b"", values), 3).positions is None


def test_a_negative_zero_is_a_zero():
    assert encode(floats([0.0, -0.0, 1.0])).nnz == 1


def test_values_that_are_not_finite_or_become_so_are_refused():
    with pytest.raises(ValueError, match="not finite in fp32"):
        encode(floats([0.0, np.nan]))
    with pytest.raises(ValueError, match="not finite in fp16"):
        encode(floats([0.0, 1e6]), "fp16")


def frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


GOOD = encode(sparse(1000, 0.01))


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (GOOD._replace(kind="csr"), "encoded as 'csr'"),
        (GOOD._replace(nnz=GOOD.nnz + 1), "bytes where"),
        (GOOD._replace(nnz=2000), "2000 values for 1000 positions"),
        (GOOD._replace(nnz=-1), "-1 values"),
        (GOOD._replace(positions=b"nonsense"), "cannot be decompressed"),
        (GOOD._replace(values=GOOD.values[:-3]), "cannot be decompressed"),
        (SparseTensorBytes("gaps", 1, frame(bytes([255] * 4)), frame(bytes(4))), "0 positions for 1"),
        (SparseTensorBytes("gaps", 1, frame(bytes([255, 255, 255, 254])), frame(bytes(4))), "position 1019 of 1000"),
        (SparseTensorBytes("gaps", 1, frame(bytes(10_000_000)), frame(bytes(4))), "at most 4"),
        (SparseTensorBytes("bitmask", 1, frame(bytes(125)), frame(bytes(4))), "0 positions for 1"),
        (SparseTensorBytes("bitmask", 1, frame(bytes(124)), frame(bytes(4))), "124 bytes where 125"),
        (SparseTensorBytes("dense", 999, b"", frame(bytes(4 * 999))), "does not say which"),
        (
            SparseTensorBytes("bitmask", 1, frame(bytes([1] + [0] * 124)), frame(bytes([0, 0, 0xC0, 0x7F]))),
            "not finite",
        ),
        (SparseTensorBytes("bitmask", 1, frame(bytes([1] + [0] * 124)), frame(bytes(4))), "stores a zero"),
    ],
)
def test_what_does_not_fit_is_named(packed, problem):
    with pytest.raises(ValueError, match=problem):
        decoded(packed, 1000)


def test_marks_beyond_the_last_place_are_refused():
    with pytest.raises(ValueError, match="beyond its 9"):
        decoded(SparseTensorBytes("bitmask", 1, frame(bytes([0, 0b10])), frame(bytes(4))), 9)
