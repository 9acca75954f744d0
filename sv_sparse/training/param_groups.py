"""How the weights of a run start: their groups, their learning rates, their zeros, and lambda."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sv_sparse.config.settings import RATES, Settings, check_value
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.optim import DENSE_TYPES, SPARSE_TYPES, largest_start, partition, sparse_init_
from sv_sparse.training.init_from import Origin

logger = logging.getLogger(__name__)


def learning_rates(settings: Settings, *, started_sparse: bool) -> dict[str, float]:
    """Peak learning rates: of weights that may become zero (``weights``), and of ``others``.

    Args:
        settings: of the run.
        started_sparse: whether the weights grow, or grew, from a sparse start.

    Raises:
        ValueError: ``optim.lr`` is neither one number above 0 nor one for each of its names.
    """
    lr = settings["optim"]["lr"]
    check_value("optim.lr", lr, settings)
    rates = lr if isinstance(lr, dict) else dict.fromkeys(RATES, lr)
    chosen = {"weights": "sparse", "others": "others"} if started_sparse else {"weights": "dense", "others": "dense"}
    return {kind: settings["trainer"]["lr_factor"] * rates[name] for kind, name in chosen.items()}


def starts_sparse(settings: Settings) -> bool:
    """Whether a run starts with most weights zero."""
    return settings["target_sparsity"] > 0 and settings["sparsity"]["density"] < 1


def start_sparse(groups: Sequence[dict[str, Any]], settings: Settings) -> None:
    """Make most of the regularized weights zero, by the run's seed."""
    generator = torch.Generator().manual_seed(settings["seed"])
    chosen = settings["sparsity"]
    sparse_init_(groups, density=chosen["density"], rescale=chosen["rescale"], generator=generator)


def network_groups(network: nn.Module, settings: Settings, regularizer: str = "none") -> list[dict[str, Any]]:
    """Return the network's sparse and dense groups, as ``sparsity.dense``, ``sparsity.sparse`` and types say.

    Args:
        network: whatever is trained.
        settings: of the run; those of earlier versions name no modules.
        regularizer: of the sparse group.

    Raises:
        ValueError: a name fits nothing, or neither a name nor a type says what a parameter is.
    """
    names = {kind: tuple(settings["sparsity"].get(kind, ())) for kind in ("dense", "sparse")}
    try:
        return partition(network, **names, regularizer=regularizer)
    except ValueError as error:
        raise ValueError(
            f"sparsity.dense={list(names['dense'])}, sparsity.sparse={list(names['sparse'])}: {error}"
        ) from error


def parameter_groups(
    network: nn.Module, head: AAMSoftmax, settings: Settings, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """The network's sparse and dense groups, and the head's group, which is dense unless ``include_head``.

    Each has its peak learning rate, one of ``rates``, under the name that torch's schedulers use, ``initial_lr``. Where
    whole channels or kernels are regularized, each weight is a group with a ``lambda_scale`` of its own.

    Raises:
        ValueError: whole output channels of the head are to become zero, which are speakers.
    """
    chosen = settings["sparsity"]
    whole = chosen["regularizer"] == "group" or chosen["controller"].get("whole", False)
    if chosen["include_head"] and whole and chosen["grouping"] == "output":
        raise ValueError(
            "sparsity.include_head=true with sparsity.grouping=output makes speakers zero; it must be false"
        )
    regularizer = chosen["regularizer"] if settings["target_sparsity"] > 0 else "none"
    groups = network_groups(network, settings, regularizer)
    if chosen["include_head"]:
        own = partition(head, sparse_types=(*SPARSE_TYPES, AAMSoftmax), regularizer=regularizer)
    else:
        own = partition(head, dense_types=(*DENSE_TYPES, AAMSoftmax))
    groups += [group | {"name": "head"} for group in own]
    if regularizer == "group":
        groups = [one for group in groups for one in _by_layer(group)]
    for group in groups:
        group["grouping"] = chosen["grouping"]
        group["initial_lr"] = rates["others" if group["regularizer"] == "none" else "weights"]
    return groups


def _by_layer(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group for each weight, whose ``lambda_scale`` is the weight's size as it is, next to that of the whole group.

    Layers with many inputs have small weights: under one lambda all their channels would die before any of another.
    """
    if group["regularizer"] == "none":
        return [group]
    squares = [float(param.detach().square().mean()) for _, param in group["params"]]
    mean = sum(squares) / len(squares) or 1.0
    pairs = zip(group["params"], squares, strict=True)
    return [group | {"params": [pair], "lambda_scale": (square / mean) ** 0.5 or 1.0} for pair, square in pairs]


def first_lambda(settings: Settings, origin: Origin | None, groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Where lambda starts, if not at ``optim.lambda_``, which a lambda that is fixed always does.

    An origin that lambda made sparse gives the lambda that its sparsity was reached with. Elsewhere a start above
    ``sv_sparse.optim.largest_start`` of the weights is lowered to it.
    """
    if settings["sparsity"]["controller"]["_target_"].endswith(".FixedController"):
        return {}
    if origin is not None and origin.lambda_ > 0:
        return {"lambda_": origin.lambda_}
    regularized = [group for group in groups if group["regularizer"] in {"l1", "group"}]
    params = [param for group in regularized for _, param in group["params"]]
    largest = largest_start(params, delta=settings["optim"].get("delta", 1.0)) if params else math.inf
    if largest >= settings["optim"]["lambda_"]:
        return {}
    logger.info("lambda starts at %.3g, below optim.lambda_, which is large beside the weights", largest)
    return {"lambda_": largest}
