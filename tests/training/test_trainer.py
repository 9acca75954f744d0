"""Laws of one training step, and of the settings that a run's end depends on."""

import json
import time
from dataclasses import replace

import pytest
import soundfile
import torch
from helpers.tiny import TINY, write_tones, write_trial_list

from sv_sparse import checkpoint
from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import load_config
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.training.device import (
    DeviceConfig,
    bf16_speedup,
    oom_hint,
    resolve_device_config,
    resolve_precision,
)
from sv_sparse.training.finalize import _statistics_crops
from sv_sparse.training.logging import read_rows
from sv_sparse.training.setup import build_setup
from sv_sparse.training.trainer import Trainer, reduce_batch_info

CPU = torch.device("cpu")


@pytest.fixture
def make_setup(tones, tmp_path):
    """Build a tiny setup of some settings, its batch norms frozen: they would see the parts of a batch."""

    def make(*words):
        config = load_config(parse_command_line([]).compose(["run_name=test", *TINY, *tones.settings(), *words]))
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        (folder / "checkpoints").mkdir(parents=True)
        setup = build_setup(config, folder, load_corpus(config, folder))
        setup.network.eval()
        return setup

    return make


def step(setup, scaler=None, log_interval=1):
    """Return loss and accuracy of the first step, if it is logged, and the weights after it."""
    setup.config = replace(setup.config, trainer=replace(setup.config.trainer, log_interval=log_interval))
    trainer = Trainer(setup, time.monotonic())
    trainer.state.scaler = scaler or trainer.state.scaler
    logged = [None, None]
    trainer._log_step = lambda metrics: logged.__setitem__(slice(None), [metrics["loss"], metrics["accuracy"]])
    parts = list(setup.loader)[: setup.config.trainer.grad_accum_steps]
    try:
        with trainer._training_mode():
            trainer._train_step(parts, reduce_batch_info(parts, []).num_crops)
    finally:
        trainer.metrics.close()
    return *logged, setup.network.state_dict()


def test_a_batch_in_parts_is_the_batch_as_a_whole(make_setup):
    words = ["optim=linbreg", "optim.lr=0.05", "target_sparsity=0.5", "trainer.batch_size=12"]
    whole, parts = (step(make_setup(*words, f"trainer.grad_accum_steps={count}")) for count in (1, 3))
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1] == whole[1]
    for name, value in whole[2].items():
        torch.testing.assert_close(parts[2][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_float32_learns(make_setup, precision):
    words = ["optim=linbreg", "optim.lr=0.05", "target_sparsity=0.5"]
    exact, rounded = (step(make_setup(*words, f"trainer.precision={name}")) for name in ("fp32", precision))
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.05, atol=0.05)
    assert all(value.dtype == exact[2][name].dtype for name, value in rounded[2].items())
    weights = [
        torch.cat([value.flatten() for value in found[2].values() if value.ndim > 1]) for found in (exact, rounded)
    ]
    torch.testing.assert_close(weights[1], weights[0], rtol=0.1, atol=0.01)


def test_gradients_that_overflow_at_any_scale_end_the_run(make_setup):
    setup = make_setup("trainer.precision=fp16", "target_sparsity=0.5")
    next(setup.network.parameters()).register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(ArithmeticError, match="trainer.precision=fp16: gradients overflow"):
        step(setup, torch.amp.GradScaler("cpu", init_scale=2.0**-10), log_interval=2)


def test_an_overflow_in_fp16_leaves_the_weights_and_lambda_and_lowers_the_scale(make_setup):
    setup = make_setup("trainer.precision=fp16", "target_sparsity=0.5")
    before = {name: value.clone() for name, value in setup.network.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    step(setup, scaler, log_interval=2)
    assert scaler.get_scale() == 2.0**39
    assert setup.controller.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in setup.network.state_dict().items())


def scaled_by(scale: float, factor: float = 0.5):
    """Return a GradScaler's maker that begins at a scale at which fp16 overflows."""
    return lambda _: torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=factor)


def test_a_run_all_of_whose_steps_overflow_ends_with_an_error_before_landing(train, tones, tmp_path, monkeypatch):
    monkeypatch.setattr(DeviceConfig, "scaler", scaled_by(2.0**60))
    words = [*TINY, *tones.settings(), "trainer.precision=fp16", "trainer.max_steps=3", f"run_dir={tmp_path / 'run'}"]
    done = train(*words, "data.val_fraction=0")
    assert done.status == 2
    message = "error: trainer.precision=fp16: gradients overflowed at each of the 3 steps, so none made an update"
    assert message in done.err
    assert done.out.count("made no update: in fp16 a gradient overflowed, with the loss scaled by 1.15292e+18") == 1
    assert "step 3 of 3: sparsity" in done.out
    assert "3 steps without an update" in done.out
    assert "finalizing" not in done.out
    assert not (tmp_path / "run" / "checkpoints" / "model.pt").exists()
    again = train(f"resume_from={tmp_path / 'run'}")
    assert (again.status, message in again.err) == (2, True)


def test_steps_that_overflow_are_counted_after_each_epoch(train, tones, tmp_path, monkeypatch):
    monkeypatch.setattr(DeviceConfig, "scaler", scaled_by(2.0**60, 2.0**-58))
    words = [*TINY, *tones.settings(), "trainer.precision=fp16", "trainer.epochs=1", f"run_dir={tmp_path / 'run'}"]
    done = train(*words, "data.val_fraction=0")
    assert done.status == 0, done.err
    assert "step 1 made no update: in fp16 a gradient overflowed" in done.out
    (row,) = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "layers" in row]
    assert row["steps_without_update"] == 1


def test_a_run_none_of_whose_batches_has_two_crops_that_can_be_read_ends_with_an_error(
    train, tones, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "sv_sparse.training.trainer.reduce_batch_info",
        lambda parts, signals: replace(reduce_batch_info(parts, signals), min_part_size=1),
    )
    done = train(*TINY, *tones.settings(), "trainer.max_steps=2", "data.val_fraction=0", f"run_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert "error: none of the 2 steps made an update: each had fewer than 2 crops that could be read" in done.err


def test_averaging_without_duals_is_refused_before_data_are_read(train, tones, tmp_path):
    words = [
        *TINY,
        "data=folder",
        "data.root=/nowhere",
        f"data.trial_lists={tones.trials}",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = train(*words, "optim=proxsgd", "trainer.num_avg=2")
    assert done.status == 2
    assert "error: trainer.num_avg=2 averages dual variables, and optim=proxsgd has none; choose" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.res2net_scale=3"], "model.channels must be divisible by res2net_scale=3, got 16"),
        (["model.layout=other"], "model.layout must be one of wespeaker, speechbrain, got 'other'"),
        (["optim.betas=[0.9,1.5]"], "optim.betas must be two numbers in [0, 1), got "),
        (["sparsity.controller.alpha=-1"], "sparsity.controller.alpha must be above 0, got -1"),
        (
            ["sparsity.controller.freeze_fraction=1"],
            "sparsity.controller.freeze_fraction must be at least 0 and below 1, got 1",
        ),
        (
            ["trainer.early_stop_patience=2", "data.val_fraction=0"],
            "trainer.early_stop_patience=2 needs speakers to validate on",
        ),
        (["sparsity=quantile", "optim=proxsgd"], "sparsity.controller: QuantileController orders dual variables"),
        (
            ["sparsity.penalty=group", "sparsity.init_density=1", "sparsity.sparsify_head=true"],
            "sparsity.sparsify_head=true with sparsity.granularity=out_channel",
        ),
        (["head.margin=2"], "head.margin must be at least 0 and below pi / 2, got 2"),
        (["head.sub_centers=0"], "head.sub_centers must be a whole number, 1 or more, got 0"),
        (["augment.aug_prob=0.5"], "augment.aug_prob=0.5 needs augment.noise_dir"),
        (["sparsity.dense=[nothing]"], "sparsity.dense=['nothing'], sparsity.sparse=[]: dense names 'nothing'"),
    ],
)
def test_what_a_constructor_refuses_is_named_as_typed_before_data_are_read(train, tones, tmp_path, words, message):
    data = ["data=folder", "data.root=/nowhere", f"data.trial_lists={tones.trials}", f"run_dir={tmp_path / 'run'}"]
    done = train(*TINY, *data, *words)
    assert done.status == 2
    assert f"error: {message}" in done.err
    assert not (tmp_path / "run").exists()


def test_both_margins_rise_on_one_schedule(make_setup):
    trainer = Trainer(make_setup("head.topk=2", "head.margin_warmup_start=0.1"), time.monotonic())
    pairs = []
    for step in range(trainer.setup.total_steps + 1):
        trainer.state.progress.step = step
        trainer._apply_schedules()
        pairs.append((trainer.setup.head.margin, trainer.setup.head.topk_margin))
    trainer.metrics.close()
    assert (pairs[0], pairs[-1]) == ((0.0, 0.0), (0.2, 0.06))
    assert any(0 < margin < 0.2 for margin, _ in pairs)
    assert all(topk_margin == pytest.approx(0.3 * margin) for margin, topk_margin in pairs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what torch's compiler imports
def test_a_compiled_update_is_the_eager_one(make_setup):
    words = [
        "optim=linbreg",
        "optim.lr=0.05",
        "target_sparsity=0.5",
        "model.dilations=[1,2]",
        "model.kernel_sizes=[3,3]",
    ]
    eager, compiled = (step(make_setup(*words, f"trainer.compile={how}")) for how in ("false", "true"))
    torch.testing.assert_close(compiled[0], eager[0])
    for name, value in eager[2].items():
        torch.testing.assert_close(compiled[2][name], value, rtol=1e-4, atol=1e-6)


def test_auto_takes_bf16_where_it_is_measured_to_be_faster():
    gain = bf16_speedup(CPU)
    name, reason = resolve_precision("auto", CPU)
    assert name in {"bf16", "fp32"}
    if not 1 < gain < 1.7:  # near the limit a second measurement may differ
        assert (name == "bf16") == (gain >= 1.3)
    assert "times as fast in bf16 as in fp32 here" in reason
    assert resolve_precision("fp16", CPU) == ("fp16", "fp16, as asked")


def test_on_a_cpu_nothing_is_compiled_unless_asked():
    assert not resolve_device_config("cpu", "fp32", "auto").compiled
    assert str(resolve_device_config("cpu", "bf16", True)) == "cpu in bf16 autocast, compiled"
    assert str(DeviceConfig(CPU, "fp32", compiled=False)) == "cpu in fp32"


def test_too_little_memory_is_answered_with_what_to_change():
    message = "CUDA out of memory: lower trainer.batch_size=256"
    with pytest.raises(ValueError, match=message), oom_hint("lower trainer.batch_size=256"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_of_some_steps_goes_through_everything(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "target_sparsity=0.8", f"run_dir={tmp_path / 'run'}"]
    done = train(*words, "trainer.max_steps=8", "trainer.epochs=1", "trainer.profile=true")  # 6 steps in an epoch
    assert done.status == 0, done.err
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "layers" in row] == [6, 8]
    assert results(tmp_path / "run")["sparsity"] == pytest.approx(0.8, abs=1e-3)
    (trace,) = (tmp_path / "run" / "tensorboard").glob("rank0.*.pt.trace.json")
    assert any("AdaBreg" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    assert "Self CPU" in (tmp_path / "run" / "train.log").read_text()


def test_an_early_end_delivers_the_best_epoch(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "target_sparsity=0", f"run_dir={tmp_path / 'run'}", "trainer.lr_scale=1e-9"]
    done = train(*words, "trainer.epochs=9", "trainer.early_stop_patience=2")
    assert done.status == 0, done.err
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)
    assert last["progress"]["epoch"] == last["best"]["epoch"] + 2 < 9
    assert f"restoring best epoch {last['best']['epoch']} of {last['progress']['epoch']}" in done.out
    path = tmp_path / "run" / "checkpoints" / f"epoch_{last['best']['epoch']:04d}.pt"
    best = checkpoint.load(path, checkpoint.TRAINING_KEYS)["model"]
    delivered = checkpoint.load(tmp_path / "run" / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)["model"]
    assert all(torch.equal(delivered[name], value) for name, value in best.items() if value.ndim > 1)


def test_an_average_of_epochs_is_as_sparse_as_asked(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "target_sparsity=0.8", f"run_dir={tmp_path / 'run'}", "trainer.epochs=6"]
    done = train(*words, "trainer.num_avg=3", "trainer.keep_last=3")
    assert done.status == 0, done.err
    assert "averaging the last 3 epochs" in done.out
    assert results(tmp_path / "run")["sparsity"] == pytest.approx(0.8, abs=1e-3)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.glob("epoch_*")) == [f"epoch_000{number}.pt" for number in (4, 5, 6)]
    last = checkpoint.load(folder / "epoch_0006.pt", checkpoint.TRAINING_KEYS)["model"]
    delivered = checkpoint.load(folder / "model.pt", checkpoint.NETWORK_KEYS)["model"]
    assert not torch.equal(last["embedding.weight"], delivered["embedding.weight"])


def test_best_and_average_are_not_both_taken(train, tones):
    done = train(*TINY, *tones.settings(), "trainer.num_avg=2", "trainer.early_stop_patience=2")
    assert done.status == 2
    assert (
        "trainer.early_stop_patience delivers the best epoch, trainer.num_avg the last ones: choose one of them"
        in done.err
    )


def test_patience_needs_somebody_to_validate_on(train, tones):
    done = train(*TINY, *tones.settings(), "trainer.early_stop_patience=2", "data.val_fraction=0")
    assert done.status == 2
    assert "trainer.early_stop_patience=2 needs speakers to validate on" in done.err


def test_crops_of_another_rate_are_resampled_in_float32_whatever_the_precision_of_a_run(make_setup, tmp_path):
    keys = write_tones(tmp_path / "wav", [f"spk{number}" for number in range(6)])
    for key in keys:
        samples, _ = soundfile.read(tmp_path / "wav" / key)
        soundfile.write(tmp_path / "wav" / key, samples, 22050)
    write_trial_list(tmp_path / "trials.txt", [key for key in keys if key[3] in "45"])
    words = [f"data.root={tmp_path / 'wav'}", f"data.trial_lists={tmp_path / 'trials.txt'}"]
    plain = make_setup(*words)
    expected = list(_statistics_crops(plain, plain.dataset, ""))
    reduced = make_setup(*words, "trainer.precision=bf16")
    with reduced.device.autocast():
        crops = list(_statistics_crops(reduced, reduced.dataset, ""))
        assert torch.is_autocast_enabled("cpu")
    assert len(crops) == len(expected) > 0
    for batch, other in zip(crops, expected, strict=True):
        assert torch.equal(batch.waveforms, other.waveforms)
