"""Laws of what may happen to weights between two steps: edits, freezing, other settings, removal."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    DualAverage,
    FeedbackController,
    GradualMagnitudePruning,
    LinBreg,
    QuantileController,
    param_groups,
)

each_way = pytest.mark.parametrize("way", ["auto", "foreach"])
adopting = pytest.mark.filterwarnings("ignore:weights were changed outside")


def give_gradients(params, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def trained(params, way: str = "auto", steps: int = 3, **settings):
    optimizer = LinBreg(params, **{"lr": 0.1, "lambda_init": 0.1, "backend": way} | settings)
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step()
    return optimizer


def rest(optimizer, params) -> None:
    """A step that moves nothing by itself."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()


@each_way
@pytest.mark.parametrize(
    ("dtype", "factor", "steps"), [(torch.float32, 1 - 1e-5, 300), (torch.bfloat16, 0.9922, 50)], ids=str
)
@adopting
def test_the_smallest_of_edits_count(way, dtype, factor, steps):
    weight, peer = (nn.Parameter(torch.ones(4, 4, dtype=dtype)) for _ in range(2))
    optimizer = LinBreg([weight], lr=0.1, lambda_init=0.1, backend=way)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        with torch.no_grad():
            weight.mul_(factor)  # decay by hand
            peer.mul_(factor)
    torch.testing.assert_close(weight.detach(), peer.detach(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


@each_way
@pytest.mark.parametrize("size", [3 * 8192 + 5, 193, 192])
@adopting
def test_large_weights_edited_through_data_are_noticed(way, size):
    weight = nn.Parameter(torch.randn(1, size))
    optimizer = trained([weight], way)
    edited = torch.linspace(1, 2, size).view(1, size)
    weight.data.copy_(edited)
    rest(optimizer, [weight])
    torch.testing.assert_close(weight.detach(), edited)
    weight.data[:, -1:].fill_(7.0)  # the end alone
    rest(optimizer, [weight])
    assert weight[0, -1].item() == pytest.approx(7.0)


@each_way
@adopting
def test_one_edited_layer_tells_of_the_others(way):
    layers = [nn.Parameter(torch.randn(300, 40)) for _ in range(2)]
    optimizer = trained(layers, way)
    with torch.no_grad():
        layers[0].fill_(2.0)
    layers[1].data[5, 3:9] = 3.0  # too few to be seen by themselves
    layers[1].data[0, :9] = 3.0
    rest(optimizer, layers)
    assert torch.equal(layers[1][5, 3:9].detach().round(), torch.full((6,), 3.0))


@each_way
@adopting
def test_weights_restored_after_nan_are_finite(way):
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = trained([weight], way)
    best = weight.detach().clone()
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()
    assert weight.isnan().all()
    weight.data.copy_(best)
    rest(optimizer, [weight])
    torch.testing.assert_close(weight.detach(), best)


@each_way
def test_weights_that_overflow_are_not_taken_for_edited(way):
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = LinBreg([weight], lr=1.0, lambda_init=0.1, backend=way)
    for value in (-torch.inf, 0.0, 0.0):
        weight.grad = torch.full_like(weight, value)
        optimizer.step()
    assert weight.isinf().all()


@each_way
def test_an_edited_group_leaves_the_duals_of_other_groups_alone(way):
    weight = nn.Parameter(torch.randn(6, 5))
    optimizer = trained([weight], way, penalty="group")
    optimizer.param_groups[0]["lambda_"].fill_(1.1)
    optimizer.apply_prox()
    alive = weight.detach().ne(0).any(1)
    assert 0 < int(alive.sum()) < 6
    dual = optimizer.state[weight]["dual"].clone()
    row = int(alive.nonzero()[0, 0])
    with torch.no_grad():
        weight[row].mul_(2)
    optimizer.adopt_weights()
    others = [index for index in range(6) if index != row]
    assert torch.equal(optimizer.state[weight]["dual"][others], dual[others])
    assert not torch.equal(optimizer.state[weight]["dual"][row], dual[row])


@pytest.mark.filterwarnings("ignore:finalizing")
def test_masks_let_through_what_is_adopted():
    weight = nn.Parameter(torch.randn(10, 10))
    optimizer = AdaBreg([{"params": [weight], "penalty": "none", "prunable": True}], lr=0.01)
    controller = GradualMagnitudePruning(
        optimizer, 0.5, 4, ramp_start=None, ramp_end=None, num_mask_updates=1, freeze_fraction=0.0
    )
    for step in range(4):
        give_gradients([weight], step)
        optimizer.step()
        controller.step()
    controller.finalize()
    assert int(weight.count_nonzero()) == 50
    with torch.no_grad():
        weight.fill_(1.0)
    optimizer.adopt_weights()
    rest(optimizer, [weight])
    assert int(weight.count_nonzero()) == 100


@pytest.mark.parametrize("seed", [0, 5, 9, 12, 34])
@pytest.mark.parametrize("control", [QuantileController, FeedbackController])
def test_a_frozen_layer_stands_still_under_every_controller_until_it_is_finalized(control, seed):
    torch.manual_seed(seed)
    params = [nn.Parameter(torch.randn(10, 10)) for _ in range(2)]
    optimizer = LinBreg(params, lr=0.1, lambda_init=0.5)
    controller = control(optimizer, 0.5, 30, ramp_start=None, ramp_end=None)
    for step in range(5):
        give_gradients(params, step)
        optimizer.step()
        controller.step()
    params[1].requires_grad_(False)
    params[1].grad = None
    before = params[1].detach().clone()
    for step in range(5, 20):
        give_gradients(params[:1], step)
        optimizer.step()
        controller.step()
        optimizer.apply_prox()
        assert torch.equal(params[1], before)
    average = DualAverage()
    average.add(optimizer)
    average.copy_to(optimizer)
    torch.testing.assert_close(params[1].detach(), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run ends here, early
        controller.finalize()
    assert int(optimizer.count_nonzero(params).sum()) == 100


def test_what_a_frozen_layer_has_learnt_about_its_zeros_stays():
    params = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
    optimizer = trained(params, lambda_init=0.5)
    dual = optimizer.state[params[1]]["dual"].clone()
    dead = params[1].detach() == 0
    params[1].requires_grad_(False)
    params[1].grad = None
    optimizer.param_groups[0]["lambda_"].fill_(0.6)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    params[1].requires_grad_(True)
    before = params[1].detach().clone()
    rest(optimizer, params)
    torch.testing.assert_close(params[1].detach(), before)
    assert torch.equal(optimizer.state[params[1]]["dual"][dead], dual[dead])


@pytest.mark.parametrize(("penalty", "lambda_"), [("l1", 1.05), ("l0", 1.05), ("group", 1.8)])
def test_zeros_of_a_frozen_layer_keep_their_order_under_a_smaller_lambda(penalty, lambda_):
    params = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
    optimizer = trained(params, lambda_init=0.9, penalty=penalty)
    optimizer.param_groups[0]["lambda_"].fill_(lambda_)
    optimizer.apply_prox()
    dual = optimizer.state[params[1]]["dual"].clone()
    before = params[1].detach().clone()
    dead = before == 0
    assert 8 < int(dead.sum()) < 64
    params[1].requires_grad_(False)
    params[1].grad = None
    optimizer.param_groups[0]["lambda_"].fill_(0.1)
    rest(optimizer, params[:1])
    optimizer.duals(optimizer.param_groups[0])  # which moves them to the new lambda
    kept = optimizer.state[params[1]]["dual"]
    ratio = kept[dead] / dual[dead]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert 0 < float(ratio[0]) < 1
    optimizer.apply_prox(include_frozen=True)
    torch.testing.assert_close(params[1].detach(), before)


@each_way
def test_a_layer_whose_gradient_comes_late_is_not_moved_by_an_average(way):
    first, late = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6, 6))
    optimizer = LinBreg([first, late], lr=0.1, lambda_init=0.1, backend=way)
    for step in range(3):
        give_gradients([first], step)
        optimizer.step()
        optimizer.param_groups[0]["lambda_"].mul_(1.5)
    DualAverage().add(optimizer)  # which makes the dual of the late one
    give_gradients([first], 9)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.ones(6, 6))


@each_way
@pytest.mark.parametrize("settings", [{"delta": 3.0, "lambda_": 0.3}, {"penalty": "group"}, {"lambda_": 0.9}])
def test_a_parameter_in_another_group_stays_where_it_is(way, settings):
    weight = nn.Parameter(torch.randn(6, 5))
    optimizer = trained([weight], way)
    before = weight.detach().clone()
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": [weight]} | settings)
    rest(optimizer, [weight])
    torch.testing.assert_close(weight.detach(), before)


def test_a_lambda_that_comes_with_the_penalty_is_kept():
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = trained(params[:1])
    optimizer.add_param_group({"params": params[1:], "penalty": "none"})
    rest(optimizer, params)
    for value in (torch.tensor(0.7), 0.7):
        optimizer.param_groups[1] |= {"penalty": "none"}
        rest(optimizer, params)
        optimizer.param_groups[1] |= {"penalty": "l1", "lambda_": value}
        rest(optimizer, params)
        assert float(optimizer.param_groups[1]["lambda_"]) == pytest.approx(0.7)


def test_nothing_has_moved_when_a_step_is_refused():
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = LinBreg([{"params": [param]} for param in params], lr=0.1)
    table = nn.Embedding(4, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    params[0].grad, params[1].grad = torch.ones(4, 4), table.weight.grad
    with pytest.raises(RuntimeError, match="the gradient of parameter 0 of group 1 is sparse"):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(4, 4))


def test_a_lazily_negated_gradient_goes_the_right_way():
    weight = nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch._neg_view(torch.ones(4, 4))
    LinBreg([weight], lr=1.0, lambda_init=0.0).step()
    assert torch.equal(weight.detach(), torch.ones(4, 4))


def test_what_others_keep_in_the_state_is_left_alone():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = trained([weight])
    optimizer.state[weight]["ema"] = torch.zeros(())
    optimizer.load_state_dict(optimizer.state_dict())
    rest(optimizer, [weight])
    assert "ema" in optimizer.state[weight]


def test_flags_may_be_numpys():
    LinBreg([nn.Parameter(torch.ones(2))], momentum=0.9, nesterov=np.bool_(True))


def test_a_saved_lambda_does_not_change_afterwards():
    optimizer = trained([nn.Parameter(torch.ones(4, 4))])
    saved = optimizer.state_dict()
    optimizer.param_groups[0]["lambda_"].fill_(9.0)
    assert float(saved["param_groups"][0]["lambda_"]) == pytest.approx(0.1)


def test_a_removed_parameter_is_let_go_of():
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = LinBreg([{"params": [param]} for param in params], lr=0.1)
    give_gradients(params, 0)
    optimizer.step()
    removed = weakref.ref(params[1])
    optimizer.param_groups.pop()
    optimizer.state.pop(params.pop())
    give_gradients(params, 1)
    optimizer.step()
    gc.collect()
    assert removed() is None


def test_warnings_are_of_the_line_that_caused_them():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = trained([weight])
    with torch.no_grad():
        weight.mul_(2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        rest(optimizer, [weight])
    assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel"])
def test_channels_of_transposed_weights_are_those_of_the_layer(granularity):
    layer = nn.ConvTranspose1d(6, 4, 3, bias=False)  # its weight is [inputs, outputs, 3]
    optimizer = LinBreg(param_groups(layer, penalty="group"), lr=0.1, lambda_init=0.1, granularity=granularity)
    controller = QuantileController(optimizer, 0.5, 3, ramp_start=None, ramp_end=None)
    for step in range(3):
        give_gradients([layer.weight], step)
        optimizer.step()
        controller.step()
    controller.finalize()
    axes = {"out_channel": (0, 2), "in_channel": (1, 2)}[granularity]
    alive = (layer.weight != 0).any(axes[1]).any(axes[0])
    assert int(alive.sum()) == len(alive) // 2


@pytest.mark.filterwarnings("error")
def test_an_embedding_that_keeps_its_rows_short_warns_of_nothing():
    table = nn.Embedding(5, 4, max_norm=0.5, dtype=torch.bfloat16)
    optimizer = AdaBreg([{"params": table.parameters(), "penalty": "none"}], lr=0.1)
    for _ in range(4):
        table(torch.tensor([0, 1])).sum().backward()
        optimizer.step()


@each_way
def test_a_frozen_layer_in_another_precision_is_no_trouble(way):
    params = [nn.Parameter(torch.randn(300, 40)) for _ in range(2)]
    optimizer = trained(params, way)
    params[1].requires_grad_(False)
    params[1].grad = None
    give_gradients(params[:1], 5)
    optimizer.step()
    params[1].data = params[1].data.bfloat16()
    for step in range(6, 9):
        give_gradients(params[:1], step)
        optimizer.step()
        optimizer.count_nonzero(params)
    assert params[1].dtype == torch.bfloat16
    walked = [weight for sample in optimizer._edits._samples._by_group.values() for weight in sample.by_kernel]
    assert {weight.dtype for weight in walked} == {torch.float32}  # the kernel takes four bytes for each value
