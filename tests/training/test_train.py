"""Laws of a whole run, on a tiny network and a tiny corpus."""

import json
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.tiny import TINY
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sv_sparse import checkpoint
from sv_sparse.commands import main as cli
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import read_trials
from sv_sparse.evaluation.score_files import read_scores
from sv_sparse.scoring.metrics import eer, sort_scores
from sv_sparse.training.logging import read_rows

FILES = {
    *("config.yaml", "environment.json", "manifest.parquet", "train.log", "metrics.jsonl", "results.json", "report.md"),
    *("checkpoints/last.pt", "checkpoints/model.pt", "scores/trials.txt"),
    *("report.html", "figures/loss.svg", "figures/sparsity.svg", "figures/lambda.svg", "figures/support.svg"),
    *("figures/layers.svg", "figures/det.svg", "figures/scores_trials.svg"),
}


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_a_run_folder_holds_everything(finished):
    assert {str(path.relative_to(finished)) for path in finished.rglob("*")} >= FILES


def test_the_delivered_network_has_the_target_sparsity_to_the_weight(finished):
    state = checkpoint.load(finished / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)["model"]
    weights = [value for value in state.values() if value.ndim > 1]
    size, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    assert size - zeros == round(0.2 * size)
    assert results(finished)["sparsity"] == zeros / size


def test_the_results_say_what_scripts_need(finished):
    found = results(finished)
    assert found.keys() >= {
        *("target_sparsity", "sparsity_tracked", "sparsity", "nonzero_parameters", "eer", "min_dcf"),
        *("wall_time_s", "evaluations", "layers"),
    }
    one = found["evaluations"]["trials"]
    assert (one["eer"], one["dcf"][0]["min_dcf"], one["untrained_eer"]) == (
        found["eer"],
        found["min_dcf"],
        found["untrained_eer"],
    )
    layers = found["layers"].values()
    assert sum(layer["zeros"] for layer in layers) / sum(layer["parameters"] for layer in layers) == found["sparsity"]


def test_log_results_and_report_name_the_corpus_its_path_and_its_lists(finished, tones):
    corpus = {"name": "folder", "synthetic": False, "path": str(tones.root), "train": None}
    assert results(finished)["corpus"] == corpus | {"trials": [str(tones.trials)]}
    log = (finished / "train.log").read_text().splitlines()
    assert log[0].endswith(f"corpus: folder, {tones.root}")
    assert any(f"trial list trials: 153 trials, 45 targets ({tones.trials})" in line for line in log)
    for name in ("report.html", "report.md"):
        report = (finished / name).read_text()
        assert "Corpus: folder, " in report
        assert str(tones.root) in report
        assert str(tones.trials) in report


def test_the_first_line_says_that_the_demo_was_not_chosen_and_how_to_choose(train, tmp_path):
    made = [f"data.synthesize.{name}=2" for name in ("sessions", "utterances")]
    made += ["data.synthesize.train_speakers=4", "data.synthesize.test_speakers=4", "data.synthesize.trials=12"]
    words = [*TINY, *made, f"data.cache_dir={tmp_path / 'demo'}", "trainer.max_steps=2", "data.val_fraction=0"]
    refused = "trainer.batch_size=999"  # by the run that has said the line; not every run needs to be trained for it
    by_default = train(*words, refused)
    assert by_default.status == 2
    first = by_default.out.splitlines()[0]
    assert first.startswith(
        "corpus: demo (synthetic voices; data=demo is the default, data=folder reads your recordings"
    )
    assert first.endswith(str(tmp_path / "demo" / "wav"))
    chosen = train(*words, "data=demo", f"run_dir={tmp_path / 'chosen'}")
    assert chosen.out.splitlines()[0] == f"corpus: demo (synthetic voices), {tmp_path / 'demo' / 'wav'}"
    assert results(tmp_path / "chosen")["corpus"]["synthetic"]
    assert "demo (synthetic voices)" in (tmp_path / "chosen" / "report.html").read_text()
    after = train(*TINY, f"init_from={tmp_path / 'chosen'}", refused)
    assert after.out.splitlines()[0] == f"corpus: demo (synthetic voices), {tmp_path / 'demo' / 'wav'}"


def test_the_eer_in_the_results_is_that_of_the_written_scores(finished):
    scores, is_target = read_scores(finished / "scores" / "trials.txt")
    assert eer(sort_scores(scores, is_target))[0] == pytest.approx(results(finished)["eer"], abs=1e-3)


def test_the_log_ends_with_the_result_and_the_report(finished):
    *_, eer_line, sparsity_line, report_line = (finished / "train.log").read_text().splitlines()
    said = results(finished)
    assert eer_line.endswith(f": trials: EER {100 * said['eer']:.2f} %, 153 trials")
    tracked = f"{100 * said['sparsity_tracked']:.2f}"
    assert sparsity_line.endswith(f": sparsity: {100 * said['sparsity']:.4f} % (tracked {tracked} %)")
    assert report_line.endswith(f": report: {finished}/report.html")


def test_the_log_says_how_long_the_run_is_and_how_long_it_should_be(finished):
    log = (finished / "train.log").read_text()
    said = results(finished)["training"]
    assert f"training length: {said['hours']:.2f} hours of speech x 2 epochs, {said['steps']} steps" in log
    steps_per_epoch = said["steps"] // 2
    (epochs,) = re.findall(r"WARNING .*: plan 3000 or more; trainer.epochs=(\d+) gives as many", log)
    assert (int(epochs) - 1) * steps_per_epoch < 3000 <= int(epochs) * steps_per_epoch


def test_the_table_is_the_last_thing_printed(finished):
    report = (finished / "report.md").read_text()
    last = (finished / "stdout.txt").read_text().rstrip().splitlines()[-3:]
    assert all(line.startswith("|") and line in report for line in last)
    assert f"{results(finished)['sparsity']:.4%}" in last[2]


def test_no_evaluation_speaker_is_trained_or_validated_on(finished, tones):
    manifest = Manifest(finished / "manifest.parquet")
    evaluation = {utterance.split("/")[0] for utterance in read_trials(tones.trials).utterances}
    train, validation = set(manifest.speakers("train")), set(manifest.speakers("validation"))
    assert not evaluation & (train | validation)
    assert not train & validation
    assert validation


def test_every_step_is_recorded_with_its_figures(finished):
    rows = [row for row in read_rows(finished / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0].keys() >= {
        *(
            "loss",
            "accuracy",
            "lr",
            "margin",
            "lambda",
            "sparsity_error",
            "utterances_per_second",
            "data_wait_fraction",
        ),
        *("sparsity/network", "sparsity/regularized", "sparsity/all"),
    }
    assert rows[-1]["margin"] == 0.2
    assert all(later["lr"] < earlier["lr"] for earlier, later in pairwise(rows[1:]))


def test_tensorboard_has_the_curves_the_layers_and_the_hyperparameters(finished):
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        *(
            "loss",
            "accuracy",
            "lr",
            "margin",
            "lambda",
            "sparsity_error",
            "sparsity/network",
            "sparsity/regularized",
            "sparsity/all",
        ),
        *("validation_eer", "utterances_per_second", "data_wait_fraction", "final/eer", "final/sparsity"),
        *("final/sparsity_tracked", "final/nonzero_parameters", "final/validation_eer"),
    }
    assert set(events.Tags()["images"]) >= {"report/det", "report/sparsity", "report/lambda", "report/layers"}
    assert sum(tag.startswith("sparsity_per_layer/") for tag in tags) == len(results(finished)["layers"])


def test_evaluating_the_network_file_gives_the_runs_own_figures(finished, tones, tmp_path, capsys):
    network = str(finished / "checkpoints" / "model.pt")
    lists = ["--audio-root", str(tones.root), "--trials", str(tones.trials), "--output-dir", str(tmp_path / "scores")]
    cli.main(["evaluate", network, *lists])
    assert f"trials: EER {100 * results(finished)['eer']:.2f} %" in capsys.readouterr().out
    again, _ = read_scores(tmp_path / "scores" / "trials.txt")
    np.testing.assert_allclose(again, read_scores(finished / "scores" / "trials.txt")[0], atol=2e-6)


def test_a_target_of_zero_trains_dense_on_the_same_path(train, tones, tmp_path):
    assert train(*TINY, *tones.settings(), "target_sparsity=0", "trainer.epochs=1").status == 0
    found = results(only_run(tmp_path))
    assert found["sparsity"] == found["sparsity_tracked"] == 0
    assert found["nonzero_parameters"] == found["parameters"]
    rates = [row["lr"] for row in read_rows(only_run(tmp_path) / "metrics.jsonl") if "lr" in row]
    assert max(rates) == 0.003


def test_one_learning_rate_serves_sparse_and_dense_runs(train, tones, tmp_path):
    assert train(*TINY, *tones.settings(), "optim.lr=0.005", "trainer.epochs=1").status == 0
    rates = [row["lr"] for row in read_rows(only_run(tmp_path) / "metrics.jsonl") if "lr" in row]
    assert max(rates) == 0.005


def test_weights_that_start_sparse_have_a_learning_rate_of_their_own(train, tones, tmp_path):
    assert train(*TINY, *tones.settings(), "optim=linbreg", "trainer.epochs=1").status == 0
    groups = checkpoint.load(only_run(tmp_path) / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["optimizer"]
    rates = {group["name"]: group["initial_lr"] for group in groups["param_groups"]}
    assert rates == {"sparse": 10.0, "dense": 0.1, "head": 0.1}


def test_the_head_counts_only_where_it_is_asked_for(train, tones, tmp_path, finished):
    assert results(finished)["sparsity_network"] == pytest.approx(results(finished)["sparsity"], abs=1e-6)
    settings = ["sparsity.sparsify_head=true", "target_sparsity=0.8", "trainer.epochs=1"]
    assert train(*TINY, *tones.settings(), *settings).status == 0
    found = results(only_run(tmp_path))
    assert found["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert found["sparsity_network"] != found["sparsity"]


def test_resnet34_linbreg_and_several_trial_lists_run(train, tones, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n".join(tones.trials.read_text().splitlines()[::2]) + "\n")
    tiny = [word for word in TINY if not word.startswith("model.")]
    model = ["model=resnet34", "model.base_channels=16", "model.embedding_dim=16", "optim=linbreg", "trainer.epochs=1"]
    lists = [*tones.settings()[:2], f"data.trial_lists=[{tones.trials},{other}]"]
    done = train(*tiny, *model, *lists, "target_sparsity=0.7", "data.val_fraction=0", "trainer.max_grad_norm=null")
    assert done.status == 0
    found = results(only_run(tmp_path))
    assert list(found["evaluations"]) == ["trials", "other"]
    assert found["sparsity"] == pytest.approx(0.7, abs=1e-4)
    assert (
        len([line for line in done.out.splitlines() if line.startswith("| trials") or line.startswith("| other")]) == 2
    )


def test_bf16_leaves_weights_and_optimizer_state_in_float32(train, tones, tmp_path):
    assert train(*TINY, *tones.settings(), "trainer.precision=bf16", "trainer.epochs=1").status == 0
    state = checkpoint.load(only_run(tmp_path) / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)
    tensors = [*state["model"].values(), *(v for one in state["optimizer"]["state"].values() for v in one.values())]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def test_a_sweep_leaves_a_folder_for_each_run(train, tones, tmp_path):
    assert train("-m", *TINY, *tones.settings(), "target_sparsity=0.5,0.75", "trainer.epochs=1").status == 0
    targets = sorted(results(file.parent)["target_sparsity"] for file in (tmp_path / "runs").glob("*/results.json"))
    assert targets == [0.5, 0.75]


def test_a_folder_may_have_any_name(train, tones, tmp_path):
    folder = tmp_path / "é $x 'y' \"z\" =1,2 #{a}%s"
    quoted = "run_dir='{}'".format(str(folder).replace("'", "\\'"))
    done = train(*TINY, *tones.settings(), "trainer.max_steps=2", quoted)
    assert done.status == 0, done.err
    assert f"{folder}/report.html" in done.out
    assert OmegaConf.load(folder / "config.yaml").run_dir == str(folder)
    assert {"train.log", "report.html", "tensorboard"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["run_dir", "runs_dir"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_by_its_name(train, tones, tmp_path, name):
    path = tmp_path / os.fsdecode(b"b\xffd")
    done = train(*TINY, *tones.settings(), f"{name}='{path}'")
    assert done.status == 2
    assert done.err == f"error: {name}={tmp_path}/b\\xffd: expected a name in UTF-8, as tensorboard needs one\n"
    assert not path.exists()
