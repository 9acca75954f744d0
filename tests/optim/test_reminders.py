"""Laws of the reminders: what a training loop forgets is said once, and nothing where all is well."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from helpers.controlled import batches, start
from helpers.small import network, train
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    QuantileController,
    param_groups,
)


def controlled(total: int = 100, target: float = 0.5, kind=QuantileController, penalty: str = "l1"):
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty=penalty), lr=0.01, backend="foreach")
    return model, optimizer, kind(optimizer, target, total)


def said(action) -> list[str]:
    """Return the warnings while something happens and what it held is collected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
        gc.collect()
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


def test_a_forgotten_step_of_the_controller_is_said_once_after_fifty_updates():
    model, optimizer, controller = controlled()
    assert said(lambda: train(model, optimizer, 49)) == []
    (text,) = said(lambda: train(model, optimizer, 51))
    assert "50 updates since the controller's last step" in text
    assert "call controller.step() after every optimizer.step()" in text
    controller.step()
    assert said(lambda: train(model, optimizer, 60)) == []


def test_a_controller_that_steps_or_is_finalized_or_is_gone_is_not_missed():
    model, optimizer, controller = controlled(1000)
    assert said(lambda: train(model, optimizer, 60, after=controller.step)) == []
    optimizer.param_groups[0]["params"][0].grad = None
    model, optimizer, controller = controlled()
    controller.finalize()
    assert said(lambda: train(model, optimizer, 60)) == []
    model, optimizer, controller = controlled()
    later = QuantileController(optimizer, 0.7, 100)
    assert said(lambda: train(model, optimizer, 60, after=later.step)) == []  # the latest one counts
    assert controller.steps == 0
    model, optimizer, last = controlled()
    del last
    gc.collect()
    assert said(lambda: train(model, optimizer, 60)) == []
    QuantileController(optimizer, 0.5, 100)
    assert len(optimizer._optimizer_step_post_hooks) == 1  # that of an earlier controller goes


def test_updates_that_a_grad_scaler_skips_are_not_counted():
    model, optimizer, controller = controlled()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30, growth_interval=10**6)

    def skipped() -> None:
        for _ in range(60):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(4, 4, 8)).sum() * float("inf")).backward()
            scaler.step(optimizer)
            scaler.update()

    assert said(skipped) == []
    assert controller.steps == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda items: pickle.loads(pickle.dumps(items))])
def test_copies_watch_their_own_optimizer(copied):
    model, optimizer, controller = copied(controlled())
    assert controller.optimizer is optimizer
    (text,) = said(lambda: train(model, optimizer, 60))
    assert "50 updates" in text
    controller.reminders.active = False
    assert not copied(controller).reminders.active


def test_a_compiled_update_is_not_counted_nor_compiled_anew():
    model, optimizer, controller = controlled()
    train(model, optimizer, 2, after=controller.step)
    compiled = torch.compile(optimizer.step, backend="eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(4):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        compiled()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] in {1, 2}
    assert controller.reminders._missed_steps == 0


def finished(kind=QuantileController, penalty="l1", target=0.5):
    model, optimizer, controller = controlled(20, kind=kind, penalty=penalty, target=target)
    train(model, optimizer, 20, after=controller.step)
    return controller


def test_a_finished_run_that_was_never_finalized_is_said_when_its_controller_goes():
    assert said(finished) == []  # the quantile is exact after every update
    (text,) = said(lambda: finished(kind=FeedbackController))
    assert text.startswith(
        "a run of total_steps=20 ended without controller.finalize(), which makes the sparsity exact"
    )


def test_nothing_is_said_at_the_end_of_other_runs():
    def short() -> None:
        model, optimizer, controller = controlled(20)
        train(model, optimizer, 19, after=controller.step)

    def resume() -> None:
        controlled(20)[2].load_state_dict(controller.state_dict())

    controller = finished()
    for action in (
        lambda: finished().finalize(),
        lambda: finished().state_dict(),  # which is finalized where it is loaded
        lambda: finished(FixedController),
        lambda: finished(FixedController, "none", 0.0),
        lambda: copy.deepcopy(controller),
        short,
        resume,
    ):
        assert said(action) == []
    controller.reminders.active = False


def test_a_program_that_ends_without_finalize_says_so():
    code = """
import torch
from sv_sparse.optim import AdaBreg, FeedbackController, param_groups
model = torch.nn.Linear(20, 10)
optimizer = AdaBreg(param_groups(model), backend="foreach")
controller = FeedbackController(optimizer, 0.5, 3)
for step in range(3):
    model(torch.ones(2, 20)).sum().backward()
    optimizer.step()
    controller.step()
"""
    for more, expected in (("", True), ("controller.reminders.active = False", False)):
        done = subprocess.run([sys.executable, "-c", code + more], capture_output=True, text=True, check=True)
        assert ("total_steps=3 ended without controller.finalize()" in done.stderr) == expected


def test_finalizing_from_far_away_says_how_far_and_how_many_steps():
    model, optimizer, controller = start(AdaBreg, 0.9, 300)  # starts at 99 %
    train_some(model, optimizer, controller, 3)
    with pytest.warns(UserWarning, match=r"from 9[78]\.\d\d % zeros to 90.00 %, after 3 of total_steps=300"):
        controller.finalize()


def test_finalizing_long_before_the_end_says_so_once():
    model, optimizer, controller = controlled(1000)
    controller.ramp = None
    train(model, optimizer, 30, after=controller.step)
    with pytest.warns(UserWarning, match="after 30 of total_steps=1000: total_steps must be the number of"):
        controller.finalize()
    assert said(controller.finalize) == []


def test_finalizing_near_the_target_or_a_network_that_was_not_trained_says_nothing():
    model, optimizer, controller = controlled(50)
    train(model, optimizer, 30, after=controller.step)
    assert said(controller.finalize) == []
    assert said(controlled()[2].finalize) == []
    model, optimizer, controller = controlled(40, kind=GradualMagnitudePruning, penalty="none")
    train(model, optimizer, 40, after=controller.step)
    assert said(controller.finalize) == []


def test_steps_beyond_the_total_are_said_once():
    model, optimizer, controller = controlled(20)
    assert said(lambda: train(model, optimizer, 24, after=controller.step)) == []
    (text,) = said(lambda: train(model, optimizer, 30, after=controller.step))
    assert text.startswith("the controller has made 26 steps of total_steps=20")
    controller.reminders.active = False


def test_a_single_group_of_weights_and_biases_is_said_to_want_param_groups():
    optimizer = AdaBreg(network().parameters())
    with pytest.warns(UserWarning, match="3 biases or gains, .* zero too: make the groups by param_groups"):
        FeedbackController(optimizer, 0.5, 10)
    for groups in (param_groups(network()), [nn.Parameter(torch.ones(4, 4))], [nn.Parameter(torch.ones(40))]):
        assert said(lambda groups=groups: FeedbackController(AdaBreg(groups), 0.5, 10)) == []


def test_a_fixed_lambda_and_dense_training_are_never_reminded():
    def loop(controller) -> None:
        model = network()
        optimizer = AdaBreg(param_groups(model, penalty="none"))
        train(model, optimizer, 60)
        controller(optimizer, 0.0, 10).finalize()

    assert said(lambda: loop(FixedController)) == []
    assert said(lambda: loop(FeedbackController)) == []
    model = network()
    optimizer = LinBreg(model.parameters(), lambda_init=0.01)
    controller = FixedController(optimizer, 0.5, 10)
    assert said(lambda: train(model, optimizer, 60)) == []
    controller.finalize()


def train_some(model, optimizer, controller, steps: int) -> None:
    for x, y in batches(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()


def test_the_reminders_leave_the_state_loadable_with_weights_only():
    controller = finished()
    file = io.BytesIO()
    torch.save([controller.state_dict(), controller.optimizer.state_dict()], file)
    file.seek(0)
    state, _ = torch.load(file, weights_only=True)
    assert state["steps"] == 20
    controller.finalize()
