"""Runs on audio without labels: trained by a teacher alone, with trial lists and without."""

import json
import re
import shutil

import pytest
from helpers.tiny import TINY

from sv_sparse.commands import main as cli
from sv_sparse.data.manifest import Manifest

TAUGHT = (*TINY, "head=none", "teacher=self", "target_sparsity=0.9", "data=audio")


@pytest.fixture(scope="module")
def audio(tones, tmp_path_factory):
    """The training recordings of the tiny corpus, under names that tell nothing."""
    root = tmp_path_factory.mktemp("audio")
    paths = [
        path for path in sorted(tones.root.rglob("*.flac")) if path.relative_to(tones.root).parts[0][-1] in "012345"
    ]
    for number, path in enumerate(paths):
        copy = root / f"part{number % 3}" / "x" / f"{number:03d}.flac"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return root


def results(run):
    return json.loads((run / "results.json").read_text())


def test_a_run_without_labels_and_trials_goes_through_to_its_report(train, finished, tones, audio, tmp_path, capsys):
    run = tmp_path / "run"
    done = train(*TAUGHT, f"data.root={audio}", "data.val_fraction=0.1", f"init_from={finished}", f"run_dir={run}")
    assert done.status == 0, done.err
    assert re.search(r"train +32 recordings +0\.01 hours", done.out)
    assert re.search(r"validation +4 recordings", done.out)
    assert "no trial lists: the network is not evaluated" in done.out
    assert not re.search(r"\d+ (training )?speakers", done.out)
    assert "| no trial list | 90.00%" in done.out
    final = results(run)
    assert (final["eer"], final["min_dcf"], final["evaluations"]) == (None, None, {})
    assert final["training"]["speakers"] is None
    assert final["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert 0 < final["validation_teacher_cosine"] <= 1
    for name in ("report.html", "report.md"):
        text = (run / name).read_text()
        assert "No trial list, so there are no error rates." in text
        assert "32 recordings, 0.01 hours" in text
        assert "None" not in text

    # What comes after training.
    capsys.readouterr()
    cli.main(["compare", str(run), str(finished), "--out", str(tmp_path / "compared")])
    printed = capsys.readouterr().out
    assert "no trial list: trials none" in printed
    assert len(re.findall(r"^\| run +\|.* \u2013 ", printed, flags=re.MULTILINE)) == 1
    assert len(list((tmp_path / "compared" / "figures").glob("eer_*.svg"))) == 1
    cli.main(["compare", str(run)])
    assert "minus first run" not in capsys.readouterr().out
    cli.main(["export", str(run), "--output", str(tmp_path / "model.safetensors")])
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run)])
    assert f"{run} has no lists of its own; name some by --trial-sets, or by" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(
            [
                "evaluate",
                str(run),
                "--audio-root",
                str(tones.root),
                "--trials",
                str(tones.trials),
                "--score-norm",
                "as_norm",
            ]
        )
    assert "score_norm=as_norm needs training speakers, and those of" in capsys.readouterr().err
    cli.main(["evaluate", str(run), "--audio-root", str(tones.root), "--trials", str(tones.trials)])
    assert "trials: EER" in capsys.readouterr().out
    assert "No trial list" not in (run / "report.md").read_text()

    # Nothing that a restart reads needs trials either.
    (run / "results.json").unlink()
    done = train(f"resume_from={run}")
    assert done.status == 0, done.err
    assert results(run)["sparsity"] == final["sparsity"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_trials_of_recordings_in_the_folder_or_elsewhere_are_evaluated_and_not_trained_on(
    train, finished, tones, audio, tmp_path, elsewhere
):
    root = shutil.copytree(audio, tmp_path / "audio")
    trial_root = tmp_path / "trials" if elsewhere else root
    shutil.copytree(tones.root, trial_root / "people")
    trials = tmp_path / "veri.txt"
    trials.write_text(tones.trials.read_text().replace("id1000", "people/id1000"))
    words = [f"data.root={root}", f"data.trial_lists={trials}", f"init_from={finished}", f"run_dir={tmp_path / 'run'}"]
    if elsewhere:
        words.append(f"data.trial_root={trial_root}")
    done = train(*TAUGHT, *words, "data.val_fraction=0")
    assert done.status == 0, done.err
    final = results(tmp_path / "run")
    assert list(final["evaluations"]) == ["veri"]
    assert final["eer"] == final["evaluations"]["veri"]["eer"] is not None
    assert final["teacher_recordings"] == 18
    manifest = Manifest(tmp_path / "run" / "manifest.parquet")
    names = {manifest.utterance(row) for row in manifest.split("train")}
    assert len(names) == (36 if elsewhere else 36 + 36)
    assert not [name for name in names if re.match("people/id1000[678]", name)]
    assert ("18 recordings of the trial lists are left out of training" in done.out) == (not elsewhere)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head=aam_softmax"], "data=audio has no labels, and a loss of speakers needs them; choose head=none with a"),
        (["scoring=as_norm"], "scoring.score_norm=as_norm needs training speakers, and data=audio has no labels"),
        (["trainer.early_stop_patience=2"], "trainer.early_stop_patience=2 needs a validation EER, and data=audio has"),
        (["data.trial_root=/x"], "data.trial_root=/x is for data.trial_lists, which is null"),
        (["data.trial_lists=/x.txt"], "data.trial_lists=/x.txt: expected a text file; there is none"),
        (["data.trial_lists=LIST", "data.trial_root=/x"], "data.trial_root=/x: /x: no such folder of recordings"),
        (["data.trial_lists=LIST"], "data.root=/nowhere: "),
    ],
)
def test_what_cannot_be_without_labels_is_refused_by_name(train, finished, tones, tmp_path, words, message):
    words = [word.replace("LIST", str(tones.trials)) for word in words]
    done = train(*TAUGHT, "data.root=/nowhere", f"init_from={finished}", *words, f"run_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert message in done.err
