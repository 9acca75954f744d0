"""A run that starts from another: its network, its head, its lambda, and none of the speakers that it is judged by."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny import TINY
from omegaconf import OmegaConf

from sv_sparse import checkpoint
from sv_sparse.commands import main as cli
from sv_sparse.data.manifest import SEGMENT, Manifest
from sv_sparse.io import file_lock
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.training.init_from import InitSource
from sv_sparse.training.logging import read_rows

SLOW = ("trainer.lr_scale=1e-9", "data.evaluate_untrained=true")


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def network(folder):
    return checkpoint.load(folder / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)


def test_it_begins_where_the_other_ended_and_lands_again(train, finished, tones, tmp_path):
    done = train(*TINY, *tones.settings(), "target_sparsity=0.8", f"init_from={finished}", *SLOW)
    assert done.status == 0, done.err
    assert re.search(r"the head has (\d+) of \1 training speakers", done.out)
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (finished, only_run(tmp_path)))
    assert after["untrained_eer"] == pytest.approx(before["eer"], abs=0.05)  # less another mean
    assert after["sparsity"] == before["sparsity"]
    for name, value in network(finished)["model"].items():
        if value.ndim > 1:
            torch.testing.assert_close(network(only_run(tmp_path))["model"][name], value, atol=1e-5, rtol=0)
    rows = read_rows(only_run(tmp_path) / "metrics.jsonl")
    assert rows[0]["lambda"] == pytest.approx(before["lambda"], rel=1e-4)
    assert rows[0]["sparsity/regularized"] == pytest.approx(0.8, abs=1e-3)
    assert rows[0]["loss"] < read_rows(finished / "metrics.jsonl")[0]["loss"]


def test_large_margin_fine_tuning_has_its_margin_at_once_and_the_rates_of_a_sparse_start(
    train, finished, tones, tmp_path
):
    short = [word for word in TINY if not word.startswith("trainer.crop")]
    settings = ["experiment=lmft", "trainer.crop_seconds=0.4", f"init_from={finished}", "target_sparsity=0.8"]
    done = train(*short, *tones.settings(), *settings)
    assert done.status == 0, done.err
    rows = [row for row in read_rows(only_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert {row["margin"] for row in rows} == {0.5}
    assert max(row["lr"] for row in rows) == pytest.approx(0.01 * 0.01)


def test_the_heads_rows_go_to_their_speakers(train, finished, tones, tmp_path):
    fewer = tmp_path / "train.txt"
    manifest = Manifest(finished / "manifest.parquet")
    names = manifest.speakers("train")[1:]
    keys = [manifest.utterance(row) for row in manifest.split("train") if manifest.speaker(row) in names]
    fewer.write_text("".join(f"{key.split('/')[0]} {key}\n" for key in keys))
    settings = [f"data.train_utterances={fewer}", "data.val_fraction=0", "trainer.lr_scale=1e-9", "target_sparsity=0.8"]
    done = train(*TINY, *tones.settings(), *settings, f"init_from={finished}")
    assert done.status == 0, done.err
    old, new = (
        checkpoint.load(folder / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["head"]["weight"]
        for folder in (finished, only_run(tmp_path))
    )
    torch.testing.assert_close(new, old[1 : len(names) + 1], atol=1e-5, rtol=0)


def test_a_head_with_sub_centers_and_speeds_goes_to_its_speakers(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "head.sub_centers=3", "head.topk=2", "target_sparsity=0.8", "trainer.epochs=1"]
    origin = ["augment.speed_perturb=[1.0,0.9]", f"run_dir={tmp_path / 'origin'}"]
    done = train(*words, *origin)
    assert done.status == 0, done.err
    still = ["trainer.lr_scale=1e-9", f"init_from={tmp_path / 'origin'}"]
    done = train(*words, *still, f"run_dir={tmp_path / 'same'}")
    assert done.status == 0, done.err
    assert re.search(r"the head has (\d+) of \1 training speakers", done.out)
    old, new = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["head"]["weight"]
        for name in ("origin", "same")
    )
    assert len(old) == 2 * len(new)
    torch.testing.assert_close(new, old[: len(new)], atol=1e-5, rtol=0)
    done = train(*words, *still, "head.sub_centers=1", f"run_dir={tmp_path / 'other'}")
    assert done.status == 0, done.err
    assert "its head has head.sub_centers=3, this one 1; it starts anew" in done.out + done.err
    assert "the head has 0 of" in done.out


def test_a_dense_network_is_brought_to_its_target_at_the_rate_of_pretrained_weights(train, finished, tones, tmp_path):
    dense = shutil.copytree(finished, tmp_path / "dense")
    state = network(dense)
    for value in state["model"].values():
        if value.ndim > 1:
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    state["metrics"] |= {"sparsity": 0.0, "sparse_init": False, "lambda": 0.0}
    checkpoint.save(dense / "checkpoints" / "model.pt", state)
    done = train(*TINY, *tones.settings(), f"init_from={dense}", "target_sparsity=0.5", "trainer.epochs=3")
    assert done.status == 0, done.err
    rows = [row for row in read_rows(only_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert rows[0]["sparsity/regularized"] < 0.2
    assert max(row["lr"] for row in rows) == pytest.approx(0.001)
    found = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_another_network_or_no_finished_run_is_refused_by_name(train, finished, tones, tmp_path):
    other = [word.replace("model.channels=16", "model.channels=32") for word in TINY]
    done = train(*other, *tones.settings(), f"init_from={finished}")
    assert done.status == 2
    assert "its network has model.channels=16; choose the same model" in done.err
    done = train(*TINY, *tones.settings(), f"init_from={tmp_path}")
    assert done.status == 2
    assert "expected the folder of a finished run" in done.err


def test_speakers_that_the_other_run_trained_on_do_not_judge(train, finished, tones, tmp_path):
    manifest = Manifest(finished / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split("train")[:8]]
    trials = tmp_path / "trials.txt"
    trials.write_text("".join(f"{int(a[:7] == b[:7])} {a} {b}\n" for a in keys for b in keys if a != b))
    done = train(*TINY, "data=folder", f"data.root={tones.root}", f"data.trial_lists={trials}", f"init_from={finished}")
    assert done.status == 2
    assert f"of its speakers are trained on with init_from={finished}" in done.err


def test_a_folder_of_choice_is_used_once(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), f"run_dir={tmp_path / 'here'}", "trainer.epochs=1"]
    assert train(*words).status == 0
    assert (tmp_path / "here" / "results.json").is_file()
    done = train(*words)
    assert done.status == 2
    assert "exists; name another, or continue it with resume_from=" in done.err


def test_a_run_is_not_evaluated_on_speakers_that_it_trained_on(finished, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    (prepared / "trials").mkdir(parents=True)
    shutil.copy(finished / "manifest.parquet", prepared / "manifest.parquet")
    manifest = Manifest(finished / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split("train")[:8]]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a in keys for b in keys if a != b]
    (prepared / "trials" / "mine.txt").write_text("".join(lines))
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(finished), "--trial-sets", f"{prepared}:mine"])
    assert "list mine: 2 of its speakers are trained on with" in capsys.readouterr().err
    assert np.unique(manifest.labels(manifest.split("train")[:8])).size == 2


def test_scores_of_network_files_need_a_folder_and_those_of_several_runs_have_theirs(finished, tmp_path, capsys):
    for words, message in (
        ([str(finished / "checkpoints" / "model.pt")], "is no run folder; --output-dir is needed"),
        ([str(finished), str(finished), "--output-dir", str(tmp_path)], "--output-dir takes the scores of one network"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", *words, "--trial-sets", "x:y"])
        assert message in capsys.readouterr().err


def test_a_list_may_name_another_ending_than_its_files_have(finished, tones, tmp_path, capsys):
    other = tmp_path / "trials.txt"
    other.write_text(tones.trials.read_text().replace(".flac", ".wav"))
    cli.main(
        [
            "evaluate",
            str(finished),
            "--audio-root",
            str(tones.root),
            "--trials",
            str(other),
            "--output-dir",
            str(tmp_path),
        ]
    )
    assert "trials: EER" in capsys.readouterr().out


def test_what_the_others_origin_trained_on_does_not_judge_either(finished, tmp_path, capsys):
    later = shutil.copytree(finished, tmp_path / "later")
    table = pq.read_table(finished / "manifest.parquet")
    unseen = table.set_column(table.schema.get_field_index("split"), "split", pa.array(["unused"] * len(table)))
    manifest = Manifest(finished / "manifest.parquet")
    Manifest.write(later / "manifest.parquet", unseen, manifest.root)
    config = OmegaConf.load(later / "config.yaml")
    config.init_from = str(finished)
    OmegaConf.save(config, later / "config.yaml")
    prepared = tmp_path / "prepared"
    (prepared / "trials").mkdir(parents=True)
    shutil.copy(finished / "manifest.parquet", prepared / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split("train")[:8]]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a in keys for b in keys if a != b]
    (prepared / "trials" / "mine.txt").write_text("".join(lines))
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(later), "--trial-sets", f"{prepared}:mine"])
    assert f"list mine: 2 of its speakers are trained on with {finished}" in capsys.readouterr().err


def test_speakers_that_the_other_run_trained_on_are_not_held_out(train, finished, tones):
    done = train(*TINY, *tones.settings(), f"init_from={finished}", "data.val_fraction=0.5")
    assert done.status == 2
    assert "hold out the same (data.val_fraction and data.val_seed as there), or nobody" in done.err


def test_the_same_name_in_another_corpus_is_another_speaker(train, finished, tones, tmp_path):
    for path in sorted(tones.root.rglob("*.flac")):
        speaker, session, name = path.relative_to(tones.root).parts
        copy = tmp_path / "wav" / speaker / f"other-{session}" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    trials = tmp_path / "trials.txt"
    trials.write_text(tones.trials.read_text().replace("/s", "/other-s"))
    words = ["data=folder", f"data.root={tmp_path / 'wav'}", f"data.trial_lists={trials}", "data.val_fraction=0"]
    done = train(*TINY, *words, f"init_from={finished}", "target_sparsity=0.8")
    assert done.status == 0, done.err
    assert "the head has 0 of 6 training speakers" in done.out


RAMP = [f"sparsity.controller.{word}" for word in ("ramp_start=0.1", "ramp_end=0.6", "initial_sparsity=0.0")]


def test_a_sparse_network_is_not_made_dense_by_a_ramp(train, finished, tones, tmp_path):
    words = ["sparsity=quantile", *RAMP]
    done = train(*TINY, *tones.settings(), *words, f"init_from={finished}", "target_sparsity=0.8")
    assert done.status == 0, done.err
    rows = [row for row in read_rows(only_run(tmp_path) / "metrics.jsonl") if "loss" in row]
    assert {round(row["sparsity/regularized"], 3) for row in rows} == {0.8}


def test_what_another_run_has_pruned_stays_pruned(train, tones, tmp_path):
    pruning = ["sparsity=gradual_magnitude", "target_sparsity=0.8", "trainer.epochs=2"]
    assert train(*TINY, *tones.settings(), *pruning, f"run_dir={tmp_path / 'origin'}").status == 0
    done = train(*TINY, *tones.settings(), *pruning, f"init_from={tmp_path / 'origin'}", f"run_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert {round(row["sparsity/regularized"], 3) for row in rows} == {0.8}
    origin, now = (network(tmp_path / name)["model"] for name in ("origin", "run"))
    assert all((now[name][value == 0] == 0).all() for name, value in origin.items() if value.ndim > 1)


def test_a_run_goes_on_without_the_one_that_it_started_from(train, finished, tones, tmp_path):
    origin = shutil.copytree(finished, tmp_path / "origin")
    words = [*TINY, *tones.settings(), f"init_from={origin}", "target_sparsity=0.8", f"run_dir={tmp_path / 'run'}"]
    assert train(*words).status == 0
    shutil.rmtree(origin)
    done = train(f"resume_from={tmp_path / 'run'}")
    assert done.status == 0, done.err


def test_a_run_that_is_started_again_goes_on_without_the_one_that_it_started_from(
    train, finished, tones, tmp_path, monkeypatch
):
    origin, run = shutil.copytree(finished, tmp_path / "origin"), tmp_path / "run"
    words = [*TINY, *tones.settings(), f"init_from={origin}", "target_sparsity=0.8", f"run_dir={run}"]
    assert train(*words).status == 0
    (run / "results.json").unlink()
    shutil.rmtree(origin)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = train(*words)
    assert done.status == 0, done.err
    assert (run / "results.json").is_file()


def test_a_head_knows_speakers_whose_names_are_composed_otherwise(tmp_path):
    """As those of the same folder are on another machine."""
    names = [("Jose\u0301", "Jos\u00e9"), ("Zoe\u0308", "Zoe\u0308"), ("Max", "Max"), ("Max", "Moritz")]
    manifests = []
    for side in (0, 1):
        keys = [f"{pair[side]}/s/{number}.wav" for number, pair in enumerate(names)]
        if side:
            keys[3] = "Max/s/3.wav"  # the same utterance, of another speaker
        part = {"file": "x.wav", "samples": 9, "offset": 0, "size": 9, "pcm_offset": -1}
        columns = {"utterance": keys, "speaker": [pair[side] for pair in names], "session": ["s"] * 4}
        columns |= {"samples": [9] * 4, "sample_rate": [16000] * 4, "channels": [1] * 4, "split": ["train"] * 4}
        table = pa.table(columns | {"segments": pa.array([[part]] * 4, pa.list_(SEGMENT))})
        manifests.append(Manifest.write(tmp_path / f"{side}.parquet", table, tmp_path))
    theirs, ours = manifests
    rows = {name: torch.full((1, 4), float(number)) for number, name in enumerate(theirs.speakers("train"))}
    network, model = torch.nn.Linear(1, 1), {"_target_": "any"}
    head = AAMSoftmax(4, len(ours.speakers("train")))
    before = head.weight.detach().clone()
    source = InitSource(tmp_path, model, network.state_dict(), head_rows=rows, manifest=theirs)
    source.apply_to(network, model, head, ours)
    for number, name in enumerate(ours.speakers("train")):
        expected = {"Jos\u00e9": rows["Jose\u0301"], "Moritz": before[number : number + 1]}.get(name, rows.get(name))
        assert torch.equal(head.weight[number : number + 1], expected), name


def test_a_run_that_was_killed_before_its_first_checkpoint_may_begin_again(train, tones, tmp_path):
    folder = tmp_path / "here"
    words = [*TINY, *tones.settings(), f"run_dir={folder}", "trainer.epochs=1"]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("left\n")
    assert train(*words).status == 0
    assert (folder / "results.json").is_file()


def test_a_list_of_files_that_a_run_trained_on_is_warned_of(finished, tones, tmp_path, capsys):
    manifest = Manifest(finished / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split("train")[:8]]
    trials = tmp_path / "mine.txt"
    trials.write_text("".join(f"{int(a[:7] == b[:7])} {a} {b}\n" for a in keys for b in keys if a != b))
    cli.main(
        [
            "evaluate",
            str(finished),
            "--audio-root",
            str(tones.root),
            "--trials",
            str(trials),
            "--output-dir",
            str(tmp_path),
        ]
    )
    assert "list mine: 8 utterances and 2 speakers have names of the training data" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(train, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    with file_lock(copy, "held"):
        done = train(f"resume_from={copy}")
    assert done.status == 2
    assert f"{copy}: another process is training this run" in done.err
    assert (copy / "results.json").is_file()


def test_fine_tuning_asks_for_what_it_starts_from(train, tones):
    done = train(*TINY, *tones.settings(), "experiment=lmft")
    assert done.status == 2
    assert "init_from must be a run's folder or a file of weights" in done.err


def test_a_network_file_of_a_run_is_as_good_as_the_run(train, finished, tones, tmp_path):
    words = [*TINY, *tones.settings(), "target_sparsity=0.8", *SLOW, "trainer.epochs=1"]
    path = finished / "checkpoints" / "model.pt"
    done = train(*words, f"init_from={path}", f"run_dir={tmp_path / 'one'}")
    assert done.status == 0, done.err
    assert re.search(r"the head has (\d+) of \1 training speakers", done.out)
    elsewhere = shutil.copy(path, tmp_path / "copy.pt")
    done = train(*words, f"init_from={elsewhere}", f"run_dir={tmp_path / 'two'}")
    assert done.status == 0, done.err
    assert "the head has 0 of" in done.out
    assert f"{elsewhere}: training speakers unknown" in done.out
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert found[0]["untrained_eer"] == found[1]["untrained_eer"]
    lambda_ = network(finished)["metrics"]["lambda"]
    assert [result["lambda"] for result in found] == pytest.approx([lambda_] * 2, rel=1e-3)


def test_the_best_network_of_a_run_knows_its_lambda(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "target_sparsity=0.5", f"run_dir={tmp_path / 'run'}", "trainer.epochs=1"]
    assert train(*words, "trainer.best_sparsity_tolerance=1").status == 0
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    figures = checkpoint.load(best, checkpoint.NETWORK_KEYS)["metrics"]
    assert figures["lambda"] > 0
    assert figures["sparse_init"]
    done = train(*TINY, *tones.settings(), "target_sparsity=0.5", f"init_from={best}", "trainer.epochs=1")
    assert done.status == 0, done.err


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04" + bytes(100), b"\x80\x02cos\nsystem\nq\x00."])
def test_what_is_no_file_of_weights_is_refused_by_name(train, tones, tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    done = train(*TINY, *tones.settings(), f"init_from={path}")
    assert done.status == 2
    assert f"error: init_from={path}: " in done.err
    assert "expected a state dict that torch.save wrote" in done.err
    assert "weights_only" not in done.err  # torch advises to run what is in the file


def test_a_file_that_would_run_code_is_refused_and_not_run(train, tones, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "weights.pt")
    done = train(*TINY, *tones.settings(), f"init_from={tmp_path / 'weights.pt'}")
    assert done.status == 2
    assert "has objects of Python classes, which could run code; expected a state dict" in done.err
    assert not (tmp_path / "ran").exists()
