"""Laws of the parameter groups, the sparse start, the count of zeros, clipping and schedules."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sv_sparse.optim import (
    DENSE_TYPES,
    SPARSE_TYPES,
    AdaBreg,
    QuantileController,
    clip_grad_norm_,
    count_zeros,
    param_groups,
    sparse_init_,
    sparsity,
    summary_table,
    warmup_decay,
)


def test_every_parameter_is_in_exactly_one_group():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), shared, shared, nn.LayerNorm(4))
    groups = param_groups(model)
    grouped = [param for group in groups for _, param in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    assert {name for name, _ in groups[0]["params"]} == {"0.weight", "2.weight"}
    # The penalty of the sparse group is the optimizer's.
    assert [group.get("penalty") for group in groups] == [None, "none"]
    assert [group["penalty"] for group in param_groups(model, penalty="l0")] == ["l0", "none"]
    assert [group["penalty"] for group in AdaBreg(groups, penalty="l0").param_groups] == ["l0", "none"]


class Codebook(nn.Module):
    """A type that nobody knows, with a table and a bias."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(size, 4))
        self.bias = nn.Parameter(torch.ones(1, 1, 4))


class Mixture(nn.Module):
    """Another, with nothing but a table."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4))


class Conv1D(nn.Module):
    """As GPT-2 has it: the weight is [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class LlamaRMSNorm(nn.Module):
    """A norm with a gain of two axes, so that only its name says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))


def names(groups, kind: str) -> set[str]:
    return {name for group in groups if group["name"] == kind for name, _ in group["params"]}


def test_all_that_is_unknown_is_listed_at_once_with_what_to_do():
    model = nn.Sequential(nn.Linear(4, 4), *(Codebook(size) for size in (6, 7, 8, 9)), Mixture())
    with pytest.raises(ValueError, match="cannot tell which of these parameters") as error:
        param_groups(model)
    lines = str(error.value).splitlines()
    assert lines[1:3] == [
        "  Codebook: 1.table, 2.table, 3.table and 1 more, 120 parameters",
        "  Mixture: 5.pos_embed, 20 parameters",
    ]
    assert 'dense=("1.table",)' in lines[3]
    assert "dense_types=(*DENSE_TYPES, Codebook, Mixture)" in lines[3]


def test_a_listed_type_is_accepted():
    model = nn.Sequential(nn.Linear(2, 2), Codebook())
    assert "1.table" in names(param_groups(model, dense_types=(*DENSE_TYPES, Codebook)), "dense")
    assert "1.table" in names(param_groups(model, sparse_types=(*SPARSE_TYPES, Codebook)), "sparse")


def test_a_parameter_with_one_axis_longer_than_one_is_dense_wherever_it_lies():
    groups = param_groups(nn.Sequential(Codebook(), nn.Linear(9, 1)), dense="0.table")
    assert names(groups, "dense") == {"0.table", "0.bias", "1.weight", "1.bias"}


def test_names_say_what_is_dense_and_what_is_sparse_and_the_longest_decides():
    model = nn.Sequential()
    model.encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), Codebook())
    model.pos_embed = Mixture()
    model.classifier = nn.Linear(4, 2)
    groups = param_groups(model, dense=("encoder", "pos_embed", "classifier"), sparse=("encoder.2",))
    assert names(groups, "sparse") == {"encoder.2.table"}
    groups = param_groups(
        model, dense="classifier.weight", sparse=("encoder", "pos_embed.pos_embed", "classifier.bias")
    )
    assert names(groups, "sparse") == {"encoder.0.weight", "encoder.2.table", "pos_embed.pos_embed", "classifier.bias"}


def test_a_name_that_fits_nothing_is_refused_with_the_near_ones():
    model = nn.ModuleDict({"classifier": nn.Linear(3, 3), "vit": nn.ModuleDict({"embeddings": Mixture()})})
    with pytest.raises(ValueError, match=r"dense names 'clasifier', which is no .*; near are classifier"):
        param_groups(model, dense=("clasifier",))
    with pytest.raises(ValueError, match=r"sparse names 'pos_embed', .*; near are vit.embeddings.pos_embed"):
        param_groups(model, sparse="pos_embed")
    with pytest.raises(ValueError, match="dense names 'class', which is no"):
        param_groups(model, dense="class")
    with pytest.raises(ValueError, match="dense must be names of parameters or modules, got 3"):
        param_groups(model, dense=(3,))
    for wrong in (None, 3, ""):
        with pytest.raises(ValueError, match=f"sparse must be names of parameters or modules, got {wrong!r}"):
            param_groups(model, sparse=wrong)
    with pytest.raises(ValueError, match="named both sparse and dense: vit"):
        param_groups(model, dense="vit", sparse="vit")


COMMON = {
    "attention": (nn.MultiheadAttention(8, 2), {"in_proj_weight", "out_proj.weight"}),
    "attention to others": (
        nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
        {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
    ),
    "RNN": (nn.RNN(3, 4), {"weight_ih_l0", "weight_hh_l0"}),
    "GRU": (nn.GRU(3, 4, num_layers=2), {"weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"}),
    "LSTM": (nn.LSTM(3, 4, proj_size=2), {"weight_ih_l0", "weight_hh_l0", "weight_hr_l0"}),
    "LSTMCell": (nn.LSTMCell(3, 4), {"weight_ih", "weight_hh"}),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 2), {"weight"}),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 4, 2, groups=2), {"weight"}),
    "ConvTranspose3d": (nn.ConvTranspose3d(3, 4, 2), {"weight"}),
    "Bilinear": (nn.Bilinear(3, 4, 5), {"weight"}),
    "Conv1D": (Conv1D(3, 4), {"weight"}),
    "class of a Conv1D": (type("Projection", (Conv1D,), {})(3, 4), {"weight"}),
    "RMSNorm": (nn.RMSNorm((3, 4)), set()),
    "LlamaRMSNorm": (LlamaRMSNorm(), set()),
    "LayerNorm": (nn.LayerNorm((3, 4)), set()),
    "Embedding": (nn.Embedding(3, 4), set()),
    "EmbeddingBag": (nn.EmbeddingBag(3, 4), set()),
    "transformer": (
        nn.TransformerDecoderLayer(8, 2, 16),
        {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "multihead_attn.in_proj_weight",
         "multihead_attn.out_proj.weight", "linear1.weight", "linear2.weight"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMMON)
def test_common_types_are_known(kind):
    module, sparse = COMMON[kind]
    groups = param_groups(module)
    assert names(groups, "sparse") == sparse
    assert names(groups, "dense") == {name for name, _ in module.named_parameters()} - sparse


def test_a_tied_weight_appears_once_and_is_dense_if_one_of_its_uses_is():
    for order in (("table", "out_channel"), ("out_channel", "table")):
        layers = {"table": nn.Embedding(5, 4), "out_channel": nn.Linear(4, 5, bias=False)}
        model = nn.ModuleDict({name: layers[name] for name in order})
        model["out_channel"].weight = model["table"].weight
        groups = param_groups(model)
        assert [[name for name, _ in group["params"]] for group in groups] == [[f"{order[0]}.weight"]]
        assert groups[0]["name"] == "dense"
        for name in order:  # under both of its names
            assert param_groups(model, sparse=f"{name}.weight")[0]["name"] == "sparse"


def test_frozen_parameters_are_left_out_and_come_back_when_they_train():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), Codebook())
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    assert names(param_groups(model), "sparse") == {"1.weight"}
    assert names(param_groups(model, dense="2"), "dense") == {"1.bias"}
    model[0].requires_grad_(True)
    assert names(param_groups(model), "sparse") == {"0.weight", "1.weight"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lazy_layer_has_to_see_a_batch_first():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="0.weight has no shape yet: run a forward pass first"):
        param_groups(model)
    model(torch.ones(2, 5))
    assert names(param_groups(model), "sparse") == {"0.weight"}


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.2)


def trained(layer: nn.Module, **settings) -> nn.Module:
    """The layer after twenty steps and finalize() at 80 % zeros."""
    torch.manual_seed(0)
    optimizer = AdaBreg(param_groups(layer, **settings), lr=0.01, backend="foreach")
    controller = QuantileController(optimizer, 0.8, 20, ramp_start=None, ramp_end=None)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(8, 10)).square().sum().backward()
        optimizer.step()
        controller.step()
    controller.finalize()
    layer(torch.randn(8, 10))  # which makes the weight anew
    return layer


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.*is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm, pruned])
def test_zeros_of_the_original_are_zeros_of_the_weight_that_is_made_of_it(change):
    layer = trained(change(nn.Linear(10, 12)))
    weight = layer.weight.detach()
    assert sparsity([weight]).item() == pytest.approx(0.8, abs=0.2 if change is pruned else 0.01)
    assert weight.isfinite().all()
    assert (weight == 0).sum() >= round(0.8 * 120)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "direction"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (torch.nn.utils.weight_norm, "weight_v"),
    ],
)
def test_weight_normalization_is_refused_since_a_row_of_zeros_would_be_nan(change, direction):
    layer = change(nn.Linear(10, 12))
    with pytest.raises(ValueError, match=f"{direction}, 120 parameters; weight normalization divides by the norm"):
        param_groups(layer)
    assert names(param_groups(layer, dense=direction), "dense") == {name for name, _ in layer.named_parameters()}
    with torch.no_grad():
        layer.get_parameter(direction)[3] = 0
    assert layer(torch.ones(1, 10))[0, 3].isnan()
    assert names(param_groups(layer, sparse=direction), "sparse") == {direction}


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.orthogonal,
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    ],
)
def test_a_parametrization_that_may_fill_zeros_is_named(change):
    model = nn.Sequential(change(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="0.parametrizations.weight.original, 16 parameters; zeros of the original"):
        param_groups(model)
    assert names(param_groups(model, dense="0.parametrizations"), "sparse") == {"1.weight"}


def test_a_parametrization_of_what_is_dense_anyway_is_dense():
    layer = parametrize.register_parametrization(nn.LayerNorm((4, 4)), "weight", Symmetric())
    assert names(param_groups(layer), "dense") == {"bias", "parametrizations.weight.original"}


def test_the_description_counts_the_parameters():
    text = summary_table(param_groups(nn.Linear(100, 30), penalty="l1"))
    assert text == summary_table(param_groups(nn.Linear(100, 30)))
    assert "| sparse | 1 | 3,000 | l1 |" in text
    assert "| dense | 1 | 30 | none |" in text


def test_a_sparse_start_keeps_the_forward_variance():
    torch.manual_seed(0)
    layer = nn.Linear(4000, 500, bias=False)
    x = torch.randn(20, 4000)
    before = layer(x).var().item()
    sparse_init_([layer.weight], density=0.05, generator=torch.Generator().manual_seed(1))
    assert sparsity([layer.weight]).item() == pytest.approx(0.95, abs=0.002)
    assert layer(x).var().item() == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 1, 3, 3), (128, 16), (96, 128, 1), (64, 64, 3, 3)])
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_a_sparse_start_keeps_the_mean_square_whatever_the_fan_in(shape, density):
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(20):
        weight = torch.randn(shape, generator=generator)
        sparse_init_([weight], density=density, generator=generator)
        squares.append(weight.square().mean().item())
    assert sum(squares) / 20 == pytest.approx(1.0, rel=0.15)


def test_a_parameter_with_one_axis_cannot_start_sparse():
    with pytest.raises(ValueError, match=r"two axes or more, got one of shape \(5,\)"):
        sparse_init_([torch.ones(5)])


def test_the_mask_does_not_depend_on_the_memory_layout():
    plain = torch.randn(8, 4, 3, 3)
    last = plain.clone().to(memory_format=torch.channels_last)
    for weight in (plain, last):
        sparse_init_([weight], density=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain, last)


def test_a_sparse_start_takes_groups_and_pairs_as_well_as_parameters():
    results = []
    for take in (
        lambda groups: groups,
        lambda groups: groups[0],
        lambda groups: groups[0]["params"],
        lambda groups: dict(groups[0]["params"]).values(),
        lambda groups: iter([{"params": list(dict(groups[0]["params"]).values())}]),
        lambda groups: [{key: value for key, value in group.items() if key != "name"} for group in groups],
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))
        sparse_init_(take(param_groups(model)), generator=torch.Generator().manual_seed(1))
        assert model[0].bias.all()
        results.append([param.detach().clone() for param in model.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d(20, 300, 2), nn.ConvTranspose2d(20, 300, 1), Conv1D(20, 300)])
def test_a_sparse_start_leaves_no_output_channel_dead_where_inputs_come_first(layer):
    sparse_init_(param_groups(layer), generator=torch.Generator().manual_seed(0))
    assert layer.weight.transpose(0, 1).flatten(1).any(1).all()
    assert sparsity([layer.weight]).item() > 0.9


def test_a_sparse_start_of_channels_in_groups_keeps_those_on_the_first_axis():
    layer = nn.ConvTranspose1d(300, 300, 3, groups=300)
    sparse_init_(param_groups(layer), generator=torch.Generator().manual_seed(0))
    assert layer.weight.flatten(1).any(1).all()


def test_an_unscaled_sparse_start_leaves_the_surviving_weights_as_they_were():
    weight = torch.randn(50, 20)
    before = weight.clone()
    sparse_init_([weight], density=0.5, rescale=False)
    assert torch.equal(weight[weight != 0], before[weight != 0])
    assert 0.4 < sparsity([weight]).item() < 0.6


def test_a_sparse_start_leaves_no_output_channel_dead():
    weight = torch.randn(500, 1, 3, 3)
    sparse_init_([weight], density=0.01, generator=torch.Generator().manual_seed(0))
    assert (weight != 0).flatten(1).any(1).all()
    assert (weight != 0).sum() < 600


@pytest.mark.parametrize("density", [0, 1.5, float("nan"), None, True, "0.1"])
def test_the_density_is_checked(density):
    with pytest.raises(ValueError, match=f"density must be above 0 and at most 1, got {density!r}"):
        sparse_init_([torch.ones(3, 3)], density=density)


def test_zeros_are_counted_exactly_and_without_reading_the_device():
    params = [torch.tensor([0.0, 1e-38, -0.0]), torch.eye(3)]
    assert count_zeros(params).item() == 8
    assert isinstance(sparsity(params), torch.Tensor)


def test_clipping_on_the_support_counts_gradients_of_live_weights_only():
    weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    weight.grad = torch.tensor([[0.5, 10.0, 10.0, 10.0]])
    assert clip_grad_norm_([weight], 1.0, scope="support").item() == pytest.approx(0.5)
    assert weight.grad[0, 0].item() == pytest.approx(0.5)
    assert clip_grad_norm_([weight], 1.0, scope="all").item() == pytest.approx(300.25**0.5)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_a_single_tensor_is_clipped_as_torch_does():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.full((2, 2), 5.0)
    assert clip_grad_norm_(weight, 1.0).item() == pytest.approx(10.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_biases_at_zero_count_when_clipping_on_the_support():
    bias = nn.Parameter(torch.zeros(4))
    bias.grad = torch.ones(4)
    assert clip_grad_norm_([bias], 1.0, scope="support").item() == 2.0


@pytest.mark.parametrize(("settings", "message"), [({"scope": "live"}, "support, all"), ({"max_norm": 0.0}, "above 0")])
def test_clipping_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        clip_grad_norm_([], **{"max_norm": 1.0} | settings)


@pytest.mark.parametrize(("decay", "middle"), [("exponential", 0.1), ("linear", 0.505), ("cosine", 0.505)])
def test_the_first_update_of_a_schedule_already_moves(decay, middle):
    factors = []
    for step in range(100):
        factors.append(warmup_decay(step, 100, decay=decay, warmup_fraction=0.1, final_lr_fraction=0.01))
    assert factors[0] == pytest.approx(0.1)
    assert factors[54] == pytest.approx(middle)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in pairwise(factors[9:]))


@pytest.mark.parametrize("settings", [{"warmup_fraction": 1.0}, {"final_lr_fraction": 0.0}, {"decay": "step"}])
def test_a_schedule_checks_its_settings(settings):
    with pytest.raises(ValueError, match="must be"):
        warmup_decay(0, 10, **settings)
