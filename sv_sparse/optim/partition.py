"""Which parameters are sparse, how a sparse run starts, and how sparsity is counted.

Every parameter that is trained lands in exactly one group.
The type of the module that holds it decides, or its name where the caller gives it.
What neither decides is an error, never a guess.
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

from sv_sparse.optim.checks import check_number

SPARSE_TYPES: tuple[type[nn.Module], ...] = (
    _ConvNd,  # Conv1d to Conv3d and ConvTranspose1d to ConvTranspose3d
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,  # RNN, LSTM, GRU
    nn.RNNCellBase,
)
DENSE_TYPES: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)

# Types that a program may have without torch having them: Hugging Face's, or a copy of them. Nothing is imported.
_GPT2_LINEAR = "Conv1D"
_DENSE_ENDINGS = ("RMSNorm", "LayerNorm")

_NAMES_SHOWN = 3  # of each type in an error


class _Use(NamedTuple):
    """One place at which a parameter lies in a network."""

    name: str
    param: nn.Parameter
    kind: str | None  # "sparse", "dense", or None where the place does not decide
    transposed: bool
    type_name: str
    problem: str | None  # why a place of a known type does not decide


def partition(
    module: nn.Module,
    *,
    sparse: str | Sequence[str] = (),
    dense: str | Sequence[str] = (),
    sparse_types: Sequence[type[nn.Module]] = SPARSE_TYPES,
    dense_types: Sequence[type[nn.Module]] = DENSE_TYPES,
    regularizer: str = "l1",
) -> list[dict[str, Any]]:
    """Return parameter groups for LinBreg and AdaBreg: ``sparse`` (regularized) and ``dense`` (lambda leaves it alone).

    - Weights of ``sparse_types`` are sparse. So are those of a class named ``Conv1D`` with a weight of two axes
      (GPT-2's linear layer, [inputs, outputs]).
    - Everything in ``dense_types`` is dense, and so is any class whose name ends in ``RMSNorm`` or ``LayerNorm``.
    - A parameter with at most one axis longer than 1 (a bias, a gain) is dense wherever it lies.
    - A tied parameter appears once, under its first name. It is dense if any of its uses is dense: an output layer
      that shares its weight with an embedding is dense, unless ``sparse`` names it.
    - Frozen parameters (``requires_grad=False``) are left out. Once they are trained, add them with
      ``optimizer.add_param_group``.
    - Of a pruned or spectrally normalized weight, the original is sparse: its zeros are zeros of the weight.

    Args:
        module: the network; of one that torch.compile returned, names are those of the network inside.
        sparse: full names, as ``named_parameters`` has them, of parameters that may become zero, whatever holds them.
            The name of a module stands for all its parameters with two or more axes longer than 1. The longest name
            that fits decides.
        dense: names of parameters, or of modules with all their parameters, that stay dense.
        sparse_types: module types whose weights may become zero.
        dense_types: module types whose parameters stay dense.
        regularizer: of the sparse group; ``"none"`` trains the whole network dense.

    Returns:
        Groups with ``name``, ``params`` as (name, parameter) pairs, and ``regularizer``; empty groups are left out.
        Sparse weights laid out as [input channels, output channels, ...] (ConvTranspose, Conv1D) are a second group
        of the name ``sparse``, which also has ``transposed=True``.

    Raises:
        ValueError: parameters of which nothing says what they are (all are listed), a name that fits nothing, or a
            lazy layer that has not been initialized.

    >>> groups = partition(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    >>> [(group["name"], [name for name, _ in group["params"]]) for group in groups]
    [('sparse', ['0.weight']), ('dense', ['0.bias', '1.weight', '1.bias'])]
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    named = {"sparse": _as_names(sparse, "sparse"), "dense": _as_names(dense, "dense")}
    _check_names(module, named)
    uses: dict[nn.Parameter, list[_Use]] = {}
    for use in _uses(module, tuple(sparse_types), tuple(dense_types)):
        if is_lazy(use.param):
            raise ValueError(f"{use.name} has no shape yet: run a forward pass first")
        uses.setdefault(use.param, []).append(use)
    ordinary: list[tuple[str, nn.Parameter]] = []
    transposed: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    undecided: list[_Use] = []
    for param, places in uses.items():
        if not param.requires_grad:
            continue
        kind = _by_name(places, named) or _by_type(places)
        pair = (places[0].name, param)
        if kind is None:
            undecided.append(next(use for use in places if use.kind is None))
        elif kind == "dense":
            rest.append(pair)
        elif places[0].transposed:
            transposed.append(pair)
        else:
            ordinary.append(pair)
    if undecided:
        raise ValueError(_undecided_message(undecided))
    groups: list[dict[str, Any]] = [
        {"name": "sparse", "params": ordinary, "regularizer": regularizer},
        {"name": "sparse", "params": transposed, "regularizer": regularizer, "transposed": True},
        {"name": "dense", "params": rest, "regularizer": "none"},
    ]
    return [group for group in groups if group["params"]]


def _as_names(names: str | Sequence[str], argument: str) -> tuple[str, ...]:
    listed = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    for name in listed:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{argument} must be names of parameters or modules, got {name!r}")
    return listed


def _check_names(module: nn.Module, named: Mapping[str, Sequence[str]]) -> None:
    """Refuse names that fit no parameter, and names that are said to be both."""
    params = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    for argument, names in named.items():
        for name in names:
            if not any(_fits(name, param) for param in params):
                near = _near(name, params)
                raise ValueError(f"{argument} names {name!r}, which is no parameter or module with parameters; {near}")
    both = sorted(set(named["sparse"]) & set(named["dense"]))
    if both:
        raise ValueError(f"named both sparse and dense: {', '.join(both)}")


def _fits(name: str, param: str) -> bool:
    return param == name or param.startswith(f"{name}.")


def _near(name: str, params: Sequence[str]) -> str:
    """Say which names are near."""
    parts = [param.split(".") for param in params]
    prefixes = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
    ordered = sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))
    near = [prefix for prefix in ordered if f".{prefix}.".find(f".{name}.") >= 0]
    near += [prefix for prefix in difflib.get_close_matches(name, ordered, 5) if prefix not in near]
    return f"near are {', '.join(near[:5])}" if near else f"names begin with {', '.join(ordered[:5])}"


def _by_name(places: Sequence[_Use], named: Mapping[str, Sequence[str]]) -> str | None:
    """Return what the longest name that fits says; of tied parameters, any of their names."""
    fitting: list[tuple[int, str]] = []
    for kind, names in named.items():
        for name in names:
            exact = any(use.name == name for use in places)
            within = any(_fits(name, use.name) for use in places)
            if exact or (within and (kind == "dense" or not _is_thin(places[0].param))):
                fitting.append((len(name), kind))
    return max(fitting)[1] if fitting else None


def _by_type(places: Sequence[_Use]) -> str | None:
    kinds = {use.kind for use in places}
    if "dense" in kinds:
        return "dense"
    return None if None in kinds else "sparse"


def _is_thin(param: Tensor) -> bool:
    """Return whether at most one axis is longer than 1, as of a bias or a gain."""
    return sum(length > 1 for length in param.shape) <= 1


def _uses(
    module: nn.Module, sparse_types: tuple[type[nn.Module], ...], dense_types: tuple[type[nn.Module], ...]
) -> Iterator[_Use]:
    """Yield every place of every parameter, under every name, in the order of ``named_parameters``."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for prefix, child in modules.items():
        owner, problem = child, None
        if isinstance(child, ParametrizationList):
            owner_name, _, tensor_name = prefix.rpartition(".parametrizations.")
            if not prefix.startswith("parametrizations."):
                owner = modules[owner_name]
            else:
                owner, tensor_name = module, prefix.removeprefix("parametrizations.")
            problem = _parametrization_problem(child, tensor_name)
        kind = _type_kind(owner, sparse_types, dense_types)
        for name, param in child.named_parameters(prefix, recurse=False, remove_duplicate=False):
            trouble = problem
            last = name.rpartition(".")[2]
            if last.endswith("_v") and f"{last[:-2]}_g" in child._parameters:
                trouble = _WEIGHT_NORM
            if not is_lazy(param) and _is_thin(param):
                decided, trouble = "dense", None
            elif kind == "sparse" and trouble is not None:
                decided = None
            else:
                decided = kind
            type_name = type(owner).__name__
            yield _Use(name, param, decided, _is_transposed(owner), type_name, trouble if decided is None else None)


_WEIGHT_NORM = (
    "weight normalization divides by the norm of a row, so that a row of zeros would be NaN: "
    "remove the normalization or keep it dense"
)


def _parametrization_problem(parametrizations: ParametrizationList, tensor_name: str) -> str | None:
    """Say why zeros of the original are no zeros of the weight; None where they are."""
    for each in parametrizations:
        if isinstance(each, _WeightNorm):
            return _WEIGHT_NORM
        if not isinstance(each, _SpectralNorm):  # which divides the whole weight by one number
            name = type(each).__name__.removeprefix("_")
            return f"zeros of the original are no zeros of the {tensor_name} that {name} makes of it: keep it dense"
    return None


def _type_kind(
    module: nn.Module, sparse_types: tuple[type[nn.Module], ...], dense_types: tuple[type[nn.Module], ...]
) -> str | None:
    if isinstance(module, sparse_types):
        return "sparse"
    if isinstance(module, dense_types):
        return "dense"
    if _is_gpt2_linear(module):
        return "sparse"
    if any(each.__name__.endswith(_DENSE_ENDINGS) for each in type(module).__mro__):
        return "dense"
    return None


def _is_transposed(module: nn.Module) -> bool:
    """Return whether weights are [input channels, output channels, ...]."""
    if isinstance(module, _ConvTransposeNd):
        return module.groups == 1  # else the output channels of a group are on the second axis, and groups on the first
    return _is_gpt2_linear(module)


def _is_gpt2_linear(module: nn.Module) -> bool:
    """Return whether this is GPT-2's linear layer or a copy: called Conv1D, with a weight [inputs, outputs]."""
    weight = getattr(module, "weight", None)
    named = any(each.__name__ == _GPT2_LINEAR for each in type(module).__mro__)
    return named and isinstance(weight, Tensor) and weight.ndim == 2


def _undecided_message(undecided: Sequence[_Use]) -> str:
    """List what nothing decides, by type, and say how to decide it."""
    kinds: dict[tuple[str, str | None], list[_Use]] = {}
    for use in undecided:
        kinds.setdefault((use.type_name, use.problem), []).append(use)
    lines = ["cannot tell which of these parameters may become zero:"]
    for (type_name, problem), uses in kinds.items():
        names = ", ".join(use.name for use in uses[:_NAMES_SHOWN])
        more = f" and {len(uses) - _NAMES_SHOWN} more" if len(uses) > _NAMES_SHOWN else ""
        count = sum(use.param.numel() for use in uses)
        reason = f"; {problem}" if problem is not None else ""
        lines.append(f"  {type_name}: {names}{more}, {count:,} parameters{reason}")
    problems = [use.name for use in undecided if use.problem is not None]
    free = [use for use in undecided if use.problem is None]
    if problems:
        lines.append(f"keep dense what is said to have to be: partition(..., dense={tuple(problems)})")
    if free:
        listed = ", ".join(dict.fromkeys(use.type_name for use in free))
        first = free[0].name
        lines.append(
            f'say it by name, partition(..., dense=("{first}",)) or sparse=("{first}",), or by type, '
            f"dense_types=(*DENSE_TYPES, {listed}) or sparse_types=(*SPARSE_TYPES, {listed})"
        )
    return "\n".join(lines)


def describe(groups: Iterable[dict[str, Any]]) -> str:
    """Return the partition as a Markdown table.

    Frozen parameters are in no group, and so not in the table.

    Args:
        groups: as ``partition`` returns them, or an optimizer's ``param_groups``.
    """
    sizes: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        params = [param[1] if isinstance(param, tuple) else param for param in group["params"]]
        sizes.setdefault((group.get("name", ""), group["regularizer"]), []).extend(param.numel() for param in params)
    rows = ["| group | tensors | parameters | regularizer |", "|---|---:|---:|---|"]
    rows += [f"| {name} | {len(each)} | {sum(each):,} | {kind} |" for (name, kind), each in sizes.items()]
    return "\n".join(rows)


@torch.no_grad()
def sparse_init_(
    params: Iterable[Any],
    *,
    density: float = 0.01,
    rescale: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Zero each weight with probability ``1 - density``, in place: a Bregman run starts sparse.

    Call it before the optimizer is made, and not on pretrained weights, which it would destroy.

    Every output channel keeps at least one weight: a channel of zeros behind batch normalization and ReLU would pass
    no gradient, so none of its weights could ever come alive.

    Args:
        params: the groups that ``partition`` returns, of which the regularized ones are taken; or sparse parameters,
            or (name, parameter) pairs. They are [output channels, ...], in groups with ``transposed`` [input channels,
            output channels, ...], on the device of ``generator``.
        density: probability that a weight stays, in (0, 1].
        rescale: multiply what stays by ``1 / sqrt(share that stays)``, so that the variance of each layer's output,
            and with it the forward signal, is kept.
        generator: source of the mask.

    Raises:
        ValueError: ``density`` is out of bounds, or a parameter has fewer than two axes.
    """
    check_number("density", density, "above 0 and at most 1", above=0, at_most=1)
    for param, transposed in _weights(params):
        if param.ndim < 2:
            raise ValueError(f"sparse parameters have two axes or more, got one of shape {tuple(param.shape)}")
        shape = param.transpose(0, 1).shape if transposed else param.shape
        if not param.numel():
            continue
        mask = torch.empty(shape, device=param.device).bernoulli_(density, generator=generator)
        rows = mask.view(len(mask), -1)
        places = torch.randint(rows.shape[1], (len(rows), 1), generator=generator, device=param.device)
        rows.scatter_(1, places, torch.where(rows.any(1, keepdim=True), rows.gather(1, places), 1.0))
        factors = mask / mask.mean().sqrt() if rescale else mask
        param.mul_(factors.transpose(0, 1) if transposed else factors)


def _weights(params: Iterable[Any]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each weight to make sparse, and whether its output channels are on the second axis."""
    if isinstance(params, nn.Module):
        raise ValueError("sparse_init_ takes groups or weights, got a module: call sparse_init_(partition(module))")
    for entry in [params] if isinstance(params, (Tensor, dict)) else params:
        if not isinstance(entry, dict):
            yield entry[1] if isinstance(entry, tuple) else entry, False
        elif entry.get("regularizer", "l1") != "none":
            for param, _ in _weights(entry["params"]):
                yield param, bool(entry.get("transposed", False))


def count_zeros(params: Sequence[Tensor]) -> Tensor:
    """Count exact zeros: a 0-dim int64 tensor on the device: nothing waits for the device."""
    counts = torch.stack([torch.count_nonzero(param) for param in params])
    return sum(param.numel() for param in params) - counts.sum()


def sparsity(params: Sequence[Tensor]) -> Tensor:
    """Fraction of exact zeros pooled over ``params``, a 0-dim float32 tensor on the device.

    >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0]])])
    tensor(0.7500)
    """
    return count_zeros(params).float() / sum(param.numel() for param in params)
