"""Checks of parameters and saved states: what cannot work is refused before anything changes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sv_sparse.optim.validation import require

# A parameter group.
Group = dict[str, Any]
# State with the parameter's shape.
_PARAM_SHAPED_KEYS = ("dual", "exp_avg", "exp_avg_sq", "momentum_buffer")
# Hyperparameters that only some optimizers have.
_DISTINGUISHING_KEYS = {"betas", "momentum"}


def param_name(group: Mapping[str, Any], index: int, group_index: int) -> str:
    """Return a parameter's name for a message.

    Args:
        group: its group, which has the name if parameters came with names.
        index: of the parameter in the group.
        group_index: of the group in the optimizer.
    """
    names = group.get("param_names")
    return names[index] if names else f"parameter {index} of group {group_index}"


def check_parameter(param: Tensor, name: str, optimizer: str) -> None:
    """Raise a ValueError if a parameter has no shape yet, is complex, or is sharded over processes."""
    if nn.parameter.is_lazy(param):
        raise ValueError(
            f"{name} has no shape yet (a lazy layer): run a batch through the model before making {optimizer}"
        )
    if param.is_complex():
        raise ValueError(f"{name} must be real, got {param.dtype}: train torch.view_as_real of it")
    # by name, since importing torch.distributed.tensor takes long and may not be possible
    if any(base.__name__ == "DTensor" for base in type(param).__mro__):
        raise ValueError(
            f"{name} is a DTensor, sharded over processes (fully_shard, tensor parallelism), which {optimizer} does "
            f"not support: use DistributedDataParallel"
        )


def check_shapes(name: str, param: Tensor, state: Mapping[str, Any]) -> None:
    """Raise a ValueError with both shapes if a parameter's state has another shape; foreign entries do not count."""
    for key in _PARAM_SHAPED_KEYS:
        value = state.get(key)
        if value is not None and value.shape != param.shape:
            raise ValueError(
                f"{name} has shape {tuple(param.shape)} and its {key} {tuple(value.shape)}: the state is of another "
                f"parameter, or this one was resized. Make a new optimizer, or del optimizer.state[param] to start "
                f"this parameter anew"
            )


def check_state_dict(
    state_dict: Mapping[str, Any],
    groups: Sequence[Group],
    *,
    optimizer: str,
    group_keys: Collection[str],
    state_keys: Collection[str],
) -> None:
    """Raise a ValueError if a saved state is not of this optimizer's parameters.

    It is refused if it is of another optimizer, another penalty, other shapes or another order of parameters.

    Args:
        state_dict: saved state, after all hooks.
        groups: the optimizer's own groups.
        optimizer: name of its class.
        group_keys: hyperparameters that groups of this class have, and those of other classes lack.
        state_keys: entries of a parameter's state after its first step.
    """
    if not {"state", "param_groups"} <= set(state_dict):
        keys = ", ".join(map(str, state_dict))
        raise ValueError(f"the state of an optimizer has state and param_groups, got {keys}")
    for group_index, (saved, group) in enumerate(zip(state_dict["param_groups"], groups, strict=False)):
        if not set(group_keys) <= set(saved) or (_DISTINGUISHING_KEYS & set(saved)) - set(group_keys):
            raise ValueError(f"this is a state of {_optimizer_of(saved)}, and {optimizer} loads its own only")
        for key in ("penalty", "granularity"):
            require(saved[key] == group[key], f"a saved group's {key}", saved[key], f"the group's own, {group[key]!r}")
        _check_order(saved, group)
        for index, (saved_index, param) in enumerate(zip(saved["params"], group["params"], strict=False)):
            state = state_dict["state"].get(saved_index, {})
            name = param_name(group, index, group_index)
            missing = [key for key in state_keys if state.get(key) is None]
            if missing and len(missing) < len(state_keys):
                raise ValueError(f"the saved state of {name} lacks {', '.join(missing)}")
            check_shapes(name, param, state)


def _optimizer_of(group: Mapping[str, Any]) -> str:
    """Return which optimizer a saved group is of, as far as its hyperparameters tell."""
    has_lambda = "lambda_" in group
    if "betas" in group:
        name = "AdaBreg" if has_lambda else "torch.optim.Adam or AdamW"
    elif "momentum" in group:
        name = "LinBreg" if has_lambda else "torch.optim.SGD"
    else:
        name = "ProxSGD" if has_lambda else "another optimizer"
    keys = sorted(key for key in group if key not in {"params", "param_names"})
    return f"{name} (its groups have {', '.join(keys)})"


def _check_order(saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Raise a ValueError if the same names are in another order; other names may be those of a wrapped model."""
    saved_names, names = saved.get("param_names"), group.get("param_names")
    if not saved_names or not names or sorted(saved_names) != sorted(names):
        return
    for index, (saved_name, name) in enumerate(zip(saved_names, names, strict=True)):
        if saved_name != name:
            raise ValueError(
                f"the saved state has {saved_name} where the optimizer has {name} (position {index} of the group): "
                f"parameters must be in the same order; register_load_state_dict_pre_hook can reorder them"
            )
