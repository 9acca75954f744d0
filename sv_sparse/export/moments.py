"""Means and mean square deviations in the operations of a network, which programs compute at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sv_sparse.export.tracing import Node


def live_nodes(nodes: Sequence[Node], output: Node) -> list[Node]:
    """Return the nodes that the output depends on, in order."""
    needed = {output}
    for node in reversed(nodes):
        if node in needed:
            needed.update(_inputs([node.args, node.kwargs]))
    return [node for node in nodes if node in needed]


def match_moments(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes with moments of one operation each, in the place of sums of products.

    - ``core.mean`` of x: the sum of x/n.
    - ``core.variance`` of x: the mean of the square of x minus its mean.
    - ``core.attended_mean`` and ``core.attended_variance`` of x and scores: the same with the softmax of the scores in
      the place of 1/n.
    """
    return [_matched(node) for node in nodes]


def _matched(node: Node) -> Node:
    if node.op == "aten.mul.Tensor":
        return _with_correction(node)
    if node.op not in ("aten.sum.dim_IntList", "aten.mean.dim"):
        return node
    x, dims, keepdim = _reduction(node)
    weights: Any = None
    if node.op == "aten.sum.dim_IntList":
        if not _is_product(x):
            return node
        x, weights = x.args[:2] if isinstance(x.args[0], Node) else x.args[1::-1]
        if isinstance(weights, Node) and weights.op != "aten._softmax.default":
            x, weights = weights, x
        if not isinstance(x, Node) or not _are_weights(weights, x, dims):
            return node
    squared = _squared_deviation(x, weights, dims)
    scores = weights.args[0] if isinstance(weights, Node) else None
    kind = "mean" if squared is None else "variance"
    x = x if squared is None else squared
    # In place, since other nodes refer to it.
    node.op = f"core.{kind}" if scores is None else f"core.attended_{kind}"
    # A tuple is no argument: the softmax itself is not computed.
    node.args = [x, dims, keepdim] if scores is None else [x, scores, (weights,), dims, keepdim]
    node.kwargs = {}
    if node.op == "core.variance":
        node.args.append(0)
    return node


def _with_correction(node: Node) -> Node:
    """Return a mean square deviation times n / (n - 1), or n / (n - 2), as one operation."""
    x, factor = node.args[:2]
    if not isinstance(x, Node) or x.op != "core.variance" or not isinstance(factor, np.ndarray):
        return node
    original, dims, keepdim, previous = x.args
    if previous:
        return node
    count = _count(original, dims)
    for correction in (1, 2):
        if np.allclose(factor * (count - correction), count, rtol=1e-6):
            node.op = "core.variance"
            node.args = [original, dims, keepdim, correction]
    return node


def _count(x: Node, dims: list[int]) -> Any:
    return np.prod([np.asarray(x.shape[dim], float) for dim in dims], axis=0)


def _reduction(node: Node) -> tuple[Any, list[int], bool]:
    x, dims, keepdim, *_ = [*node.args, None, False][:3] if len(node.args) < 3 else node.args
    rank = len(x.shape)
    return x, [dim % rank for dim in dims or range(rank)], bool(keepdim)


def _is_product(x: Any) -> bool:
    return isinstance(x, Node) and x.op == "aten.mul.Tensor"


def _are_weights(weights: Any, x: Node, dims: list[int]) -> bool:
    """Return whether weights are the softmax over these axes, or one over the number of elements."""
    if isinstance(weights, Node):
        has_all = all(map(np.array_equal, weights.shape, x.shape))
        return has_all and weights.op == "aten._softmax.default" and [weights.args[1] % len(weights.shape)] == dims
    if isinstance(weights, (float, np.ndarray)):
        return bool(np.allclose(np.asarray(weights) * _count(x, dims), 1, rtol=1e-6))
    return False


def _squared_deviation(x: Node, weights: Any, dims: list[int]) -> Node | None:
    """Return what x is the square of the deviation of, from the mean under the same weights; None if it is none."""
    if x.op != "aten.pow.Tensor_Scalar" or x.args[1] != 2:
        return None
    difference = x.args[0]
    if not isinstance(difference, Node) or difference.op != "aten.sub.Tensor" or difference.kwargs:
        return None
    original, mean = difference.args[:2]
    while isinstance(mean, Node) and mean.op in ("aten.unsqueeze.default", "aten.view.default"):
        mean = mean.args[0]
    if not isinstance(original, Node) or not isinstance(mean, Node) or mean.op not in _MEANS:
        return None
    if mean.args[0] is not original or mean.args[-2] != dims:
        return None
    if mean.op == "core.attended_mean":
        return original if mean.args[2] == (weights,) else None
    return original if not isinstance(weights, Node) else None


_MEANS = ("core.mean", "core.attended_mean")


def _inputs(arguments: Any) -> Iterator[Node]:
    if isinstance(arguments, Node):
        yield arguments
    elif isinstance(arguments, dict):
        yield from _inputs(list(arguments.values()))
    elif isinstance(arguments, list):
        for argument in arguments:
            yield from _inputs(argument)
