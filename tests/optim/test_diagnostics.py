"""What is told of the support."""

import pytest
import torch
from helpers.small import network, train
from torch import nn

from sv_sparse.optim import AdaBreg, FeedbackController, FixedController, SupportDiagnostics, param_groups


def marked(values) -> tuple[SupportDiagnostics, nn.Parameter]:
    param = nn.Parameter(torch.tensor([values]))
    return SupportDiagnostics(FixedController(AdaBreg([param]), 0.5, 10)), param


def test_births_deaths_and_turnover_are_shares():
    diagnostics, param = marked([1.0, 2.0, 0.0, 0.0])
    diagnostics.snapshot()
    param.data = torch.tensor([[0.0, 2.0, 3.0, 4.0]])
    figures = {name: value.item() for name, value in diagnostics.compute().items()}
    assert figures == {"activated": 0.5, "deactivated": 0.25, "turnover": 0.0}
    diagnostics.snapshot()
    param.data = torch.tensor([[5.0, 2.0, 0.0, 4.0]])
    figures = {name: value.item() for name, value in diagnostics.compute().items()}
    assert figures["activated"] == figures["deactivated"] == 0.25
    assert figures["turnover"] == pytest.approx(1 / 3)


def test_turnover_goes_on_from_a_saved_state():
    diagnostics, param = marked([1.0, 2.0, 0.0, 0.0])
    diagnostics.snapshot()
    diagnostics.compute()
    other, same = marked([1.0, 2.0, 0.0, 0.0])
    other.load_state_dict(diagnostics.state_dict())
    for one, weights in ((diagnostics, param), (other, same)):
        one.snapshot()
        weights.data = torch.tensor([[1.0, 0.0, 3.0, 4.0]])
    assert diagnostics.compute() == other.compute()


def test_without_a_mark_or_without_regulated_weights_there_is_nothing_to_tell():
    diagnostics, _ = marked([1.0, 2.0])
    assert diagnostics.compute() == {}
    dense = SupportDiagnostics(FixedController(AdaBreg([nn.Parameter(torch.ones(2))], penalty="none"), 0.0, 10))
    dense.snapshot()
    assert dense.compute() == {}
    assert dense.dual_histogram() is None


@pytest.mark.parametrize("penalty", ["l1", "l0", "group"])
def test_the_histogram_of_duals_splits_at_lambda_into_dead_and_alive(penalty):
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty=penalty), lr=0.02, lambda_init=0.02)
    controller = FeedbackController(optimizer, 0.5, 20)
    train(model, optimizer, 20, after=controller.step)
    optimizer.apply_prox()
    counts = SupportDiagnostics(controller).dual_histogram(num_bins=64)
    assert counts.shape == (64,)
    if penalty != "group":
        zeros = sum(int((param == 0).sum()) for param in controller.params)
        assert int(counts.sum()) == sum(param.numel() for param in controller.params)
        assert int(counts[:16].sum()) == pytest.approx(zeros, abs=2)  # 64 bins to 4 times lambda
    else:
        assert int(counts.sum()) == sum(len(param) for param in controller.params)
