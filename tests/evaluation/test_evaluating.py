"""Laws of sv-sparse evaluate: it gives the run's own figures, at once the second time, and never tunes on trials."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.same import assert_same, rows
from helpers.tiny import THREE_EPOCHS, Tones, write_trial_list

from sv_sparse import checkpoint
from sv_sparse.commands import main as cli
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import read_trials
from sv_sparse.evaluation.score_files import read_scores
from sv_sparse.scoring.backend import Backend

AS_NORM = ("--score-norm", "as_norm", "--top-n", "3")


@pytest.fixture
def run(uninterrupted, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def evaluate(capsys, *args: object) -> str:
    capsys.readouterr()
    cli.main(["evaluate", *map(str, args)])
    return capsys.readouterr().out


def evaluations(run: Path) -> dict:
    return json.loads((run / "evaluations.json").read_text())


def test_without_lists_a_run_is_evaluated_on_its_own_and_gets_its_own_figures(run, capsys):
    text = evaluate(capsys, run)
    (own,) = json.loads((run / "results.json").read_text())["evaluations"].values()
    own.pop("untrained_eer", None)  # known only where the run was asked for it
    assert evaluations(run) == {"trials": own}
    assert f"trials: EER {100 * own['eer']:.2f} %" in text
    assert f"{own['trials']} trials, {own['targets']} targets of 3 speakers" in text
    assert "enrollment: one recording; score normalization: none" in text
    assert "minDCF" in text
    assert "p_target 0.05: minDCF" in text


def test_the_second_time_nothing_is_embedded(run, capsys, monkeypatch):
    first = evaluate(capsys, run)
    monkeypatch.setattr("sv_sparse.evaluation.embed._embed_group", None)  # which a call would stumble over
    assert evaluate(capsys, run) == first


def test_killed_in_the_middle_and_run_again_it_gives_the_same_scores(run, capsys, monkeypatch):
    monkeypatch.setattr("sv_sparse.evaluation.embed._PREFETCH", 4)
    shutil.rmtree(run / "embeddings")
    evaluate(capsys, run)
    expected = (run / "scores" / "trials.txt").read_text()
    shutil.rmtree(run / "embeddings")
    (run / "scores" / "trials.txt").unlink()
    slow = (
        "import time, sv_sparse.evaluation.embedding_cache as cache, sv_sparse.evaluation.embed as embedding\n"
        "cache._FLUSH_SECONDS, embedding._PREFETCH, embed = 0, 4, embedding._embed_group\n"
        "def slowly(*words):\n    time.sleep(0.3)\n    return embed(*words)\n"
        "embedding._embed_group = slowly\n"
        f"from sv_sparse.commands.main import main\nmain(['evaluate', {str(run)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.DEVNULL)
    cache = run / "embeddings"
    while not list(cache.rglob("*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "scores" / "trials.txt").exists()
    assert 0 < sum(len(np.load(path)["keys"]) for path in cache.rglob("*.npz")) < 18
    evaluate(capsys, run)
    assert (run / "scores" / "trials.txt").read_text() == expected


def test_as_norm_has_files_of_its_own_and_names_its_cohort(run, capsys):
    text = evaluate(capsys, run, *AS_NORM)
    assert "score normalization: AS-norm, top 3 of 4 training speakers" in text
    assert evaluations(run)["trials_as_norm_3"]["score_norm"] == "AS-norm, top 3 of 4 training speakers"
    plain, _ = read_scores(run / "scores" / "trials.txt")
    normalized, _ = read_scores(run / "scores" / "trials_as_norm_3.txt")
    assert len(plain) == len(normalized)
    assert not np.allclose(plain, normalized)


def test_a_cohort_with_fewer_speakers_than_asked_for_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        evaluate(capsys, run, "--score-norm", "as_norm")
    assert "scoring.top_n=300: expected at least 2 and at most 4" in capsys.readouterr().err


def test_a_run_can_be_normalized_from_the_start(train, tones, tmp_path, capsys):
    settings = ["scoring=as_norm", "scoring.top_n=3", f"run_dir={tmp_path / 'normal'}"]
    assert train(*THREE_EPOCHS, *tones.settings(), *settings, "trainer.max_steps=3").status == 0
    results = json.loads((tmp_path / "normal" / "results.json").read_text())
    assert list(results["evaluations"]) == ["trials_as_norm_3"]
    state = checkpoint.load(tmp_path / "normal" / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)
    backend = Backend.from_dict(state["backend"])
    assert (backend.top_n, len(backend.cohort)) == (3, 4)
    assert "AS-norm, top 3 of 4" in evaluate(capsys, tmp_path / "normal")
    assert "score normalization: none" in evaluate(capsys, tmp_path / "normal", "--score-norm", "none")


def test_more_close_strangers_than_training_speakers_are_refused_before_training(train, tones, tmp_path):
    ended = train(*THREE_EPOCHS, *tones.settings(), "scoring=as_norm", f"run_dir={tmp_path / 'normal'}")
    assert ended.status == 2
    assert "scoring.top_n=300: expected at most 4, which are trained on" in ended.err


def test_a_folder_of_recordings_is_evaluated_on_the_lists_in_it(run, tones, tmp_path, capsys):
    folder = tmp_path / "corpus"
    (folder / "lists").mkdir(parents=True)
    (folder / "wav").symlink_to(tones.root)
    shutil.copy(tones.trials, folder / "one.txt")
    (folder / "train_list.txt").write_text("id10000 id10000/s0/00000.flac\n")
    lines = tones.trials.read_text().splitlines()
    (folder / "lists" / "two.txt").write_text("\n".join(lines[::2]) + "\n")
    table = tmp_path / "speakers.csv"
    table.write_text("speaker,sex\nid10006,f\nid10007,f\nid10008,m\n")
    evaluate(capsys, run, "--trial-sets", f"folder:{folder}")
    assert set(evaluations(run)) == {"one", "two"}
    np.testing.assert_allclose(
        read_scores(run / "scores" / "one.txt")[0], read_scores(run / "scores" / "trials.txt")[0], atol=1e-5
    )
    text = evaluate(capsys, run, "--audio-root", tones.root, "--trials", tones.trials, "--speaker-metadata", table)
    assert "sex f: EER" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trial-sets", "vox1_O_cleaned"], "was not trained on a prepared folder"),
        (["--trial-sets", "folder:/nowhere"], "no trial list"),
        (["--trial-sets", "nowhere:x"], "nowhere: expected a folder made by: sv-sparse prepare"),
        (["--trials", "{trials}", "--audio-root", "/nowhere"], "/nowhere: no such folder of recordings"),
        (["--audio-root", "{root}"], "--audio-root and --trials go together"),
        (["--trials", "{trials}"], "--audio-root and --trials go together"),
        (["--trials", "{trials}", "--audio-root", "{root}/id10000"], "recordings are not in"),
        (["--speaker-metadata", "{trials}"], "--speaker-metadata is for the lists of --trials"),
        (["--top-n", "3"], "--top-n 3 is for --score-norm as_norm"),
        (["--trials", "{trials}", "{trials}", "--audio-root", "{root}"], "expected lists of different names"),
    ],
)
def test_lists_that_are_not_there_are_named(run, tones, words, message, capsys):
    words = [word.format(trials=tones.trials, root=tones.root) for word in words]
    with pytest.raises(SystemExit):
        evaluate(capsys, run, *words)
    assert message in capsys.readouterr().err


def test_a_network_file_that_lies_alone_has_no_lists(run, tmp_path, capsys):
    shutil.copy(run / "checkpoints" / "model.pt", tmp_path / "alone.pt")
    with pytest.raises(SystemExit):
        evaluate(capsys, tmp_path / "alone.pt", "--output-dir", tmp_path / "scores")
    assert "has no lists of its own" in capsys.readouterr().err


def test_another_list_of_the_same_name_does_not_take_the_place_of_the_runs_own(run, tones, tmp_path, capsys):
    other = tmp_path / "trials.txt"
    other.write_text("\n".join(tones.trials.read_text().splitlines()[::3]) + "\n")
    words = ("--audio-root", tones.root, "--trials", other)
    before = (run / "scores" / "trials.txt").read_text()
    with pytest.raises(SystemExit):
        evaluate(capsys, run, *words)
    assert "evaluated on another list called trials, of 153 trials" in capsys.readouterr().err
    assert (run / "scores" / "trials.txt").read_text() == before
    assert "51 trials" in evaluate(capsys, run, *words, "--output-dir", tmp_path / "elsewhere")
    evaluate(capsys, run, "--audio-root", tones.root, "--trials", tones.trials)  # the same list is welcome


def test_a_read_only_run_is_evaluated_elsewhere(run, tmp_path, capsys):
    shutil.rmtree(run / "embeddings")
    (run / "embeddings").write_text("a file in the way")
    assert "trials: EER" in evaluate(capsys, run, "--output-dir", tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere" / "embeddings").rglob("*.npz"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_lists_of_files_with_speakers_that_a_run_knows_are_warned_of(run, tones, tmp_path, capsys, split, monkeypatch):
    manifest = Manifest(run / "manifest.parquet")
    keys = [manifest.utterance(row) for row in manifest.split(split)]
    write_trial_list(tmp_path / "known.txt", keys)
    monkeypatch.chdir(run / "checkpoints")
    words = (
        "model.pt",
        "--audio-root",
        tones.root,
        "--trials",
        tmp_path / "known.txt",
        "--output-dir",
        tmp_path / "elsewhere",
    )
    cli.main(["evaluate", *map(str, words)])
    speakers = len({key.split("/")[0] for key in keys})
    assert f"list known: {len(keys)} utterances and {speakers} speakers have names" in capsys.readouterr().err


def test_scores_that_were_removed_leave_a_report_without_their_curves(run, tones, tmp_path, capsys):
    (run / "scores" / "trials.txt").unlink()
    shutil.copy(tones.trials, tmp_path / "again.txt")
    evaluate(capsys, run, "--audio-root", tones.root, "--trials", tmp_path / "again.txt")
    page = (run / "report.html").read_text()
    assert "Scores of again" in page
    assert "Scores of trials" not in page


def test_choosing_stopping_and_calibrating_never_touch_the_trials(tones, attempts, tmp_path):
    """The same run, evaluated on trials with every label wrong, and in another order, ends with the same network."""
    trials = read_trials(tones.trials)
    wrong = tmp_path / "trials.txt"
    lines = [
        f"{int(not label)} {trials.utterances[a]} {trials.utterances[b]}\n"
        for label, a, b in zip(trials.is_target, trials.enrollment, trials.test, strict=True)
    ]
    wrong.write_text("".join(lines[::-1]))
    folders = []
    for listed in (tones.trials, wrong):
        folder = tmp_path / f"run{len(folders)}"
        settings = [*Tones(tones.root, listed).settings(), "data.val_fraction=0.4", "trainer.early_stop_patience=1"]
        settings += [
            "trainer.best_sparsity_tolerance=1",
            "scoring=as_norm",
            "scoring.top_n=3",
            "trainer.epochs=6",
            # A start from which three short epochs learn enough for a calibration, whatever the processor's rounding.
            "seed=2",
            f"run_dir={folder}",
        ]
        done = attempts(*THREE_EPOCHS, *settings)
        assert done.status == 0, done.err
        folders.append(folder)
    for name in ("model.pt", "best.pt", "last.pt"):
        keys = checkpoint.TRAINING_KEYS if name == "last.pt" else checkpoint.NETWORK_KEYS
        states = [checkpoint.load(folder / "checkpoints" / name, keys) for folder in folders]
        for state in states:
            del state["config"]
            state.pop("untrained_metrics", None)  # on the trials
        assert_same(*states, where=name)
    assert rows(folders[0]) == rows(folders[1])
    assert states[0]["best"]["epoch"] is not None
    final = checkpoint.load(folders[0] / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)
    assert Backend.from_dict(final["backend"]).calibration is not None
    eers = [json.loads((folder / "results.json").read_text())["eer"] for folder in folders]
    assert sum(eers) == pytest.approx(1, abs=0.02)  # labels that are turned round turn the EER round


def test_two_processes_share_the_embedding_and_give_the_scores_of_one(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sv_sparse.evaluation.embed._PREFETCH", 4)
    shutil.rmtree(run / "embeddings")
    expected = evaluate(capsys, run)
    scores = (run / "scores" / "trials.txt").read_text()
    shutil.rmtree(run / "embeddings")
    script = tmp_path / "evaluate.py"
    script.write_text(
        "from sv_sparse.commands.main import main\n"
        "from sv_sparse.evaluation import embed\n"
        f"embed._PREFETCH = 4\nmain(['evaluate', {str(run)!r}])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert (run / "scores" / "trials.txt").read_text() == scores
    assert len(list((run / "embeddings").rglob("*.npz"))) == 2


def test_a_report_that_was_removed_is_written_again(run, capsys):
    evaluate(capsys, run)
    (run / "report.html").unlink()
    assert f"report in {run}/report.html" in evaluate(capsys, run)
    assert (run / "report.html").is_file()


def test_labels_that_are_turned_round_are_noticed(run, tones, tmp_path, capsys, caplog):
    lines = (run / "scores" / "trials.txt").read_text().splitlines()
    turned = [line.split() for line in lines]
    (tmp_path / "turned.txt").write_text("".join(f"{1 - int(label)} {a} {b}\n" for a, b, _, label in turned))
    evaluate(capsys, run, "--audio-root", tones.root, "--trials", tmp_path / "turned.txt")
    (own,) = json.loads((run / "results.json").read_text())["evaluations"].values()
    assert own["eer"] < 0.5
    assert "turned: EER" in caplog.text
    assert "are the labels right?" in caplog.text
