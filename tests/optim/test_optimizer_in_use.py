"""Laws of the optimizers among torch's other parts: state, schedulers, scalers, compilation, odd parameters."""

import copy
import io

import pytest
import torch
from helpers.small import network, same, train, weights
from torch import nn

from sv_sparse.optim import AdaBreg, LinBreg, param_groups


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_saving_and_loading_changes_no_bit_even_after_lr_and_lambda_changed(kind):
    settings = {"momentum": 0.9} if kind is LinBreg else {}
    model = network()
    optimizer = kind(param_groups(model), lr=0.05, lambda_init=0.02, **settings)
    train(model, optimizer, 5)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
        group["lambda_"].mul_(1.5)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = network(seed=1)
    resumed = kind(param_groups(other), lr=0.5, lambda_init=7.0, **settings)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(model, optimizer, 5, start=5)
    train(other, resumed, 5, start=5)
    assert same(model, other)


def test_a_loaded_lambda_is_not_shared_with_the_state_it_came_from():
    model = network()
    optimizer = AdaBreg(param_groups(model), lambda_init=0.5)
    state = optimizer.state_dict()
    resumed = AdaBreg(param_groups(network()), lambda_init=0.1)
    resumed.load_state_dict(state)
    resumed.param_groups[0]["lambda_"].fill_(9.0)
    assert optimizer.param_groups[0]["lambda_"].item() == 0.5


def test_bf16_parameters_keep_float32_state_also_across_loading():
    model = nn.Linear(8, 8).bfloat16()
    optimizer = AdaBreg(model.parameters(), lr=1e-4, lambda_init=0.01)
    start = model.weight.detach().clone()
    for _ in range(50):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    resumed = AdaBreg(copy.deepcopy(model).parameters(), lr=1e-4, lambda_init=0.01)
    resumed.load_state_dict(optimizer.state_dict())
    for one in (optimizer, resumed):
        assert {value.dtype for state in one.state.values() for value in state.values()} == {torch.float32}
    assert (model.weight < start).float().mean() > 0.5  # 50 steps of 1e-4 would vanish one by one in bf16


def test_a_learning_rate_scheduler_and_an_added_group_work():
    model = network()
    optimizer = AdaBreg(model[0].parameters(), lr=0.1, lambda_init=0.01)
    optimizer.add_param_group({"params": model[4].parameters(), "penalty": "none", "lambda_": 5.0})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    train(model, optimizer, 4, after=scheduler.step)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]
    assert not (model[4].weight == 0).any()


def test_a_closure_is_evaluated_and_its_loss_returned():
    param = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = LinBreg([param], lr=0.1, lambda_init=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    torch.testing.assert_close(param.detach(), torch.tensor([0.8, -0.8]))


def test_the_learning_rate_may_be_a_tensor():
    left, right = network(), network()
    train(left, AdaBreg(left.parameters(), lr=torch.tensor(0.01), lambda_init=0.01, weight_decay=0.1), 5)
    train(right, AdaBreg(right.parameters(), lr=0.01, lambda_init=0.01, weight_decay=0.1), 5)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_the_memory_layout_changes_nothing(kind):
    settings = {"momentum": 0.9} if kind is LinBreg else {}
    results = []
    for layouts in ((0, 0), (1, 1), (0, 1), (1, 0)):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3)
        optimizer = kind(model.parameters(), lr=0.01, lambda_init=0.05, **settings)
        formats = (torch.contiguous_format, torch.channels_last)
        for step, layout in enumerate(layouts):
            model.to(memory_format=formats[layout])
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
                param.grad = param.grad.to(memory_format=formats[1 - layout]) if param.ndim == 4 else param.grad
            saved = optimizer.state_dict()
            optimizer = kind(model.parameters(), lr=0.01, lambda_init=0.05, **settings)
            optimizer.load_state_dict(saved)
            optimizer.step()
        results.append(weights(model))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_loaded_state_goes_to_the_parameters_device():
    model = network()
    optimizer = AdaBreg(param_groups(model), lambda_init=0.1)
    train(model, optimizer, 1)
    elsewhere = AdaBreg(param_groups(copy.deepcopy(model).to("meta")), lambda_init=0.1)
    elsewhere.load_state_dict(optimizer.state_dict())
    devices = {value.device.type for state in elsewhere.state.values() for value in state.values()}
    assert devices | {group["lambda_"].device.type for group in elsewhere.param_groups} == {"meta"}


def test_a_first_gradient_that_comes_late_starts_a_momentum_of_its_own():
    early, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    peers = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))]
    optimizer = LinBreg([early, late], lr=0.1, momentum=0.9, lambda_init=0.0)
    peer = torch.optim.SGD(peers, lr=0.1, momentum=0.9)
    for step in range(4):
        early.grad = peers[0].grad = torch.full((2, 2), 1.0)
        if step >= 2:
            late.grad = peers[1].grad = torch.full((2, 2), 2.0)
        optimizer.step()
        peer.step()
    torch.testing.assert_close([early, late], peers)


def test_weights_without_a_gradient_follow_a_change_of_lambda_too():
    moving, resting = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = AdaBreg([moving, resting], lambda_init=0.1)
    moving.grad, resting.grad = torch.ones(3, 3), torch.ones(3, 3)
    optimizer.step()
    resting.grad = None
    optimizer.param_groups[0]["lambda_"].fill_(50.0)
    optimizer.step()
    assert not moving.any()
    assert not resting.any()


def test_lambda_may_be_set_as_a_number_like_the_learning_rate():
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = AdaBreg([param], lambda_init=0.1)
    param.grad = torch.zeros(3, 3)
    optimizer.step()
    optimizer.param_groups[0]["lambda_"] = 0.6
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3, 3), 0.5))


def test_lambda_is_float32_whatever_the_default_and_float64_for_float64_weights():
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = AdaBreg([nn.Parameter(torch.ones(2, dtype=torch.float32))])
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.param_groups[0]["lambda_"].dtype == torch.float32
    optimizer = AdaBreg([nn.Parameter(torch.ones(2, dtype=torch.float64))])
    assert optimizer.param_groups[0]["lambda_"].dtype == torch.float64


def test_a_refused_group_is_not_added_and_an_empty_one_is_accepted():
    optimizer = AdaBreg([{"params": []}, {"params": [nn.Parameter(torch.ones(2))]}])
    with pytest.raises(ValueError, match="lambda_ must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lambda_": -1.0})
    assert len(optimizer.param_groups) == 2


def test_sparse_gradients_are_refused_in_words():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="do not support sparse gradients"):
        AdaBreg(table.parameters()).step()


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_a_compiled_step_follows_a_moving_lambda(kind):
    left, right = network(), network()
    settings = {"lr": 0.02, "lambda_init": 0.02, "backend": "foreach"}
    one, other = (kind(param_groups(model), **settings) for model in (left, right))
    train(left, one, 2)
    train(right, other, 2)
    compiled = torch.compile(other.step, backend="eager")
    for _ in range(3):
        for optimizer in (one, other):
            optimizer.param_groups[0]["lambda_"].mul_(1.2)
        for a, b in zip(left.parameters(), right.parameters(), strict=True):
            a.grad = b.grad = torch.randn_like(a)
        one.step()
        compiled()
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_scaled_gradients_give_the_same_steps():
    left, right = network(), network()
    one, other = (AdaBreg(param_groups(model), lr=0.01, lambda_init=0.01) for model in (left, right))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(left, one, 5)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 4, 8, generator=generator), torch.randint(5, (16,), generator=generator)
        other.zero_grad()
        scaler.scale(nn.functional.cross_entropy(right(x), y)).backward()
        scaler.step(other)
        scaler.update()
    assert same(left, right)


def test_it_works_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        left, right = network(), network()
        train(left, AdaBreg(param_groups(left), lr=0.01, lambda_init=0.01), 5)
        wrapped = nn.parallel.DistributedDataParallel(right)
        train(wrapped, AdaBreg(param_groups(right), lr=0.01, lambda_init=0.01), 5)
        assert same(left, right)
    finally:
        torch.distributed.destroy_process_group()


def test_an_overflow_found_by_the_grad_scaler_skips_the_step():
    model = network()
    optimizer = AdaBreg(param_groups(model), lr=0.01, lambda_init=0.01)
    train(model, optimizer, 1)
    before = weights(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(4, 4, 8)).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_parameters_without_gradient_are_left_alone():
    model = network()
    optimizer = AdaBreg(model.parameters(), lambda_init=0.1)
    before = weights(model)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AdaBreg, {"lr": -1.0}, "lr must be a finite number, 0 or more, got -1.0"),
        (AdaBreg, {"lambda_init": -0.1}, "lambda_init must be a finite number, 0 or more, got -0.1"),
        (AdaBreg, {"lambda_init": float("inf")}, "lambda_init must be a finite number, 0 or more, got inf"),
        (AdaBreg, {"delta": 0.0}, "delta must be a finite number above 0, got 0.0"),
        (AdaBreg, {"weight_decay": -1.0}, "weight_decay must be a finite number, 0 or more, got -1.0"),
        (AdaBreg, {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got 1.0"),
        (AdaBreg, {"eps": -1e-8}, "eps must be a finite number, 0 or more, got -1e-08"),
        (AdaBreg, {"penalty": "l2"}, "penalty must be one of l1, l0, group, none, got 'l2'"),
        (LinBreg, {"momentum": -0.5}, "momentum must be a finite number, 0 or more, got -0.5"),
        (LinBreg, {"nesterov": True}, "nesterov must be used with momentum above 0 and dampening 0, got True"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_its_bounds(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(network().parameters(), **settings)
