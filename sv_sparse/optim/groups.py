"""Parameter groups of a network: which weights may become zero, the sparse start, counts of zeros.

Every parameter that is trained is in exactly one group. The type of the module that holds it decides, or its name
where the caller gives it. What neither decides is an error, never a guess.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

from sv_sparse.optim.validation import require_number

ModuleTypes = tuple[type[nn.Module], ...]

SPARSE_TYPES: ModuleTypes = (
    # Conv1d to Conv3d and ConvTranspose1d to ConvTranspose3d.
    _ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    # RNN, LSTM, GRU.
    nn.RNNBase,
    nn.RNNCellBase,
)
DENSE_TYPES: ModuleTypes = (
    _BatchNorm,
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)

# Types of Hugging Face's transformers and of copies of them; by name, so that nothing is imported.
_GPT2_LINEAR = "Conv1D"
_DENSE_SUFFIXES = ("RMSNorm", "LayerNorm")

# Parameters of one type that an error names.
_MAX_NAMES_IN_ERROR = 3
_WEIGHT_NORM_PROBLEM = (
    "weight normalization divides by the norm of a row, so that a row of zeros would be NaN: "
    "remove the normalization or keep it dense"
)


class _Use(NamedTuple):
    """Use of a parameter by one module."""

    # Name of the parameter, as this module has it.
    name: str
    param: nn.Parameter
    # ``"sparse"``, ``"dense"``, or None where the module does not decide.
    kind: str | None
    # The weights are [input channels, output channels, ...].
    transposed: bool
    type_name: str
    # Reason why a module of a known type does not decide.
    problem: str | None


def param_groups(
    module: nn.Module,
    *,
    sparse: str | Sequence[str] = (),
    dense: str | Sequence[str] = (),
    sparse_types: Sequence[type[nn.Module]] = SPARSE_TYPES,
    dense_types: Sequence[type[nn.Module]] = DENSE_TYPES,
    penalty: str | None = None,
    per_weight: bool = False,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: ``sparse``, whose weights may become zero, and ``dense``.

    - Weights of ``sparse_types`` are sparse. So are those of a class named ``Conv1D`` with a weight of two axes
      (GPT-2's linear layer, [inputs, outputs]).
    - Everything in ``dense_types`` is dense, and so is any class whose name ends in ``RMSNorm`` or ``LayerNorm``.
    - A parameter with at most one axis longer than 1 (a bias, a gain) is dense in any module.
    - A tied parameter appears once, under its first name. It is dense if any of its uses is dense: an output layer
      that shares its weight with an embedding is dense, unless ``sparse`` names it.
    - Frozen parameters (``requires_grad=False``) are left out. Once they are trained, add them with
      ``optimizer.add_param_group``.
    - Of a pruned or spectrally normalized weight, the original is sparse: its zeros are zeros of the weight.

    Args:
        module: network; of one that torch.compile returned, names are those of the network inside.
        sparse: full names, as ``named_parameters`` has them, of parameters that may become zero in any module. The
            name of a module stands for all its parameters with two or more axes longer than 1. The longest name that
            matches decides.
        dense: names of parameters, or of modules with all their parameters, that stay dense.
        sparse_types: module types whose weights may become zero. Default: SPARSE_TYPES.
        dense_types: module types whose parameters stay dense. Default: DENSE_TYPES.
        penalty: of the sparse groups: ``"l1"``, ``"l0"``, ``"group"``, or ``"none"`` for dense training or for pruning
            by masks. None: that of the optimizer. Default: None.
        per_weight: make each sparse weight a group of its own, which a controller's ``allocation`` of ``"uniform"`` or
            ``"erk"`` needs. Default: False.

    Returns:
        Groups with ``name``, ``params`` as (name, parameter) pairs, ``penalty`` and ``prunable`` (True in the sparse
        groups, for GradualMagnitudePruning); empty groups are left out. Sparse weights that are [input channels,
        output channels, ...] (ConvTranspose, Conv1D) are a second group ``sparse`` with ``transposed=True``.

    Raises:
        ValueError: parameters that nothing decides (all are listed), a name that matches nothing, or a lazy layer that
            has not been initialized.

    >>> groups = param_groups(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    >>> [(group["name"], [name for name, _ in group["params"]]) for group in groups]
    [('sparse', ['0.weight']), ('dense', ['0.bias', '1.weight', '1.bias'])]
    """
    # torch.compile wraps a module and puts a prefix before its names.
    module = getattr(module, "_orig_mod", module)
    names = {"sparse": _as_names(sparse, "sparse"), "dense": _as_names(dense, "dense")}
    _check_names(module, names)
    uses_by_param: dict[nn.Parameter, list[_Use]] = {}
    for use in _iter_uses(module, tuple(sparse_types), tuple(dense_types)):
        if is_lazy(use.param):
            raise ValueError(f"{use.name} has no shape yet: run a forward pass first")
        uses_by_param.setdefault(use.param, []).append(use)
    sparse_pairs: list[tuple[str, nn.Parameter]] = []
    transposed_pairs: list[tuple[str, nn.Parameter]] = []
    dense_pairs: list[tuple[str, nn.Parameter]] = []
    undecided: list[_Use] = []
    for param, uses in uses_by_param.items():
        if not param.requires_grad:
            continue
        kind = _kind_by_name(uses, names) or _kind_by_type(uses)
        pair = (uses[0].name, param)
        if kind is None:
            undecided.append(next(use for use in uses if use.kind is None))
        elif kind == "dense":
            dense_pairs.append(pair)
        elif uses[0].transposed:
            transposed_pairs.append(pair)
        else:
            sparse_pairs.append(pair)
    if undecided:
        raise ValueError(_undecided_message(undecided))
    keys = {"name": "sparse", "prunable": True} | ({} if penalty is None else {"penalty": penalty})
    groups: list[dict[str, Any]] = [
        {"params": sparse_pairs, **keys},
        {"params": transposed_pairs, **keys, "transposed": True},
    ]
    if per_weight:
        groups = [{**group, "params": [pair]} for group in groups for pair in group["params"]]
    groups.append({"name": "dense", "params": dense_pairs, "penalty": "none", "prunable": False})
    return [group for group in groups if group["params"]]


@torch.no_grad()
def sparse_init_(
    params: Iterable[Any],
    *,
    density: float = 0.01,
    rescale: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Zero each weight with probability ``1 - density``, in place: a Bregman run starts sparse.

    Call it before the optimizer is made, and not on pretrained weights, which it would destroy. Every output channel
    keeps at least one weight: a channel of zeros behind batch normalization and ReLU passes no gradient, so that its
    weights would stay zero (DECISIONS 10).

    Args:
        params: groups that ``param_groups`` returns, of which those with a penalty are taken; or sparse parameters, or
            (name, parameter) pairs. They are [output channels, ...], in groups with ``transposed`` [input channels,
            output channels, ...], on the device of ``generator``.
        density: probability that a weight stays, in (0, 1]. Default: 0.01.
        rescale: multiply what stays by ``1 / sqrt(fraction that stays)``, which keeps the variance of each layer's
            output. Default: True.
        generator: random generator of the mask. Default: torch's.

    Raises:
        ValueError: ``density`` is out of its bounds, or a parameter has fewer than two axes.

    >>> layer = nn.Linear(1000, 100)
    >>> sparse_init_(param_groups(layer))
    >>> bool((layer.weight != 0).any(1).all())
    True
    """
    require_number("density", density, "above 0 and at most 1", above=0, at_most=1)
    for param, transposed in _iter_sparse_params(params):
        if param.ndim < 2:
            raise ValueError(f"sparse parameters have two axes or more, got one of shape {tuple(param.shape)}")
        shape = param.transpose(0, 1).shape if transposed else param.shape
        if not param.numel():
            continue
        mask = torch.empty(shape, device=param.device).bernoulli_(density, generator=generator)
        rows = mask.view(len(mask), -1)
        columns = torch.randint(rows.shape[1], (len(rows), 1), generator=generator, device=param.device)
        rows.scatter_(1, columns, torch.where(rows.any(1, keepdim=True), rows.gather(1, columns), 1.0))
        factors = mask / mask.mean().sqrt() if rescale else mask
        param.mul_(factors.transpose(0, 1) if transposed else factors)


def count_zeros(params: Sequence[Tensor]) -> Tensor:
    """Return the number of exact zeros, a 0-dim int64 tensor on the device; nothing waits for the device.

    >>> count_zeros([torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0]])])
    tensor(3)
    """
    counts = torch.stack([torch.count_nonzero(param) for param in params])
    return sum(param.numel() for param in params) - counts.sum()


def sparsity(params: Sequence[Tensor]) -> Tensor:
    """Return the fraction of exact zeros over all ``params``, a 0-dim float32 tensor on the device.

    >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0]])])
    tensor(0.7500)
    """
    return count_zeros(params).float() / sum(param.numel() for param in params)


def summary_table(groups: Iterable[dict[str, Any]]) -> str:
    """Return the groups as a Markdown table; frozen parameters are in no group, and so not in the table.

    Args:
        groups: as ``param_groups`` returns them, or an optimizer's ``param_groups``. Groups without a penalty are shown
            with the optimizers' default, l1.

    >>> print(summary_table(param_groups(nn.Linear(4, 3))))
    | group | tensors | parameters | penalty |
    |---|---:|---:|---|
    | sparse | 1 | 12 | l1 |
    | dense | 1 | 3 | none |
    """
    sizes: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        params = [param[1] if isinstance(param, tuple) else param for param in group["params"]]
        key = group.get("name", ""), group.get("penalty", "l1")
        sizes.setdefault(key, []).extend(param.numel() for param in params)
    rows = ["| group | tensors | parameters | penalty |", "|---|---:|---:|---|"]
    for (name, penalty), numels in sizes.items():
        rows.append(f"| {name} | {len(numels)} | {sum(numels):,} | {penalty} |")
    return "\n".join(rows)


def _iter_sparse_params(params: Iterable[Any]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each weight to make sparse, and whether its output channels are on the second axis."""
    if isinstance(params, nn.Module):
        raise ValueError("sparse_init_ takes groups or weights, got a module: call sparse_init_(param_groups(module))")
    for entry in [params] if isinstance(params, (Tensor, dict)) else params:
        if not isinstance(entry, dict):
            yield entry[1] if isinstance(entry, tuple) else entry, False
        elif entry.get("penalty", "l1") != "none":
            for param, _ in _iter_sparse_params(entry["params"]):
                yield param, bool(entry.get("transposed", False))


def _as_names(names: str | Sequence[str], argument: str) -> tuple[str, ...]:
    as_tuple = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    for name in as_tuple:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{argument} must be names of parameters or modules, got {name!r}")
    return as_tuple


def _check_names(module: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
    """Raise a ValueError for a name that matches no parameter, or is both sparse and dense."""
    param_names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    for argument, argument_names in names.items():
        for name in argument_names:
            if not any(_matches(name, param_name) for param_name in param_names):
                hint = _similar_names(name, param_names)
                raise ValueError(f"{argument} names {name!r}, which is no parameter or module with parameters; {hint}")
    both = sorted(set(names["sparse"]) & set(names["dense"]))
    if both:
        raise ValueError(f"named both sparse and dense: {', '.join(both)}")


def _matches(name: str, param_name: str) -> bool:
    return param_name == name or param_name.startswith(f"{name}.")


def _similar_names(name: str, param_names: Sequence[str]) -> str:
    """Return a hint with names of modules and parameters that are similar."""
    prefixes: set[str] = set()
    for param_name in param_names:
        parts = param_name.split(".")
        prefixes.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    ordered = sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))
    similar = [prefix for prefix in ordered if f".{name}." in f".{prefix}."]
    similar += [prefix for prefix in difflib.get_close_matches(name, ordered, 5) if prefix not in similar]
    return f"near are {', '.join(similar[:5])}" if similar else f"names begin with {', '.join(ordered[:5])}"


def _kind_by_name(uses: Sequence[_Use], names: Mapping[str, Sequence[str]]) -> str | None:
    """Return the kind that the longest matching name says; any of a tied parameter's names may match."""
    is_vector = _is_vector(uses[0].param)
    matches: list[tuple[int, str]] = []
    for kind, kind_names in names.items():
        for name in kind_names:
            is_exact = any(use.name == name for use in uses)
            is_inside = any(_matches(name, use.name) for use in uses)
            if is_exact or (is_inside and (kind == "dense" or not is_vector)):
                matches.append((len(name), kind))
    return max(matches)[1] if matches else None


def _kind_by_type(uses: Sequence[_Use]) -> str | None:
    kinds = {use.kind for use in uses}
    if "dense" in kinds:
        return "dense"
    return None if None in kinds else "sparse"


def _is_vector(param: Tensor) -> bool:
    """Return whether at most one axis is longer than 1, as of a bias or a gain."""
    return sum(length > 1 for length in param.shape) <= 1


def _iter_uses(module: nn.Module, sparse_types: ModuleTypes, dense_types: ModuleTypes) -> Iterator[_Use]:
    """Yield every use of every parameter, under every name, in the order of ``named_parameters``."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for prefix, child in modules.items():
        owner = child
        parametrization_problem = None
        if isinstance(child, ParametrizationList):
            owner_name, _, tensor_name = f".{prefix}".rpartition(".parametrizations.")
            owner = modules[owner_name.removeprefix(".")]
            parametrization_problem = _parametrization_problem(child, tensor_name)
        type_kind = _kind_of_type(owner, sparse_types, dense_types)
        for name, param in child.named_parameters(prefix, recurse=False, remove_duplicate=False):
            kind = type_kind
            problem = parametrization_problem
            last_part = name.rpartition(".")[2]
            # nn.utils.weight_norm.
            if last_part.endswith("_v") and f"{last_part[:-2]}_g" in child._parameters:
                problem = _WEIGHT_NORM_PROBLEM
            if not is_lazy(param) and _is_vector(param):
                kind = "dense"
                problem = None
            elif kind == "sparse" and problem is not None:
                kind = None
            if kind is not None:
                problem = None
            yield _Use(name, param, kind, _is_transposed(owner), type(owner).__name__, problem)


def _parametrization_problem(parametrizations: ParametrizationList, tensor_name: str) -> str | None:
    """Return the reason why zeros of the original are no zeros of the weight; None where they are."""
    for parametrization in parametrizations:
        if isinstance(parametrization, _WeightNorm):
            return _WEIGHT_NORM_PROBLEM
        # Spectral norm divides the weight by one number: its zeros stay zeros.
        if not isinstance(parametrization, _SpectralNorm):
            name = type(parametrization).__name__.removeprefix("_")
            return f"zeros of the original are no zeros of the {tensor_name} that {name} makes of it: keep it dense"
    return None


def _kind_of_type(module: nn.Module, sparse_types: ModuleTypes, dense_types: ModuleTypes) -> str | None:
    if isinstance(module, sparse_types):
        return "sparse"
    if isinstance(module, dense_types):
        return "dense"
    if _is_gpt2_linear(module):
        return "sparse"
    if any(base.__name__.endswith(_DENSE_SUFFIXES) for base in type(module).__mro__):
        return "dense"
    return None


def _is_transposed(module: nn.Module) -> bool:
    """Return whether weights are [input channels, output channels, ...]."""
    if isinstance(module, _ConvTransposeNd):
        # with groups, the second axis has the output channels of one group only, and the first the groups
        return module.groups == 1
    return _is_gpt2_linear(module)


def _is_gpt2_linear(module: nn.Module) -> bool:
    """Return whether this is GPT-2's linear layer or a copy: called Conv1D, with a weight [inputs, outputs]."""
    weight = getattr(module, "weight", None)
    is_named_so = any(base.__name__ == _GPT2_LINEAR for base in type(module).__mro__)
    return is_named_so and isinstance(weight, Tensor) and weight.ndim == 2


def _undecided_message(undecided: Sequence[_Use]) -> str:
    """Return an error that lists undecided parameters by type and says how to decide."""
    by_type: dict[tuple[str, str | None], list[_Use]] = {}
    for use in undecided:
        by_type.setdefault((use.type_name, use.problem), []).append(use)
    lines = ["cannot tell which of these parameters may become zero:"]
    for (type_name, problem), uses in by_type.items():
        names = ", ".join(use.name for use in uses[:_MAX_NAMES_IN_ERROR])
        num_more = len(uses) - _MAX_NAMES_IN_ERROR
        more = f" and {num_more} more" if num_more > 0 else ""
        size = sum(use.param.numel() for use in uses)
        reason = f"; {problem}" if problem is not None else ""
        lines.append(f"  {type_name}: {names}{more}, {size:,} parameters{reason}")
    with_problem = tuple(use.name for use in undecided if use.problem is not None)
    of_unknown_type = [use for use in undecided if use.problem is None]
    if with_problem:
        lines.append(f"keep these dense, for the reasons above: param_groups(..., dense={with_problem})")
    if of_unknown_type:
        type_names = ", ".join(dict.fromkeys(use.type_name for use in of_unknown_type))
        name = of_unknown_type[0].name
        lines.append(
            f'decide by name, param_groups(..., dense=("{name}",)) or sparse=("{name}",), or by type, '
            f"dense_types=(*DENSE_TYPES, {type_names}) or sparse_types=(*SPARSE_TYPES, {type_names})"
        )
    return "\n".join(lines)
