"""In other people's loops: wherever torch.optim works, ours works the same, or says so before the first step.

Each event is tried on every optimizer and backend, with the torch.optim of the same family beside it: with
``lambda_init=0`` the weights must be equal, with ``lambda_`` above 0 the event itself must not move them.
"""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.optim import AdaBreg, FeedbackController, LinBreg, ProxSGD

SHAPES = [(6, 5), (4, 3, 3, 3), (5,), (7, 1), (2, 2)]
FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "AdaBreg": (
        lambda params, **settings: AdaBreg(params, **{"lr": 0.01} | settings),
        lambda params: torch.optim.Adam(params, lr=0.01),
    ),
    "AdaBreg with weight decay": (
        lambda params, **settings: AdaBreg(params, **{"lr": 0.01, "weight_decay": 0.1} | settings),
        lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    ),
    "LinBreg": (
        lambda params, **settings: LinBreg(params, **{"lr": 0.1} | settings),
        lambda params: torch.optim.SGD(params, lr=0.1),
    ),
    "LinBreg with momentum": (
        lambda params, **settings: LinBreg(params, **{"lr": 0.1, "momentum": 0.9, "nesterov": True} | settings),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    ),
}
PEERS = FAMILIES | {
    "ProxSGD": (
        lambda params, backend="foreach", **settings: ProxSGD(params, **{"lr": 0.1} | settings),
        lambda params: torch.optim.SGD(params, lr=0.1),
    ),
}
WAYS = ("auto", "foreach")
each_optimizer = pytest.mark.parametrize("family", PEERS)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_way = pytest.mark.parametrize("way", WAYS)


def parameters(count: int = len(SHAPES)) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES[:count]]


def give_gradients(params, step: int, *, skip: float = 0.0) -> None:
    """Random gradients that depend on the step alone; with ``skip`` some parameters have none."""
    generator = torch.Generator().manual_seed(step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator)
        skipped = torch.rand((), generator=generator) < skip or not param.requires_grad
        param.grad = None if skipped else grad.to(param.dtype)


def snapshot(params) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def assert_same(params, others, **tolerance) -> None:
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param.detach(), other.detach(), **{"rtol": 1e-5, "atol": 1e-6} | tolerance)


class Pair:
    """Ours without regularization, and torch's, on the same parameters and gradients."""

    def __init__(self, family: str, way: str) -> None:
        self.ours, self.theirs = parameters(), parameters()
        make, make_peer = PEERS[family]
        self.optimizer = make(self.ours, lambda_init=0.0, backend=way)
        self.peer = make_peer(self.theirs)

    def both(self, act) -> None:
        act(self.optimizer, self.ours)
        act(self.peer, self.theirs)

    def steps(self, count: int, start: int = 0, **gradients) -> None:
        for step in range(start, start + count):
            for optimizer, params in ((self.optimizer, self.ours), (self.peer, self.theirs)):
                give_gradients(params, step, **gradients)
                optimizer.step()

    def check(self, **tolerance) -> None:
        assert_same(self.ours, self.theirs, **tolerance)

    def check_around(self, act: Callable[[], Any], **tolerance) -> None:
        """Steps, the event, and steps again end alike."""
        self.steps(3)
        act()
        self.steps(3, start=3)
        self.check(**tolerance)


# --- the same as torch.optim ------------------------------------------------------------------------------------------


@each_optimizer
@each_way
def test_layers_skipped_at_random_train_as_in_torch(family, way):
    pair = Pair(family, way)
    pair.steps(20, skip=0.4)
    pair.check()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "LinBreg"])  # OneCycleLR needs momentum
@each_way
def test_a_schedule_that_cycles_momentum_trains_as_in_torch(family, way):
    pair = Pair(family, way)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(each, 0.1, total_steps=30) for each in (pair.optimizer, pair.peer)]
    for step in range(20):
        pair.steps(1, start=step)
        for schedule in schedules:
            schedule.step()
    pair.check(rtol=1e-4)


@each_optimizer
@each_way
def test_settings_changed_between_steps_train_as_in_torch(family, way):
    def change(optimizer, _) -> None:
        group = optimizer.param_groups[0]
        group["lr"] *= 0.5
        if family not in {"AdaBreg", "ProxSGD"}:  # torch's Adam decays otherwise than AdamW; ProxSGD does not
            group["weight_decay"] = 0.02
        if "eps" in group:
            group["eps"] = 1e-4

    pair = Pair(family, way)
    pair.check_around(lambda: pair.both(change))


@each_optimizer
@each_way
def test_a_group_added_while_training_trains_as_in_torch(family, way):
    def add(optimizer, params) -> None:
        late = nn.Parameter(torch.ones(3, 2))
        optimizer.add_param_group({"params": [late], "lr": 0.02})
        params.append(late)

    pair = Pair(family, way)
    pair.check_around(lambda: pair.both(add))


@each_optimizer
@each_way
def test_layers_frozen_and_trained_again_train_as_in_torch(family, way):
    pair = Pair(family, way)
    for start, trains in ((0, True), (3, False), (6, True)):
        pair.both(lambda _, params, trains=trains: params[0].requires_grad_(trains))
        pair.steps(3, start=start)
    pair.check()


@each_optimizer
@each_way
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_as_in_torch(family, way, copied):
    def copy_both() -> None:
        pair.ours, pair.optimizer, pair.theirs, pair.peer = copied((pair.ours, pair.optimizer, pair.theirs, pair.peer))

    pair = Pair(family, way)
    pair.check_around(copy_both)


@each_optimizer
@each_way
def test_another_precision_while_training_trains_as_in_torch(family, way):
    def cast() -> None:
        pair.both(lambda _, params: [setattr(param, "data", param.data.double()) for param in params])
        # torch's own state stays float32, and its kernels refuse the mixture: it is cast as load_state_dict does
        pair.peer.load_state_dict(pair.peer.state_dict())

    pair = Pair(family, way)
    pair.check_around(cast, rtol=1e-4, atol=1e-5)
    assert {param.dtype for param in pair.ours} == {torch.float64}


@each_optimizer
@each_way
def test_odd_shapes_train_as_in_torch(family, way):
    make, make_peer = PEERS[family]
    shapes = [(), (0, 3), (1,), (3, 0), (1, 1, 1)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    for optimizer, params in ((make(ours, lambda_init=0.0, backend=way), ours), (make_peer(theirs), theirs)):
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
    assert_same(ours, theirs)


@each_optimizer
@each_way
def test_a_gradient_that_is_not_finite_reaches_the_weight_as_in_torch(family, way):
    pair = Pair(family, way)
    pair.steps(1)
    for params in (pair.ours, pair.theirs):
        give_gradients(params, 1)
        params[0].grad[0, 0] = math.nan
    pair.optimizer.step()
    pair.peer.step()
    assert_same(pair.ours, pair.theirs, equal_nan=True)
    assert int(pair.ours[0].isnan().sum()) == 1


@each_optimizer
@each_way
def test_hooks_of_steps_and_states_are_called_as_in_torch(family, way):
    calls: dict[str, list[str]] = {}

    def hook(name: str, key: str):
        return lambda *_: calls.setdefault(key, []).append(name)

    pair = Pair(family, way)
    for key, optimizer in (("ours", pair.optimizer), ("theirs", pair.peer)):
        for kind in ("step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre"):
            getattr(optimizer, f"register_{kind}_hook")(hook(kind, key))
        optimizer.register_load_state_dict_post_hook(hook("load_state_dict_post", key))
    pair.steps(1)
    for optimizer in (pair.optimizer, pair.peer):
        optimizer.load_state_dict(optimizer.state_dict())
    assert calls["ours"] == calls["theirs"]
    assert len(calls["ours"]) == 6


class Labeled(Tensor):
    """A tensor subclass that knows nothing of kernels."""


@pytest.mark.filterwarnings("ignore:.*tensor subclass")
@each_optimizer
@each_way
def test_tensor_subclasses_train_as_in_torch(family, way):
    make, make_peer = PEERS[family]
    ours, theirs = ([nn.Parameter(torch.ones(4, 3).as_subclass(Labeled))] for _ in range(2))
    assert type(ours[0]) is Labeled
    for optimizer, params in ((make(ours, lambda_init=0.0, backend=way), ours), (make_peer(theirs), theirs)):
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
    assert_same(ours, theirs)


def test_a_tensor_subclass_on_kernels_warns_once():
    params = [nn.Parameter(torch.ones(4, 3).as_subclass(type("Tagged", (Tensor,), {})))]
    optimizer = AdaBreg(params, lambda_init=0.01)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
    (warning,) = (str(each.message) for each in seen)
    assert "parameters of type Tagged" in warning
    assert "backend='foreach'" in warning


# --- a change does not move the weights -------------------------------------------------------------------------------


def regularized(family: str, way: str, **settings) -> tuple[Any, list[nn.Parameter]]:
    """Ours after a few steps under a lambda that made some weights zero."""
    params = parameters()
    optimizer = FAMILIES[family][0](params, lambda_init=0.3, backend=way, **settings)
    for step in range(4):
        give_gradients(params, step)
        optimizer.step()
        optimizer.param_groups[0]["lambda_"].fill_(0.8)  # weights follow it, and small ones become zero
    assert 0 < int(params[0].count_nonzero()) < params[0].numel()
    return optimizer, params


def rest(optimizer, params, steps: int = 2) -> None:
    """Steps with a learning rate of 0: what moves then is moved by the optimizer's bookkeeping."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for step in range(steps):
        give_gradients(params, 100 + step)
        optimizer.step()


@each_family
@each_way
def test_a_group_added_after_lambda_has_moved_takes_that_lambda(family, way):
    optimizer, params = regularized(family, way)
    optimizer.param_groups[0]["lambda_"].fill_(0.02)
    late = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [late]})
    assert float(optimizer.param_groups[1]["lambda_"]) == pytest.approx(0.02)
    controller = FeedbackController(optimizer, 0.5, 100, ramp_start=None, ramp_end=None)
    rest(optimizer, [*params, late], steps=1)
    controller.step()
    torch.testing.assert_close(late.detach(), torch.ones(3, 3))


@each_family
@each_way
def test_a_frozen_weight_stays_while_lambda_moves_and_when_it_trains_again(family, way):
    optimizer, params = regularized(family, way)
    params[0].requires_grad_(False)
    before = params[0].detach().clone()
    for lambda_ in (0.5, 0.05):
        optimizer.param_groups[0]["lambda_"].fill_(lambda_)
        rest(optimizer, params)
        assert torch.equal(params[0], before)
    params[0].requires_grad_(True)
    rest(optimizer, params)
    torch.testing.assert_close(params[0].detach(), before)


@each_family
@each_way
@pytest.mark.parametrize("path", [("none", "l1"), ("group", "l1"), ("none",)])
def test_switching_the_penalty_leaves_the_weights_where_they_are(family, way, path):
    optimizer, params = regularized(family, way)
    del optimizer.param_groups[0]["params"][2]  # one axis, which has no groups
    params = optimizer.param_groups[0]["params"]
    for penalty in path:
        before = snapshot(params)
        optimizer.param_groups[0]["penalty"] = penalty
        rest(optimizer, params)
        assert_same(params, before)
        optimizer.param_groups[0]["lr"] = 0.01
        give_gradients(params, 50)
        optimizer.step()
        assert not torch.equal(params[0], before[0])


@each_family
@each_way
def test_a_group_regularized_later_takes_the_lambda_of_the_others(family, way):
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[3:], "penalty": "none"}]
    optimizer = FAMILIES[family][0](groups, lambda_init=0.3, backend=way)
    give_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["lambda_"].fill_(0.02)
    before = snapshot(params[3:])
    optimizer.param_groups[1]["penalty"] = "l1"
    rest(optimizer, params)
    assert float(optimizer.param_groups[1]["lambda_"]) == pytest.approx(0.02)
    assert_same(params[3:], before)


@each_family
@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_leaves_the_weights_where_they_are(family, way, dtype):
    optimizer, params = regularized(family, way)
    for param in params:
        param.data = param.data.to(dtype)
    before = snapshot(params)
    rest(optimizer, params)
    assert_same(params, before, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    for param in params:
        param.data = param.data.float()
    before = snapshot(params)
    rest(optimizer, params)
    assert_same(params, before, atol=1e-5)


@each_family
@each_way
def test_a_removed_group_is_left_alone_and_the_others_go_on(family, way):
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[3:]}]
    optimizer = FAMILIES[family][0](groups, lambda_init=0.3, backend=way)
    controller = FeedbackController(optimizer, 0.5, 100, ramp_start=None, ramp_end=None)
    give_gradients(params, 0)
    optimizer.step()
    before = snapshot(params)
    del optimizer.param_groups[0]
    give_gradients(params, 1)
    optimizer.step()
    controller.step()
    assert_same(params[:2], before[:2], rtol=0, atol=0)
    assert not torch.equal(params[3], before[3])


# --- weights edited from outside --------------------------------------------------------------------------------------


def through_data(param: Tensor, value: Tensor) -> None:
    param.data.copy_(value)


def in_place(param: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        param.copy_(value)


def new_data(param: Tensor, value: Tensor) -> None:
    param.data = value.clone()


EDITS = {"data.copy_": through_data, "copy_": in_place, "data =": new_data}
each_edit = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
adopting = pytest.mark.filterwarnings("ignore:weights were changed outside")


@adopting
@each_family
@each_way
@each_edit
@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_restored_weights_are_where_the_next_step_starts_from(family, way, edit, penalty):
    params = [param for param in parameters() if param.ndim > 1]
    optimizer = FAMILIES[family][0](params, lambda_init=0.1, backend=way, penalty=penalty)
    best = snapshot(params)
    for step in range(5):
        give_gradients(params, step)
        optimizer.step()
    for param, value in zip(params, best, strict=True):
        edit(param, value)
    rest(optimizer, params)
    assert_same(params, best)


@adopting
@each_family
@each_way
@each_edit
def test_the_count_is_of_the_weights_as_they_are(family, way, edit):
    optimizer, params = regularized(family, way)
    assert optimizer.count_nonzero(params).tolist() == [int(param.count_nonzero()) for param in params]
    edit(params[0], torch.zeros_like(params[0]))
    assert optimizer.count_nonzero(params)[0] == 0
    edit(params[0], torch.ones_like(params[0]))
    assert optimizer.count_nonzero(params)[0] == params[0].numel()


@each_family
@each_way
@each_edit
def test_weights_swapped_for_an_evaluation_and_back_change_nothing(family, way, edit):
    optimizer, params = regularized(family, way)
    twin, untouched = regularized(family, way)
    own = snapshot(params)
    for param, value in zip(params, own, strict=True):
        edit(param, torch.zeros_like(value))  # an average, say
        edit(param, value)
    for each, those in ((optimizer, params), (twin, untouched)):
        give_gradients(those, 9)
        each.step()
    assert_same(params, untouched, rtol=0, atol=0)


@each_family
@each_way
def test_adopting_is_silent_where_it_is_asked_for_and_warned_of_once_where_not(family, way):
    optimizer, params = regularized(family, way)
    for _ in range(3):
        for param in params:
            param.data.mul_(0.5)
        optimizer.adopt_weights()
        before = snapshot(params)
        rest(optimizer, params, steps=1)
        assert_same(params, before)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            params[0].data.mul_(0.5)
            rest(optimizer, params, steps=1)
    (warning,) = (str(each.message) for each in seen)
    assert "weights were changed outside the optimizer (parameter 0 of group 0 and perhaps others)" in warning
    assert "optimizer.adopt_weights()" in warning


@each_family
@each_way
def test_an_edit_leaves_the_duals_of_untouched_weights_alone(family, way):
    optimizer, params = regularized(family, way)
    dual = optimizer.state[params[0]]["dual"].clone()
    with torch.no_grad():
        params[0][0].fill_(3.0)
    optimizer.adopt_weights()
    assert torch.equal(optimizer.state[params[0]]["dual"][1:], dual[1:])
    torch.testing.assert_close(optimizer.state[params[0]]["dual"][0], torch.full((5,), 3.8))


@each_family
@each_way
@pytest.mark.parametrize("model_first", [True, False])
def test_model_and_optimizer_are_loaded_in_any_order(family, way, model_first):
    optimizer, params = regularized(family, way)
    optimizer.param_groups[0]["lambda_"].mul_(1.3)  # a controller, before the state was saved
    saved = copy.deepcopy((snapshot(params), optimizer.state_dict()))
    fresh = parameters()
    other = FAMILIES[family][0](fresh, lambda_init=7.0, backend=way)
    for turn in (model_first, not model_first):
        if turn:
            for param, value in zip(fresh, saved[0], strict=True):
                in_place(param, value)
        else:
            other.load_state_dict(saved[1])
    for each, those in ((optimizer, params), (other, fresh)):
        give_gradients(those, 9)
        each.step()
    assert_same(params, fresh, rtol=0, atol=0)


# --- refused in words -------------------------------------------------------------------------------------------------


@each_family
@each_way
@pytest.mark.parametrize("shape", [(3, 5), (60, 5), (30,)])
def test_a_state_of_other_shapes_is_refused_with_both(family, way, shape):
    optimizer, _ = regularized(family, way)
    other = [nn.Parameter(torch.ones(shape)), *parameters()[1:]]
    target = FAMILIES[family][0](other, backend=way)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has shape .* and its \w+ \(6, 5\)"):
        target.load_state_dict(optimizer.state_dict())
    give_gradients(other, 0)
    target.step()  # as if nothing had been loaded
    assert other[0].shape == shape


@pytest.mark.parametrize(
    ("family", "foreign", "words"),
    [
        ("AdaBreg", torch.optim.AdamW, "torch.optim.Adam or AdamW"),
        ("LinBreg", torch.optim.AdamW, "torch.optim.Adam or AdamW"),
        ("AdaBreg", torch.optim.SGD, "torch.optim.SGD"),
        ("LinBreg", torch.optim.SGD, "torch.optim.SGD"),
        ("AdaBreg", torch.optim.Adagrad, "another optimizer"),
        ("AdaBreg", LinBreg, "LinBreg"),
        ("LinBreg", AdaBreg, "AdaBreg"),
        ("AdaBreg", ProxSGD, "ProxSGD"),
        ("LinBreg", ProxSGD, "ProxSGD"),
    ],
)
def test_a_state_of_another_optimizer_is_refused_with_its_name(family, foreign, words):
    params = parameters()
    other = foreign(parameters(), lr=0.1)
    give_gradients(other.param_groups[0]["params"], 0)
    other.step()
    optimizer = FAMILIES[family][0](params)
    with pytest.raises(ValueError, match=f"this is a state of {words} .*{family} loads its own only"):
        optimizer.load_state_dict(other.state_dict())


def named(order: list[str]) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.ones(3, 3))) for name in order]


def test_a_state_in_another_order_is_refused_unless_a_hook_reorders_it():
    saved = AdaBreg(named(["a", "b"])).state_dict()
    optimizer = AdaBreg(named(["b", "a"]))
    with pytest.raises(ValueError, match="the saved state has a where the optimizer has b"):
        optimizer.load_state_dict(saved)

    def reorder(_, state):
        state = copy.deepcopy(state)
        state["param_groups"][0]["param_names"].reverse()
        state["param_groups"][0]["params"].reverse()
        return state

    optimizer.register_load_state_dict_pre_hook(reorder)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["param_names"] == ["b", "a"]


def test_a_state_of_a_wrapped_model_is_loaded_since_only_the_prefix_of_its_names_differs():
    optimizer = AdaBreg(named(["a", "b"]))
    optimizer.load_state_dict(AdaBreg(named(["module.a", "module.b"])).state_dict())


@each_family
@each_way
def test_a_parameter_resized_in_place_is_refused_at_the_next_step(family, way):
    optimizer, params = regularized(family, way)
    params[0].data = torch.cat([params[0].data, torch.ones(100, 5)])
    give_gradients(params, 9)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has shape \(106, 5\) and its \w+ \(6, 5\)"):
        optimizer.step()
    del optimizer.state[params[0]]  # the remedy that the message names
    optimizer.step()
    assert params[0].shape == (106, 5)


@each_family
@each_way
def test_a_gradient_of_another_shape_is_refused(family, way):
    optimizer, params = regularized(family, way)
    del optimizer.state[params[0]]
    params[0].data = torch.ones(9, 5)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has shape \(9, 5\) and its gradient \(6, 5\)"):
        optimizer.step()


@each_family
def test_what_cannot_be_trained_is_refused_by_the_constructor_with_its_name(family):
    make, _ = FAMILIES[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about lazy modules
        lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match=r"weight has no shape yet \(a lazy layer\): run a batch through the model"):
        make(lazy.named_parameters())
    with pytest.raises(ValueError, match="parameter 0 of group 0 must be real, got torch.complex64"):
        make([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])


def test_a_dtensor_is_refused_by_the_constructor(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  # slow to import
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Linear(3, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for kind in (AdaBreg, LinBreg, ProxSGD):
            with pytest.raises(ValueError, match=r"weight is a DTensor.*use DistributedDataParallel"):
                kind(model.named_parameters())
    finally:
        torch.distributed.destroy_process_group()


NUMBERS = {
    AdaBreg: ("lr", "lambda_", "lambda_scale", "eps", "delta", "weight_decay"),
    LinBreg: ("lr", "lambda_", "lambda_scale", "momentum", "dampening", "delta", "weight_decay"),
    ProxSGD: ("lr", "lambda_", "lambda_scale"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.1", True, [0.1]], ids=str)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NUMBERS.items() for name in names])
def test_what_is_no_finite_number_is_refused_with_the_setting(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*number.*, got "):
        kind([{"params": parameters(1), name: value}])


@pytest.mark.parametrize("betas", [None, 0.9, (0.9,), (0.9, math.nan), (0.9, None), (0.9, 1.0), ("0.9", 0.9)], ids=str)
def test_betas_that_are_no_two_numbers_are_refused(betas):
    with pytest.raises(ValueError, match=r"^betas must be two numbers in \[0, 1\), got "):
        AdaBreg(parameters(1), betas=betas)


@pytest.mark.parametrize(("kind", "name"), [(AdaBreg, "maximize"), (LinBreg, "nesterov"), (ProxSGD, "maximize")])
def test_what_is_no_flag_is_refused_with_the_setting(kind, name):
    with pytest.raises(ValueError, match=f"^{name} must be True or False, got None"):
        kind(parameters(1), **{name: None})


def test_a_lambda_set_from_outside_is_checked_as_well():
    params = parameters(1)
    optimizer = AdaBreg(params)
    optimizer.param_groups[0]["lambda_"] = math.nan
    give_gradients(params, 0)
    with pytest.raises(ValueError, match="^lambda_ must be a finite number, 0 or more, got nan"):
        optimizer.step()


def test_the_callers_groups_are_left_alone():
    params = parameters(2)
    groups = [{"params": [("a", params[0])]}, {"params": [("b", params[1])], "penalty": "none"}]
    before = copy.copy(groups), [dict(group) for group in groups]
    optimizer = AdaBreg(groups, lambda_init=0.1)
    late = {"params": (pair for pair in named(["c"]))}
    optimizer.add_param_group(late)
    assert groups == before[0]
    assert [set(group) for group in groups] == [set(group) for group in before[1]]
    assert groups[0]["params"][0][0] == "a"
    assert set(late) == {"params"}
