"""Check parameters and saved states, so that what cannot work is refused before anything changes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sv_sparse.optim.checks import check

Group = dict[str, Any]
_SHAPED = ("dual", "mask", "exp_avg", "exp_avg_sq", "momentum_buffer")  # entries of the parameter's shape
_TELLING = {"betas", "momentum"}  # settings that only some optimizers have


def name_of(group: Mapping[str, Any], position: int, number: int) -> str:
    """Return a parameter's name for an error.

    Args:
        group: its group, which knows the name if parameters came with names.
        position: of the parameter in the group.
        number: of the group in the optimizer.
    """
    names = group.get("param_names")
    return names[position] if names else f"parameter {position} of group {number}"


def check_parameter(param: Tensor, name: str, optimizer: str) -> None:
    """Refuse a parameter that no step can be made of.

    Raises:
        ValueError: it is not initialized yet, complex, or distributed over processes.
    """
    if nn.parameter.is_lazy(param):
        raise ValueError(
            f"{name} has no shape yet (a lazy layer): run a batch through the model before making {optimizer}"
        )
    if param.is_complex():
        raise ValueError(f"{name} must be real, got {param.dtype}: train torch.view_as_real of it")
    # by name, since importing torch.distributed.tensor takes long and may not be possible
    if any(kind.__name__ == "DTensor" for kind in type(param).__mro__):
        raise ValueError(
            f"{name} is a DTensor, sharded over processes (fully_shard, tensor parallelism), which {optimizer} does "
            f"not support: use DistributedDataParallel"
        )


def check_shapes(name: str, param: Tensor, state: Mapping[str, Any]) -> None:
    """Refuse a state of other shapes than the parameter has.

    Entries that somebody else has added are not looked at.

    Raises:
        ValueError: names the parameter and both shapes.
    """
    for key in _SHAPED:
        value = state.get(key)
        if value is not None and value.shape != param.shape:
            raise ValueError(
                f"{name} has shape {tuple(param.shape)} and its {key} {tuple(value.shape)}: the state is of another "
                f"parameter, or this one was resized. Make a new optimizer, or del optimizer.state[param] to start "
                f"this parameter anew"
            )


def check_saved_state(
    saved: Mapping[str, Any],
    groups: Sequence[Group],
    *,
    optimizer: str,
    settings: Collection[str],
    keys: Collection[str],
) -> None:
    """Refuse a saved state that is not of this optimizer's parameters.

    Args:
        saved: what ``state_dict`` returned, after all hooks.
        groups: the optimizer's own.
        optimizer: name of its class.
        settings: that groups of this class have, and those of other classes lack.
        keys: that the state of a parameter has after its first step.

    Raises:
        ValueError: it is of another optimizer, another regularizer, other shapes or another order of parameters.
    """
    if not {"state", "param_groups"} <= set(saved):
        raise ValueError(f"the state of an optimizer has state and param_groups, got {', '.join(map(str, saved))}")
    for number, (old, group) in enumerate(zip(saved["param_groups"], groups, strict=False)):
        if not set(settings) <= set(old) or (_TELLING & set(old)) - set(settings):
            raise ValueError(f"this is a state of {_kind_of(old)}, and {optimizer} loads its own only")
        for key in ("regularizer", "grouping"):
            check(old[key] == group[key], f"a saved group's {key}", old[key], f"the group's own, {group[key]!r}")
        _check_order(old, group)
        for position, (index, param) in enumerate(zip(old["params"], group["params"], strict=False)):
            state = saved["state"].get(index, {})
            name = name_of(group, position, number)
            missing = [key for key in keys if state.get(key) is None]
            if missing and len(missing) < len(keys):
                raise ValueError(f"the saved state of {name} lacks {', '.join(missing)}")
            check_shapes(name, param, state)


def _kind_of(group: Mapping[str, Any]) -> str:
    """Return in words which optimizer a saved group is of, as far as its settings tell."""
    ours = "lambda_" in group
    if "betas" in group:
        kind = "AdaBreg" if ours else "torch.optim.Adam or AdamW"
    elif "momentum" in group:
        kind = "LinBreg" if ours else "torch.optim.SGD"
    else:
        kind = "ProxSGD" if ours else "another optimizer"
    settings = sorted(key for key in group if key not in {"params", "param_names"})
    return f"{kind} (its groups have {', '.join(settings)})"


def _check_order(saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Raise a ValueError if the same names are in another order; names that differ may be of a wrapped model."""
    before, now = saved.get("param_names"), group.get("param_names")
    if not before or not now or sorted(before) != sorted(now):
        return
    for position, (old, name) in enumerate(zip(before, now, strict=True)):
        if old != name:
            raise ValueError(
                f"the saved state has {old} where the optimizer has {name} (position {position} of the group): "
                f"parameters must be in the same order; register_load_state_dict_pre_hook can reorder them"
            )
