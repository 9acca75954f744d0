"""Parameter groups of a run, their learning rates, their sparse start, and the start of lambda."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sv_sparse.config.schema import Config, LearningRates
from sv_sparse.optim import SPARSE_TYPES, largest_initial_lambda, param_groups, sparse_init_
from sv_sparse.training.init_from import InitSource, network_file, read_weights

logger = logging.getLogger(__name__)


def learning_rates(config: Config, *, sparse_init: bool) -> dict[str, float]:
    """Return the peak learning rates of weights that may become zero (``weights``) and of the ``others``.

    Args:
        config: of the run.
        sparse_init: whether the weights grow, or grew, from a sparse start.
    """
    lr = config.optim.lr
    if not isinstance(lr, LearningRates):
        lr = LearningRates(sparse_start=lr, dense_params=lr, dense_start=lr, pretrained=lr)
    scale = config.trainer.lr_scale
    if sparse_init:
        # Without a penalty, as under masks, nothing grows from zero.
        has_penalty = config.target_sparsity > 0 and config.sparsity.penalty != "none"
        weight_rate = lr.sparse_start if has_penalty else lr.dense_params
        return {"weights": scale * weight_rate, "others": scale * lr.dense_params}
    is_pretrained = config.init_from is not None and config.target_sparsity > 0
    weight_rate = lr.pretrained if is_pretrained else lr.dense_start
    return {"weights": scale * weight_rate, "others": scale * lr.dense_start}


def uses_sparse_init(config: Config) -> bool:
    """Return whether a run from scratch starts with most weights zero."""
    return config.target_sparsity > 0 and config.sparsity.init_density < 1


def starts_sparse(config: Config) -> bool:
    """Return whether the weights of a run grow from a sparse start, its own or that of the run in ``init_from``.

    Raises:
        ValueError: what ``init_from`` names cannot be read.
    """
    if config.init_from is None:
        return uses_sparse_init(config)
    state = read_weights(network_file(Path(config.init_from)))
    # Weights of other origin are dense, and their files may have anything under these names.
    metrics = state.get("metrics") if "format" in state else None
    return isinstance(metrics, dict) and bool(metrics.get("sparse_init", False))


def resolve_penalty(config: Config, *, sparse_init: bool) -> Config:
    """Return the settings with the penalty that ``sparsity.penalty=auto`` stands for.

    From a dense start l0 is better, from a sparse one l1: DECISIONS 120.

    Args:
        config: of the run.
        sparse_init: whether the weights grow, or grew, from a sparse start.
    """
    if config.sparsity.penalty != "auto":
        return config
    # Without dual variables there is no l0.
    needs_l1 = sparse_init or config.optim.name == "proxsgd"
    return replace(config, sparsity=replace(config.sparsity, penalty="l1" if needs_l1 else "l0"))


def apply_sparse_init(groups: Sequence[dict[str, Any]], config: Config) -> None:
    """Set most of the regularized weights to zero, by the run's seed."""
    generator = torch.Generator().manual_seed(config.seed)
    sparse_init_(
        groups, density=config.sparsity.init_density, rescale=config.sparsity.rescale_init, generator=generator
    )


def network_param_groups(network: nn.Module, config: Config, penalty: str = "none") -> list[dict[str, Any]]:
    """Return the network's sparse and dense groups, as ``sparsity.dense``, ``sparsity.sparse`` and types say.

    Args:
        network: what is trained.
        config: of the run.
        penalty: of the sparse group.

    Raises:
        ValueError: a name fits nothing, or neither a name nor a type says what a parameter is.
    """
    dense, sparse = config.sparsity.dense, config.sparsity.sparse
    try:
        return param_groups(
            network,
            dense=tuple(dense),
            sparse=tuple(sparse),
            penalty=penalty,
            per_weight=config.sparsity.allocation != "global",
        )
    except ValueError as error:
        raise ValueError(f"sparsity.dense={list(dense)}, sparsity.sparse={list(sparse)}: {error}") from error


def build_param_groups(
    network: nn.Module, head: nn.Module, config: Config, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the network's sparse and dense groups, and the head's group, which is dense by default.

    Each has its peak learning rate, one of ``rates``, under the name that torch's schedulers use, ``initial_lr``. Where
    whole channels or kernels are regularized, each weight is a group with a ``lambda_scale``.

    Args:
        network: what is trained.
        head: of its training.
        config: of the run.
        rates: as ``learning_rates`` returns them.

    Raises:
        ValueError: whole output channels of the head, which are speakers, are to become zero.
    """
    settings = config.sparsity
    if settings.sparsify_head and settings.penalty == "group" and settings.granularity == "out_channel":
        raise ValueError(
            "sparsity.sparsify_head=true with sparsity.granularity=out_channel makes speakers zero; it must be false"
        )
    penalty = settings.penalty if config.target_sparsity > 0 else "none"
    groups = network_param_groups(network, config, penalty)
    if settings.sparsify_head:
        per_weight = settings.allocation != "global"
        sparse_types = (*SPARSE_TYPES, type(head))
        head_groups = param_groups(head, sparse_types=sparse_types, penalty=penalty, per_weight=per_weight)
    else:
        head_groups = param_groups(head, dense=[name for name, _ in head.named_parameters()])
    for group in head_groups:
        groups.append({**group, "name": "head"})
    if penalty == "group":
        groups = [part for group in groups for part in _split_group_per_weight(group)]
    for group in groups:
        group["granularity"] = settings.granularity
        # Weights that masks make zero have no penalty.
        group["initial_lr"] = rates["weights" if group["prunable"] else "others"]
    return groups


def _split_group_per_weight(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a group for each weight, whose ``lambda_scale`` is its rms value relative to that of the whole group.

    Layers with many inputs have small weights: under the same lambda all their channels would die before any of
    another layer.
    """
    if group["penalty"] == "none":
        return [group]
    mean_squares = [float(param.detach().square().mean()) for _, param in group["params"]]
    mean = sum(mean_squares) / len(mean_squares) or 1.0
    groups = []
    for named_param, mean_square in zip(group["params"], mean_squares, strict=True):
        lambda_scale = math.sqrt(mean_square / mean) or 1.0
        groups.append({**group, "params": [named_param], "lambda_scale": lambda_scale})
    return groups


def initial_lambda(config: Config, source: InitSource | None, groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return where lambda starts, if not at ``optim.lambda_init``, where a fixed lambda always starts.

    A run that starts from a sparse one takes its lambda. Elsewhere a start above
    ``sv_sparse.optim.largest_initial_lambda`` of the weights is lowered to it.

    Args:
        config: of the run.
        source: what the run starts from.
        groups: as ``build_param_groups`` returns them.
    """
    if config.sparsity.controller_name == "fixed":
        return {}
    if source is not None and source.lambda_ > 0:
        return {"lambda_init": source.lambda_}
    regularized = [group for group in groups if group["penalty"] != "none"]
    params = [param for group in regularized for _, param in group["params"]]
    if not params:
        return {}
    delta = getattr(config.optim, "delta", 1.0)
    max_lambda = largest_initial_lambda(params, delta=delta, penalty=regularized[0]["penalty"])
    if max_lambda >= config.optim.lambda_init:
        return {}
    logger.info("lambda starts at %.3g: optim.lambda_init is large compared with the weights", max_lambda)
    return {"lambda_init": max_lambda}
