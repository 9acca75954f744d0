"""Laws of a teacher: what is learned from it, that it stays as it is, and that a run goes on with the same one."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.noise import small_noise_store
from helpers.same import assert_same_run
from helpers.tiny import THREE_EPOCHS, TINY
from torch import nn

from sv_sparse import checkpoint
from sv_sparse.commands import main as cli
from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import load_config
from sv_sparse.data.augment_ops import mask_filterbank
from sv_sparse.data.manifest import Manifest
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.evaluation.load import load_network
from sv_sparse.models.features import Filterbank
from sv_sparse.models.heads import NoHead
from sv_sparse.training.finalize import validate
from sv_sparse.training.logging import read_rows
from sv_sparse.training.setup import build_setup
from sv_sparse.training.trainer import ModelWithLoss, Trainer, reduce_batch_info

ALONE = ("head=none", "teacher=self")


@pytest.fixture
def make_setup(tones, tmp_path):
    """Build a tiny setup of some settings."""

    def make(*words):
        config = load_config(parse_command_line([]).compose(["run_name=test", *TINY, *tones.settings(), *words]))
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        (folder / "checkpoints").mkdir(parents=True)
        return build_setup(config, folder, load_corpus(config, folder))

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Noises and rooms for augmentation."""
    return small_noise_store(tmp_path_factory.mktemp("noise"))


def train_steps(setup, count: int = 2) -> tuple[list[dict], dict]:
    """Make some steps, and return the metrics of each and the weights after them."""
    trainer = Trainer(setup, time.monotonic())
    metrics = []
    trainer._log_step = metrics.append
    batches = list(setup.loader)
    size = setup.config.trainer.grad_accum_steps
    try:
        with trainer._training_mode():
            setup.train_mode()
            for step in range(count):
                parts = batches[step * size : (step + 1) * size]
                trainer._train_step(parts, reduce_batch_info(parts, []).num_crops)
    finally:
        trainer.metrics.close()
    return metrics, setup.network.state_dict()


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def changed_copy(run: Path, folder: Path) -> Path:
    """Copy a run, and change a weight of its network."""
    shutil.copytree(run, folder)
    path = folder / "checkpoints" / "model.pt"
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    next(iter(state["model"].values()))[0] += 1
    checkpoint.save(path, state)
    return folder


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_loss_is_that_of_the_head_and_the_weighted_mean_cosine_distance(weight):
    network, embedding = nn.Linear(3, 4), torch.randn(5, 4)
    labels = torch.randint(2, (5,))
    inputs = torch.randn(5, 3)

    class Squares(nn.Module):
        def forward(self, embedding, labels):
            return embedding.square().mean(), embedding[:, :2]

    loss, scores, cosine = ModelWithLoss(network, Squares(), weight)(inputs, labels, embedding)
    student, teacher = network(inputs).detach().double().numpy(), embedding.double().numpy()
    norms = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    expected = ((student * teacher).sum(axis=1) / norms).mean()
    assert cosine.item() == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx((student**2).mean() + weight * (1 - expected), abs=1e-5)
    assert scores.shape == (5, 2)
    alone, no_scores, _ = ModelWithLoss(network, NoHead(), weight)(inputs, labels, embedding)
    assert alone.item() == pytest.approx(weight * (1 - expected), abs=1e-5)
    assert no_scores is None


@pytest.mark.parametrize("head", ["none", "aam_softmax"])
def test_training_leaves_the_teacher_as_it_is(make_setup, finished, head):
    setup = make_setup(f"head={head}", "teacher=self", f"init_from={finished}", "target_sparsity=0.8")
    teacher = setup.teacher
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    for name, value in load_network(finished)[0].state_dict().items():
        assert torch.equal(before[name], value), name
    metrics, after = train_steps(setup)
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(after[name], before[name]) for name in statistics)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in teacher.network.modules())
    assert all(param.grad is None and not param.requires_grad for param in teacher.network.parameters())
    trained = {id(param) for group in setup.optimizer.param_groups for param in group["params"]}
    assert trained.isdisjoint(map(id, teacher.network.parameters()))
    expected = {"loss", "teacher_cosine"} | ({"accuracy"} if head == "aam_softmax" else set())
    assert [set(row) for row in metrics] == [expected] * 2


def test_the_draws_of_a_run_do_not_depend_on_its_teacher(make_setup, finished):
    without, beside = make_setup(), make_setup(f"teacher={finished}")
    for name, value in without.network.state_dict().items():
        assert torch.equal(beside.network.state_dict()[name], value), name
    assert torch.equal(without.head.weight, beside.head.weight)


@pytest.mark.parametrize("crops", ["clean", "same"])
def test_under_augmentation_the_teacher_gets_the_clean_crop_or_the_same(make_setup, finished, store, crops):
    words = [f"augment.noise_dir={store}", "augment.aug_prob=1", "augment.spec_augment_prob=1"]
    words += ["augment.speed_perturb=[1.0,0.9,1.1]", f"distill.input={crops}", "trainer.batch_size=12"]
    setup = make_setup(f"teacher={finished}", *words)
    batch = next(iter(setup.loader))
    features, target = setup.extract_step_inputs(batch)
    teacher = setup.teacher.network
    if crops == "same":
        expected = features
    else:
        speed_alone = batch.augmentation._replace(rir_rows=torch.empty(0, dtype=torch.int64), rirs=torch.empty(0, 0))
        speed_alone = speed_alone._replace(noise_rows=speed_alone.rir_rows, noises=torch.empty(0, 4880))
        expected = setup.filterbank(setup.mixer(batch.waveforms, speed_alone))
    assert not target.requires_grad
    torch.testing.assert_close(target, teacher(expected), rtol=1e-4, atol=1e-5)
    other = mask_filterbank(expected, batch.augmentation.mask) if crops == "clean" else expected.roll(1, dims=0)
    assert not torch.allclose(target, teacher(other), atol=1e-3)
    assert torch.equal(features, setup.extract_features(batch))


def test_a_batch_in_parts_has_the_loss_of_the_batch_as_a_whole(make_setup, finished):
    words = [*ALONE, f"init_from={finished}", "target_sparsity=0.8", "trainer.batch_size=12", "optim=linbreg"]
    logged = []
    for count in (1, 3):
        setup = make_setup(*words, f"trainer.grad_accum_steps={count}")
        logged.append(train_steps(setup, 1))
    (whole,), weights = logged[0]
    (parts,), weights_by_parts = logged[1]
    torch.testing.assert_close(parts, whole)
    for name, value in weights.items():
        torch.testing.assert_close(weights_by_parts[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what torch's compiler imports
def test_a_compiled_update_is_the_eager_one(make_setup, finished, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="eager"))
    words = [*ALONE, f"init_from={finished}", "target_sparsity=0.8", "optim=linbreg", "trainer.cpu_kernels=false"]
    eager, compiled = (train_steps(make_setup(*words, f"trainer.compile={how}"), 1) for how in ("false", "true"))
    torch.testing.assert_close(compiled[0], eager[0])
    for name, value in eager[1].items():
        torch.testing.assert_close(compiled[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_float32_learns(make_setup, finished, precision):
    words = [*ALONE, f"init_from={finished}", "target_sparsity=0.8"]
    exact, rounded = (train_steps(make_setup(*words, f"trainer.precision={name}"), 1) for name in ("fp32", precision))
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.05, atol=0.02)


def test_a_teacher_may_be_a_plain_state_dict_of_the_network(make_setup, finished, tmp_path):
    weights = load_network(finished)[0].state_dict()
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    setup = make_setup(f"teacher={tmp_path / 'weights.pt'}")
    for name, value in weights.items():
        assert torch.equal(setup.teacher.network.state_dict()[name], value), name


def test_a_teacher_has_its_own_features(make_setup, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    path = other / "checkpoints" / "model.pt"
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    state["config"]["model"]["features"] = "wespeaker"
    checkpoint.save(path, state)
    setup, other_setup = make_setup(f"teacher={finished}"), make_setup(f"teacher={other}")
    batch = next(iter(setup.loader))
    features, target = setup.extract_step_inputs(batch)
    other_features, other_target = other_setup.extract_step_inputs(batch)
    assert torch.equal(features, other_features)
    assert not torch.allclose(target, other_target, atol=1e-4)


def test_the_validation_compares_held_out_crops_or_training_crops(make_setup, finished):
    words = [*ALONE, f"init_from={finished}", "target_sparsity=0.8"]
    held_out, everybody = make_setup(*words), make_setup(*words, "data.val_fraction=0")
    for setup, has_speakers in ((held_out, True), (everybody, False)):
        validation = validate(setup)
        # The network is the teacher still.
        assert validation.teacher_cosine == pytest.approx(1, abs=1e-6)
        assert (validation.eer is not None) == has_speakers
        with torch.no_grad():
            for param in setup.network.parameters():
                param.mul_(1 + 0.5 * torch.randn_like(param))
        assert validate(setup).teacher_cosine < 0.99


def test_a_run_without_labels_goes_from_training_to_the_report(train, finished, tones, tmp_path, capsys):
    run = tmp_path / "run"
    done = train(*TINY, *tones.settings(), *ALONE, f"init_from={finished}", "target_sparsity=0.9", f"run_dir={run}")
    assert done.status == 0, done.err
    assert f"starting from {finished}\n" in done.out
    assert "teacher: self, " in done.out
    final = results(run)
    assert final["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert final["size"]["head_parameters"] == 0
    assert -1 <= final["min_teacher_cosine"] <= final["teacher_cosine"] <= 1
    assert final["teacher_recordings"] == 18
    steps = [row for row in read_rows(run / "metrics.jsonl") if "loss" in row]
    assert all("accuracy" not in row and "margin" not in row for row in steps)
    for row in steps:
        assert row["loss"] == pytest.approx(1 - row["teacher_cosine"], abs=1e-6)
    validations = [row for row in read_rows(run / "metrics.jsonl") if "layers" in row]
    assert all(-1 <= row["validation_teacher_cosine"] <= 1 for row in validations)
    assert final["validation_teacher_cosine_tracked"] == validations[-1]["validation_teacher_cosine"]
    assert f"mean cosine to the teacher {validations[0]['validation_teacher_cosine']:.4f}" in done.out
    for name in ("report.md", "report.html"):
        report = (run / name).read_text()
        assert "Agreement with the teacher" in report
        assert f"{final['min_teacher_cosine']:.4f}" in report
        assert "18 trial recordings" in report
    assert (run / "figures" / "teacher.svg").is_file()
    cli.main(["evaluate", str(run)])
    assert f"trials: EER {100 * final['eer']:.2f} %" in capsys.readouterr().out
    # Labels may come later: a head starts anew.
    after = train(*TINY, *tones.settings(), f"init_from={run}", "trainer.max_steps=2", f"run_dir={tmp_path / 'after'}")
    assert after.status == 0, after.err
    assert "the head has 0 of 4 training speakers" in after.out


def test_the_final_cosines_are_those_of_the_whole_trial_recordings(train, finished, tones, tmp_path):
    run = tmp_path / "run"
    words = ["target_sparsity=0.9", f"teacher={finished}", "trainer.epochs=1", f"run_dir={run}"]
    done = train(*TINY, *tones.settings(), *words)
    assert done.status == 0, done.err
    final = results(run)
    networks = [load_network(folder)[0] for folder in (run, finished)]
    manifest = Manifest(run / "manifest.parquet")
    cosines = []
    for row in manifest.split("test"):
        waveform, _ = soundfile.read(manifest.segments(row)[0].path, dtype="float32")
        features = Filterbank()(torch.from_numpy(waveform)[None])
        with torch.no_grad():
            student, teacher = (network(features) for network in networks)
        cosines.append(nn.functional.cosine_similarity(student, teacher).item())
    assert final["teacher_recordings"] == len(cosines) == 18
    assert final["teacher_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert final["min_teacher_cosine"] == pytest.approx(min(cosines), abs=1e-4)


@pytest.mark.parametrize("words", [ALONE, ("teacher=FINISHED", "distill.weight=0.5")], ids=["self", "file"])
def test_a_run_that_was_killed_continues_without_changing_a_bit(attempts, finished, tones, tmp_path, words):
    words = [word.replace("FINISHED", str(finished)) for word in words]
    words = [*THREE_EPOCHS, *tones.settings(), *words, f"init_from={finished}", "trainer.epochs=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = attempts(*words, f"run_dir={whole}")
    assert done.status == 0, done.err
    done = attempts(*words, f"run_dir={killed}", within="trainer._record_non_finite", visit=8)
    assert done.status == -signal.SIGKILL, done.err
    done = attempts(f"resume_from={killed}")
    assert done.status == 0, done.err
    assert_same_run(killed, whole)
    assert (killed / "checkpoints" / "teacher.pt").is_file() == ("teacher=self" in words)


def test_a_run_killed_between_its_teacher_and_its_first_checkpoint_is_begun_again(attempts, finished, tones, tmp_path):
    words = [*TINY, *tones.settings(), f"init_from={finished}", "trainer.epochs=1", f"run_dir={tmp_path / 'run'}"]
    done = attempts(*words, *ALONE, within="checkpoints.save", visit=1)
    assert done.status == -signal.SIGKILL, done.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["teacher.pt"]
    done = attempts(*words, f"teacher={finished}")
    assert done.status == 0, done.err
    assert not (tmp_path / "run" / "checkpoints" / "teacher.pt").exists()


def test_another_teacher_than_at_the_start_is_refused(train, finished, tones, tmp_path):
    teacher = shutil.copytree(finished, tmp_path / "teacher")
    run = tmp_path / "run"
    words = [*TINY, *tones.settings(), "trainer.epochs=1", f"teacher={teacher}", f"run_dir={run}"]
    assert train(*words).status == 0
    shutil.rmtree(teacher)
    done = train(f"resume_from={run}")
    assert done.status == 2
    assert f"error: teacher={teacher}: no such file or folder" in done.err
    changed_copy(finished, teacher)
    done = train(f"resume_from={run}")
    assert done.status == 2
    assert f"error: teacher={teacher}: {teacher} has other weights than when the run began" in done.err


def test_a_teacher_that_was_lost_or_changed_in_the_run_is_refused(train, finished, tones, tmp_path):
    run = tmp_path / "run"
    words = [*TINY, *tones.settings(), "trainer.epochs=1", f"init_from={finished}", *ALONE, f"run_dir={run}"]
    assert train(*words).status == 0
    path = run / "checkpoints" / "teacher.pt"
    state = checkpoint.load(path, checkpoint.TEACHER_KEYS)
    next(iter(state["model"].values()))[0] += 1
    checkpoint.save(path, state)
    assert f"error: teacher=self: {path} has other weights than when the run began" in train(f"resume_from={run}").err
    path.unlink()
    assert f"error: no checkpoint at {path}" in train(f"resume_from={run}").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=self"], "teacher=self is the network that a run starts from, which is untrained without init_from"),
        (["head=none"], "head=none has a loss only with a teacher; add teacher=RUN, or choose head=aam_softmax"),
        (["teacher=/nowhere"], "teacher=/nowhere: no such file or folder"),
        (["teacher=FINISHED", "distill.weight=0"], "distill.weight must be a number above 0, got 0"),
        (["teacher=FINISHED", "distill.input=noisy"], "distill.input must be one of clean, same, got 'noisy'"),
        (["teacher=FINISHED", "head=none", "sparsity.sparsify_head=true"], "sparsity.sparsify_head=true needs a head"),
        (["teacher=FINISHED", "model.embedding_dim=8"], "teacher=FINISHED has embeddings of 16 numbers, ecapa (chan"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_data_are_read(train, finished, tones, tmp_path, words, message):
    data = ["data=folder", "data.root=/nowhere", f"data.trial_lists={tones.trials}", f"run_dir={tmp_path / 'run'}"]
    done = train(*TINY, *data, *(word.replace("FINISHED", str(finished)) for word in words))
    assert done.status == 2
    assert f"error: {message.replace('FINISHED', str(finished))}" in done.err
    assert not (tmp_path / "run").exists()


def test_speakers_that_the_teacher_was_trained_on_do_not_judge(train, finished, tones, tmp_path):
    manifest = Manifest(finished / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split("train")[:8]]
    trials = tmp_path / "trials.txt"
    trials.write_text("".join(f"{int(a[:7] == b[:7])} {a} {b}\n" for a in keys for b in keys if a != b))
    data = ["data=folder", f"data.root={tones.root}", f"data.trial_lists={trials}"]
    done = train(*TINY, *data, f"teacher={finished}")
    assert done.status == 2
    assert f"of its speakers are trained on with teacher={finished}" in done.err
    done = train(*TINY, *tones.settings(), f"teacher={finished}", "data.val_fraction=0.5")
    assert done.status == 2
    assert f"were trained on by teacher={finished}; hold out the same" in done.err
