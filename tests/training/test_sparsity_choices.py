"""Every choice of ``sparsity=`` trains, lands and reports, by the same command."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import TINY

from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import load_config
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.training.init_from import InitSource
from sv_sparse.training.logging import read_rows
from sv_sparse.training.param_groups import build_param_groups, initial_lambda, learning_rates, resolve_penalty

SHORT = ("trainer.epochs=3", "data.val_fraction=0")


def run(train, tones, tmp_path, *settings):
    done = train(*TINY, *SHORT, *tones.settings(), *settings)
    assert done.status == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    return json.loads((folder / "results.json").read_text()), read_rows(folder / "metrics.jsonl")


def config_of(*words):
    return load_config(parse_command_line([]).compose(["run_name=test", *words]))


@pytest.mark.parametrize("choice", ["feedback", "paper", "quantile", "gradual_magnitude"])
def test_it_ends_on_the_target(train, tones, tmp_path, choice):
    found, rows = run(train, tones, tmp_path, f"sparsity={choice}", "target_sparsity=0.7")
    assert found["sparsity"] == pytest.approx(0.7, abs=1e-3)
    if choice in {"quantile", "gradual_magnitude"}:
        assert found["sparsity_tracked"] == pytest.approx(0.7, abs=1e-3)
    last = [row for row in rows if "support/activated" in row][-1]
    assert all(0 <= last[f"support/{name}"] <= 1 for name in ("activated", "deactivated", "turnover"))


def test_under_a_common_lambda_channels_die_in_order_of_their_size_within_their_layer():
    network, head = ECAPA(channels=16, mfa_channels=24), AAMSoftmax(192, 5)
    config = config_of("target_sparsity=0.5", "sparsity.penalty=group", "sparsity.init_density=1")
    groups = build_param_groups(network, head, config, {"weights": 0.003, "others": 0.003})
    sparse = [group for group in groups if group["penalty"] == "group"]
    assert all(len(group["params"]) == 1 for group in sparse)
    sizes = [group["params"][0][1].square().mean().sqrt().item() / group["lambda_scale"] for group in sparse]
    assert max(sizes) == pytest.approx(min(sizes), rel=1e-4)


@pytest.mark.parametrize(
    ("sparsity", "alive", "origin", "first"),
    [
        ("quantile", 20, None, {"lambda_init": 0.002}),
        ("fixed", 20, None, {}),
        ("feedback", 2, None, {}),
        ("feedback", 20, 0.3, {"lambda_init": 0.3}),
        ("feedback", 2, 0.0, {}),
        ("fixed", 2, 0.3, {}),
    ],
    ids=[
        "dense at the start: low",
        "fixed: as it is",
        "sparse at the start: as it is",
        "from a run that lambda made sparse: its lambda",
        "from a run that masks made sparse: as it is",
        "fixed from a run: as it is",
    ],
)
def test_lambda_starts_low_beside_dense_weights_where_a_controller_moves_it(sparsity, alive, origin, first):
    config = config_of(f"sparsity={sparsity}")
    weight = torch.full((4, 5), 0.2)
    weight.flatten()[alive:] = 0
    run = None if origin is None else InitSource(Path("run"), {}, {}, origin)
    assert initial_lambda(config, run, [{"penalty": "l1", "params": [("weight", weight)]}]) == pytest.approx(first)


def test_under_l0_lambda_starts_below_the_weights_of_a_sparse_network():
    weight = torch.zeros(4, 5)
    weight[0, :2] = torch.tensor([0.05, -0.02])
    start = initial_lambda(config_of(), None, [{"penalty": "l0", "params": [("weight", weight)]}])
    assert start == pytest.approx({"lambda_init": 0.999 * 0.02})


@pytest.mark.parametrize("delta", [1.0, 10.0])
def test_a_lambda_above_the_living_weights_starts_where_it_does_not_make_them_larger(delta):
    config = config_of("optim.lambda_init=100", f"optim.delta={delta}")
    weight = torch.zeros(4, 5)
    weight[0, :2] = torch.tensor([0.3, -0.4])
    groups = [{"penalty": "l1", "params": [("weight", weight)]}, {"penalty": "none", "params": []}]
    assert delta * initial_lambda(config, None, groups)["lambda_init"] == pytest.approx(0.125**0.5)


@pytest.mark.parametrize(
    ("words", "sparse_init", "penalty"),
    [
        ([], True, "l1"),
        ([], False, "l0"),
        (["optim=proxsgd"], False, "l1"),
        (["sparsity.penalty=l1"], False, "l1"),
        (["sparsity.penalty=l0"], True, "l0"),
        (["sparsity=gradual_magnitude"], False, "none"),
    ],
)
def test_the_start_decides_on_the_penalty_unless_it_is_named(words, sparse_init, penalty):
    assert resolve_penalty(config_of(*words), sparse_init=sparse_init).sparsity.penalty == penalty


def test_weights_that_start_dense_and_become_sparse_have_a_rate_of_their_own():
    pretrained = ["init_from=runs/dense", "optim.lr.pretrained=0.002"]
    assert learning_rates(config_of(*pretrained), sparse_init=False) == {"weights": 0.002, "others": 0.003}
    assert learning_rates(config_of(*pretrained), sparse_init=True) == {"weights": 0.01, "others": 0.01}
    dense = config_of(*pretrained, "sparsity=dense")
    assert learning_rates(dense, sparse_init=False) == {"weights": 0.003, "others": 0.003}
    assert learning_rates(config_of("optim.lr=0.5", "init_from=x"), sparse_init=False)["weights"] == 0.5


def test_the_allocation_reaches_the_controller_and_its_groups(train, tones, tmp_path):
    results, _ = run(train, tones, tmp_path, "target_sparsity=0.7", "sparsity.allocation=uniform")
    assert results["sparsity"] == pytest.approx(0.7, abs=1e-3)
    for layer in results["layers"].values():
        # Each to within a weight or two of the target: the total is exact.
        assert abs(layer["zeros"] - 0.7 * layer["parameters"]) <= 2


def test_a_fixed_lambda_ends_where_it_ends(train, tones, tmp_path):
    found, _ = run(train, tones, tmp_path, "sparsity=fixed", "optim.lambda_init=0.02", "target_sparsity=0.7")
    assert found["sparsity"] == pytest.approx(found["sparsity_tracked"])
    assert found["lambda"] == pytest.approx(0.02)


def test_dense_is_target_zero(train, tones, tmp_path):
    found, rows = run(train, tones, tmp_path, "sparsity=dense")
    assert found["sparsity"] == found["target_sparsity"] == 0
    assert max(row["lr"] for row in rows if "lr" in row) == pytest.approx(0.003, rel=0.2)


@pytest.mark.filterwarnings("ignore:finalized with")
def test_the_proximal_baseline_lands_from_below_and_has_no_duals_to_come_back_by(train, tones, tmp_path):
    found, _ = run(train, tones, tmp_path, "optim=proxsgd", "target_sparsity=0.7")
    before = found["sparsity_tracked"]
    assert before == pytest.approx(0.7, abs=0.1)
    assert found["sparsity"] == pytest.approx(max(0.7, before), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["sparsity=dense", "target_sparsity=0.5"],
            "target_sparsity=0.5: sparsity=dense trains dense; leave target_sparsity out",
        ),
        (["sparsity.penalty=group"], "sparsity.init_density must be 1, got 0.01"),
        (["sparsity.penalty=mask"], "sparsity.penalty must be one of auto, l1, l0, group, none, got 'mask'"),
        (
            ["sparsity.granularity=row"],
            "sparsity.granularity must be one of out_channel, in_channel, kernel, got 'row'",
        ),
        (
            ["optim.backend=fast"],
            "optim.backend must be one of auto, cpp, foreach, got 'fast'",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(train, tones, settings, message):
    done = train(*TINY, *tones.settings(), *settings)
    assert done.status == 2
    assert message in done.err


def test_names_of_the_network_say_what_stays_dense_and_what_may_become_zero(train, tones, tmp_path):
    results, _ = run(train, tones, tmp_path, "sparsity.dense=[embedding]", "sparsity.sparse=[blocks]")
    assert "embedding.weight" not in results["layers"]
    assert any(name.startswith("blocks") for name in results["layers"])


def test_a_name_that_the_network_lacks_is_refused_before_training(train, tones):
    done = train(*TINY, *tones.settings(), "sparsity.dense=[embeding]")
    assert done.status == 2
    assert "dense names 'embeding', which is no parameter or module with parameters; near are embedding" in done.err


@pytest.mark.parametrize(
    ("words", "decay", "is_frozen"),
    [
        ([], "exponential", False),
        (["init_from=a"], "exponential", False),
        (["teacher=b"], "exponential", False),
        (["init_from=a", "teacher=self"], "linear", True),
        (["init_from=a", "teacher=self", "trainer.lr_decay=cosine", "trainer.batch_norm=batch"], "cosine", False),
    ],
)
def test_trained_weights_beside_a_teacher_have_a_schedule_and_statistics_of_their_own(words, decay, is_frozen):
    config = config_of(*words)
    assert (config.lr_decay, config.freezes_batch_norm) == (decay, is_frozen)


@pytest.mark.parametrize("words", [["sparsity=gradual_magnitude"], ["sparsity=dense", "target_sparsity=0"]])
def test_without_a_penalty_weights_of_a_sparse_run_train_at_the_rate_of_dense_ones(words):
    rates = learning_rates(config_of("optim=linbreg", "init_from=x", *words), sparse_init=True)
    assert rates == {"weights": 0.1, "others": 0.1}
