"""Allocation of a sparsity among layers: how many weights of each layer stay, exact in total."""

import math
from collections.abc import Sequence

ALLOCATIONS = ("global", "uniform", "erk")


def layer_nnz(shapes: Sequence[Sequence[int]], nnz: int, allocation: str) -> list[int]:
    """Return how many weights of each layer are nonzero; ``nnz`` in total, and at least one of each layer.

    - ``uniform``: the same fraction of each layer.
    - ``erk``: a fraction in proportion to ``sum(shape) / prod(shape)``, so that small layers keep more; of a layer that
      would keep more than all, all. Source: Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets
      Winners", ICML 2020 (Erdos-Renyi-Kernel).

    Args:
        shapes: of the layers' weights.
        nnz: nonzero weights of all layers, from the number of layers to the number of weights.
        allocation: ``"uniform"`` or ``"erk"``.

    Raises:
        ValueError: ``nnz`` is not in its range.

    >>> layer_nnz([(64, 64), (512, 512)], 26624, "uniform")
    [410, 26214]
    >>> layer_nnz([(64, 64), (512, 512)], 26624, "erk")
    [2958, 23666]
    """
    sizes = [math.prod(shape) for shape in shapes]
    _check_total(nnz, sizes)
    if allocation == "uniform":
        factors = [1.0] * len(sizes)
    else:
        factors = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    return round_to_sum(_capped(factors, sizes, nnz), nnz, sizes)


def _check_total(nnz: int, sizes: Sequence[int]) -> None:
    if not len(sizes) <= nnz <= sum(sizes):
        raise ValueError(f"{nnz} nonzero weights in {len(sizes)} layers of {sum(sizes)} weights: one of each must stay")


def _capped(factors: Sequence[float], sizes: Sequence[int], nnz: int) -> list[float]:
    """Return nonzero weights in proportion to ``factors * sizes``, of no layer more than it has."""
    full: set[int] = set()
    while True:
        num_free = nnz - sum(sizes[index] for index in full)
        weight = sum(factors[index] * size for index, size in enumerate(sizes) if index not in full)
        scale = num_free / weight if weight else 0.0
        over = {index for index in range(len(sizes)) if index not in full and scale * factors[index] > 1}
        if not over:
            break
        full |= over
    values = []
    for index, size in enumerate(sizes):
        values.append(float(size) if index in full else scale * factors[index] * size)
    return values


def round_to_sum(values: Sequence[float], total: int, sizes: Sequence[int]) -> list[int]:
    """Return whole numbers near to ``values`` with the sum ``total``, each from 1 to the layer's size.

    Args:
        values: numbers, whose sum is near to ``total``.
        total: from the number of layers to the sum of their sizes.
        sizes: of the layers.

    Raises:
        ValueError: ``total`` is not in its range.

    >>> round_to_sum([2.5, 0.2, 7.3], 10, [4, 4, 8])
    [2, 1, 7]
    """
    _check_total(total, sizes)
    counts = [min(size, max(1, math.floor(value))) for value, size in zip(values, sizes, strict=True)]
    missing = total - sum(counts)
    step = 1 if missing > 0 else -1
    while missing:
        # Those that rounding took most from go first.
        order = sorted(range(len(counts)), key=lambda index: step * (counts[index] - values[index]))
        for index in order:
            if missing and 1 <= counts[index] + step <= sizes[index]:
                counts[index] += step
                missing -= step
    return counts
