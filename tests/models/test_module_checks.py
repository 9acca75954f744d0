"""Networks in other people's hands: hooks, reparametrized and replaced modules, torch's transforms."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.cpu_kernels import accelerate, ops
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.layers import ConvReluNorm
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import SEResNet


def ecapa(layout: str) -> ECAPA:
    return ECAPA(
        mel_bins=8,
        channels=16,
        mfa_channels=16,
        attention_channels=4,
        se_channels=4,
        res2net_scale=4,
        kernel_sizes=(3, 3),
        dilations=(1, 2),
        embedding_dim=8,
        layout=layout,
    )


NETWORKS = {
    "ECAPA": lambda: ecapa("wespeaker"),
    "ECAPA of SpeechBrain": lambda: ecapa("speechbrain"),
    "ResNet34": lambda: ResNet34(base_channels=2, embedding_dim=8, mel_bins=8),
    "SEResNet": lambda: SEResNet(channels=(2, 2, 4, 4), attention_channels=4, embedding_dim=8, mel_bins=8),
    "CAM++": lambda: CAMPlusPlus(8, 4, 4, 2, 4, block_layers=(2, 1, 1), embedding_dim=8),
}
FILTERBANK = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(1))
Change = Callable[[nn.Module], object]


def network(name: str, kernels: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    return accelerate(model, kernels)


def trained(model: nn.Module, filterbank: Tensor = FILTERBANK) -> list[Tensor]:
    """The embedding, all gradients and all buffers after the passes of one step."""
    embedding = model(filterbank)
    embedding.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [embedding.detach(), *gradients, *(buffer.detach() for buffer in model.buffers())]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    """Compare each tensor by its norm: single values near a ReLU's zero follow rounding."""
    largest = max(float(b.double().norm()) for b in right)
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b.double()).norm()) <= 1e-3 * float(b.double().norm()) + 1e-6 * largest


def uses_kernels(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """Calls of kernels in one step."""
    count = 0
    call = ops.call

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        call(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "call", counted)
        trained(copy.deepcopy(model))
    return count


# Hooks


def hook(module: nn.Module, kind: str, seen: list[list[Tensor]]) -> Any:
    """Register one hook of a kind, which remembers the values that it gets; returns its handle."""

    def remember(*groups: Any) -> None:
        flat = [value for group in groups for value in (group if isinstance(group, tuple) else (group,))]
        seen.append([value.detach().clone() for value in flat if isinstance(value, Tensor)])

    if kind == "forward":
        return module.register_forward_hook(lambda _module, ins, out: remember(ins, out))
    if kind == "forward_pre":
        return module.register_forward_pre_hook(lambda _module, ins: remember(ins))
    if kind == "full_backward":
        return module.register_full_backward_hook(lambda _module, to_ins, to_outs: remember(to_ins, to_outs))
    return module.register_full_backward_pre_hook(lambda _module, to_outs: remember(to_outs))


KINDS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_hook_on_any_module_fires_as_with_torchs_operations(name: str, kind: str) -> None:
    ours, theirs = network(name), network(name, False)
    names = [each for each, _ in ours.named_modules()]
    for each in names if name.startswith("ECAPA") else names[::3]:
        seen: list[list[list[Tensor]]] = []
        for model in (ours, theirs):
            seen.append([])
            handle = hook(model.get_submodule(each), kind, seen[-1])
            model(FILTERBANK.clone().requires_grad_()).square().sum().backward()
            handle.remove()
        assert len(seen[0]) == len(seen[1]), each
        for left, right in zip(*seen, strict=True):
            assert_same(left, right)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_modules_can_have_hooks_of_all_kinds_at_once(name: str) -> None:
    model, plain = network(name), network(name, False)
    seen: list[list[Tensor]] = []
    for module in model.modules():
        for kind in KINDS:
            hook(module, kind, seen)
    filterbank = FILTERBANK.clone().requires_grad_()
    assert_same(trained(model, filterbank), trained(plain, filterbank))
    assert seen


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_hook_holds_is_not_changed_afterwards(name: str) -> None:
    model, pairs = network(name), []
    for module in model.modules():
        module.register_forward_hook(lambda _module, _ins, out: pairs.append((out, out.detach().clone())))
    trained(model)
    assert pairs
    assert all(torch.equal(held.detach(), value) for held, value in pairs)


@pytest.mark.parametrize("place", ["stem", "blocks.0", "blocks.0.conv_in", "blocks.0.res2", "blocks.0.conv_out"])
def test_a_hook_may_change_an_output_in_place(place: str) -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        model.get_submodule(place).register_forward_hook(lambda _module, _ins, out: out.mul_(2))
        results.append(trained(model))
    assert_same(*results)


def test_global_hooks_fire_for_every_module() -> None:
    counts = []
    for kernels in (True, False):
        seen: list[nn.Module] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _ins, _out, seen=seen: seen.append(module)
        )
        try:
            trained(network("ECAPA", kernels))
        finally:
            handle.remove()
        counts.append(len(seen))
    assert counts[0] == counts[1] > 20


def test_without_hooks_the_kernels_are_taken_and_come_back_when_hooks_go(monkeypatch) -> None:
    model = network("ECAPA")
    before = uses_kernels(model, monkeypatch)
    handle = model.blocks[0].conv_out.conv.register_forward_hook(lambda *_: None)
    during = uses_kernels(model, monkeypatch)
    handle.remove()
    assert before == uses_kernels(model, monkeypatch) > during > 0


# Modules that are reparametrized, replaced or called by another forward


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Adapted(nn.Module):
    """A layer with a low-rank addition, as LoRA has."""

    def __init__(self, inner: nn.Module, scale: float = 0.5) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + self.scale)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


PLACES = ("stem.conv", "blocks.0.res2.convs.1.conv", "blocks.0.conv_out.conv", "mfa", "pooling.linear1")
CHANGES: dict[str, Change] = {
    "weight_norm": lambda layer: weight_norm(layer),
    "spectral_norm": lambda layer: spectral_norm(layer),
    "prune": lambda layer: prune.custom_from_mask(layer, "weight", torch.rand_like(layer.weight) > 0.5),
    "parametrized weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_reparametrized_layer_computes_as_with_torchs_operations(place: str, change: str) -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        torch.manual_seed(2)  # spectral_norm draws
        CHANGES[change](model.get_submodule(place))
        first = trained(model)
        with torch.no_grad():  # a step, after which the weight has to be computed anew
            for parameter in model.parameters():
                parameter.sub_(0.05 * parameter.sign())
                parameter.grad = None
        results.append([*first, *trained(model)])
    assert_same(*results)


REPLACED = {
    **dict.fromkeys(PLACES, Adapted),
    **{f"blocks.0.{part}": Adapted for part in ("conv_in", "conv_out", "res2", "res2.convs.0", "se.squeeze")},
    "stem.norm": lambda _: OwnNorm(16),
    "blocks.0.conv_out.norm": lambda _: OwnNorm(16),
    "blocks.0.res2.convs.2.norm": lambda _: nn.Identity(),
    "blocks.0.conv_in.norm": lambda _: nn.GroupNorm(4, 16),
    "blocks.0.res2.convs.1.conv": lambda _: nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2),
    "blocks.0.res2.convs.0.conv": lambda _: nn.Conv2d(4, 4, (1, 3), padding="same", bias=False),
}


@pytest.mark.parametrize("place", REPLACED)
def test_a_replaced_module_is_called(place: str) -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        torch.manual_seed(2)
        model.set_submodule(place, REPLACED[place](model.get_submodule(place)), strict=True)
        results.append(trained(model))
    assert_same(*results)
    assert not torch.allclose(results[0][0], trained(network("ECAPA"))[0])


def test_a_forward_put_on_the_instance_is_called() -> None:
    unit = ConvReluNorm(8, 8)
    unit.conv.forward = lambda x: torch.zeros_like(x)
    assert torch.equal(unit(torch.randn(4, 8, 1, 10)), torch.zeros(4, 8, 1, 10))


def test_a_relu_does_not_change_its_input_where_a_module_hands_it_on() -> None:
    x = torch.tensor([-1.0, 1.0])
    assert relu_after(nn.Identity(), x).tolist() == [0.0, 1.0]
    assert x.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("parts", [["stem"], ["blocks.0.conv_out.norm", "mfa"], ["blocks.0.se.expand"]])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(parts: list[str]) -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        for part in parts:
            model.get_submodule(part).requires_grad_(False)
        results.append(trained(model))
        none = {name for name, p in model.named_parameters() if p.grad is None}
        assert none == {f"{part}.{name}" for part in parts for name, _ in model.get_submodule(part).named_parameters()}
    assert_same(*results)


# Passes of other kinds


def test_gradients_of_some_parameters_alone() -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        ends = [model.stem.norm.weight, model.blocks[0].res2.convs[1].conv.bias, model.pooling.linear2.weight]
        results.append([*torch.autograd.grad(model(FILTERBANK).square().sum(), ends)])
    assert_same(*results)


def test_two_losses_share_a_retained_graph() -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        embedding = model(FILTERBANK)
        parameters = list(model.parameters())
        first = torch.autograd.grad(embedding.square().sum(), parameters, retain_graph=True)
        results.append([*first, *torch.autograd.grad(embedding[0].exp().sum(), parameters)])
    assert_same(*results)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(use_reentrant: bool) -> None:
    expected = trained(network("ECAPA", "torch"))
    model = network("ECAPA")
    block = model.blocks[0]
    plain = block.forward

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = block

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(plain, x, use_reentrant=use_reentrant)

    model.blocks[0] = Checkpointed()
    results = trained(model)
    gradients = sum(p.grad is not None for p in model.parameters())
    assert_same(results[: 1 + gradients], expected[: 1 + gradients])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_penalty_on_gradients_works_by_torchs_operations_and_the_kernels_refuse_it(name: str) -> None:
    model = network(name, False)
    filterbank = FILTERBANK.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(filterbank).square().sum(), filterbank, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in list(model.parameters())[:3])
    if name.startswith("ECAPA"):
        with pytest.raises(RuntimeError, match="create_graph=True: .* train with trainer.cpu_kernels=false"):
            torch.autograd.grad(network(name)(filterbank).sum(), filterbank, create_graph=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_gradients_works_by_torchs_operations_and_the_kernels_refuse_it(name: str) -> None:
    filterbank = FILTERBANK.clone().requires_grad_()

    def batched(kernels: bool) -> Tensor:
        embedding = network(name, kernels)(filterbank)
        many = torch.eye(2)[:, None].expand(2, 3, 2).repeat(1, 1, 4)
        return torch.autograd.grad(embedding, filterbank, many, is_grads_batched=True)[0]

    slope = torch.tensor([1.0, 0.0] * 4).expand(3, 8)
    (first,) = torch.autograd.grad(network(name, False)(filterbank), filterbank, slope)
    torch.testing.assert_close(batched(False)[0], first, rtol=1e-3, atol=1e-4)
    if name.startswith("ECAPA"):
        with pytest.raises(RuntimeError, match="is_grads_batched"):
            batched(True)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_each_precision_computes_as_torchs_operations_do(dtype: torch.dtype | None) -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            embedding = model(FILTERBANK)
        embedding.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        results.append(embedding)
    torch.testing.assert_close(*results, rtol=0.1, atol=0.1 if dtype else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_unit_in_another_type_is_left_to_torch(dtype: torch.dtype) -> None:
    unit = ConvReluNorm(8, 8).to(dtype)
    expected = unit(torch.ones(4, 8, 1, 10, dtype=dtype))
    accelerate(unit, True)
    assert torch.equal(expected, unit(torch.ones(4, 8, 1, 10, dtype=dtype)))


def test_another_default_type_and_device_change_nothing(monkeypatch) -> None:
    model, expected = network("ECAPA"), trained(network("ECAPA"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # where a tensor without a device of its own would have no memory
            assert_same(trained(model), expected)
            assert uses_kernels(model, monkeypatch) > 0
    finally:
        torch.set_default_dtype(before)


# torch's transforms: the kernels stand aside


def state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {name: p.detach() for name, p in model.named_parameters()}, dict(model.named_buffers())


def loss_of(model: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
    return functional_call(model, (parameters, buffers), (FILTERBANK,)).square().sum()


@pytest.mark.parametrize("name", NETWORKS)
def test_functional_gradients_are_those_of_a_backward_pass(name: str) -> None:
    model = network(name)
    parameters, buffers = state(model)
    results = torch.func.grad(lambda weights: loss_of(model, weights, copy.deepcopy(buffers)))(parameters)
    other = network(name)
    trained(other)
    assert_same(list(results.values()), [p.grad for p in other.parameters() if p.grad is not None])


def test_parameters_swapped_for_tensors_are_the_ones_that_count() -> None:
    results = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        parameters, buffers = state(model)
        ends = [value.mul(2).requires_grad_() for value in parameters.values()]
        loss = loss_of(model, dict(zip(parameters, ends, strict=True)), buffers)
        results.append([*torch.autograd.grad(loss, ends)])
    assert_same(*results)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # torch's own use of it
def test_vmap_over_networks_and_forward_mode(name: str) -> None:
    model = network(name).eval()
    parameters, buffers = state(model)
    many = {key: torch.stack([value, value]) for key, value in parameters.items()}
    both = torch.vmap(lambda weights: loss_of(model, weights, buffers))(many)
    torch.testing.assert_close(both[0], model(FILTERBANK).square().sum().detach(), rtol=1e-3, atol=1e-4)
    _, slope = torch.func.jvp(model, (FILTERBANK,), (torch.ones_like(FILTERBANK),))
    assert slope.isfinite().all()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(FILTERBANK, torch.ones_like(FILTERBANK))
        ours = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    torch.testing.assert_close(ours, slope, rtol=1e-3, atol=1e-4)


class Marked(Tensor):
    """A subclass of tensors."""


@pytest.mark.parametrize("name", NETWORKS)
def test_fake_tensors_counters_subclasses_and_traces_see_torchs_operations(name: str, monkeypatch) -> None:
    monkeypatch.setattr(ops, "call", None)  # which nothing may call
    model = network(name)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(FILTERBANK)).shape == (3, 8)
    with FlopCounterMode(display=False) as counter:
        model(FILTERBANK).sum().backward()
    assert counter.get_total_flops() > 0
    assert model(FILTERBANK.as_subclass(Marked)).shape == (3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that tracing is old and shapes become constants
        traced = torch.jit.trace(model, FILTERBANK, check_trace=False)
    assert traced(FILTERBANK).shape == (3, 8)
    exported = torch.export.export(model, (FILTERBANK,))
    assert exported.module()(FILTERBANK).shape == (3, 8)


def test_torch_compile_makes_one_graph_that_has_the_hooks() -> None:
    embeddings = []
    for kernels in (True, False):
        model = network("ECAPA", kernels)
        model.blocks[0].conv_out.conv.register_forward_hook(lambda _module, _ins, out: 2 * out + 1)
        called = torch.compile(model, backend="eager", fullgraph=True) if kernels else model
        embeddings.append(called(FILTERBANK))
    torch.testing.assert_close(*embeddings, rtol=1e-3, atol=1e-3)


def test_a_unit_can_be_traced_by_fx() -> None:
    unit = ConvReluNorm(8, 8)
    x = torch.randn(4, 8, 1, 10)
    torch.testing.assert_close(torch.fx.symbolic_trace(copy.deepcopy(unit))(x), unit(x), rtol=1e-4, atol=1e-5)
