"""A folder of recordings as users bring them trains, validates, evaluates and embeds; what is left out is named.

In it are the files of ``odd_files.py``, once for each speaker, so that each of them is trained on, held out, in the
cohort of AS-norm and in the trial list.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.odd_files import write_odd_files
from helpers.tiny import ROOT, TINY

from sv_sparse.data.audio import read_segment, read_utterance, single_file
from sv_sparse.data.decoding import AudioFile, inspect, resample
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import read_trials
from sv_sparse.io import printable
from sv_sparse.runtime.audio import read_audio
from sv_sparse.runtime.verifier import Verifier

SPEAKERS = [f"s{number}" for number in range(8)]
TRIAL_SPEAKERS = SPEAKERS[6:]


class Corpus(NamedTuple):
    """Where everything is.

    Attributes:
        root: Of the recordings, ``<speaker>/odd/<name>``.
        trials: The trial list.
        said: What is said of each name; None for a recording that can be used.
    """

    root: Path
    trials: Path
    said: dict[str, str | None]

    def keys(self, speakers: list[str], *, usable: bool) -> set[str]:
        """Paths below the root of what can be used, or cannot."""
        names = [name for name, reason in self.said.items() if (reason is None) == usable]
        return {f"{speaker}/odd/{name}" for speaker in speakers for name in names}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("odd")
    for number, speaker in enumerate(SPEAKERS):
        said = write_odd_files(folder / "wav" / speaker / "odd", number)
    assert len(said) >= 60
    names = [name for name in said if printable(name) == name]
    one, other = TRIAL_SPEAKERS
    pairs = list(zip(names, names[1:] + names[:1], strict=True))
    lines = [f"1\t{one}/odd/{a}\t{one}/odd/{b}\n" for a, b in pairs]
    lines += [f"0\t{one}/odd/{a}\t{other}/odd/{b}\n" for a, b in pairs]
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
    return Corpus(folder / "wav", folder / "list.txt", said)


def run(*words: str | bytes | Path, folder: Path) -> subprocess.CompletedProcess:
    """A command of a user; a file that blocks would end it by the time limit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=240, check=False
    )
    assert done.returncode in {0, 2}, done.stderr
    return done


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(corpus, request, tmp_path_factory) -> Path:
    """The folder of a run, judged with AS-norm."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = [
        *TINY,
        "data=folder",
        f"data.root={corpus.root}",
        f"data.trial_lists={corpus.trials}",
        "data.max_unreadable_fraction=0.5",
        "scoring=as_norm",
        "scoring.top_n=3",
        "trainer.epochs=1",
        "trainer.batch_size=16",
        "target_sparsity=0.5",
        f"trainer.precision={request.param}",
        f"run_dir={folder}/run",
    ]
    done = run(str(ROOT / "train.py"), *settings, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def left_out(text: str) -> dict[str, str]:
    """The reason for each file that a text says is left out, by its path below the root."""
    pattern = re.compile(r"(?:left out|cannot be used)\S* (?:\S*/)?(s\d/odd/.*?): (.*)")
    return {match[1]: match[2] for match in map(pattern.search, text.splitlines()) if match}


def test_what_can_be_used_is_trained_on_held_out_and_judged_on_and_the_rest_is_named_with_its_reason(corpus, trained):
    manifest = Manifest(trained / "manifest.parquet")
    splits = {name: manifest.split(name) for name in ("train", "validation", "test")}
    trained_on = {manifest.utterance(row) for name in ("train", "validation") for row in splits[name]}
    assert trained_on == corpus.keys(SPEAKERS[:6], usable=True)
    assert len(manifest.speakers("validation")) == 2
    tested = {manifest.utterance(row) for row in splits["test"] if manifest.samples[row]}
    assert tested == corpus.keys(TRIAL_SPEAKERS, usable=True)
    reasons = left_out((trained / "train.log").read_text(encoding="utf-8"))
    assert set(reasons) == {printable(key) for key in corpus.keys(SPEAKERS, usable=False)}
    for key, reason in reasons.items():
        assert wording(corpus, key) in reason, key


def wording(corpus: Corpus, key: str) -> str:
    """What the reason for a file says, by its printed path."""
    reasons = {printable(name): reason for name, reason in corpus.said.items()}
    return reasons[key.rpartition("/odd/")[2]] or "no reason, for it can be used"


def test_the_trials_that_can_be_scored_are_scored_and_the_others_counted(corpus, trained):
    usable = corpus.keys(TRIAL_SPEAKERS, usable=True)
    trials = read_trials(corpus.trials)
    expected = {
        (trials.utterances[left], trials.utterances[right])
        for left, right in zip(trials.enrollment, trials.test, strict=True)
        if {trials.utterances[left], trials.utterances[right]} <= usable
    }
    (path,) = (trained / "scores").glob("*.txt")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(left, right) for left, right, *_ in lines} == expected
    done = run("-m", "sv_sparse.commands.main", "evaluate", trained, folder=trained)
    assert done.returncode == 0, done.stderr
    assert f"left out: {len(trials) - len(expected)} trials" in done.stdout


@pytest.fixture(scope="module")
def model(trained) -> Path:
    path = trained.parent / "model.safetensors"
    done = run("-m", "sv_sparse.commands.main", "export", trained, "--output", path, folder=trained)
    assert done.returncode == 0, done.stderr
    return path


def test_what_training_can_use_can_be_embedded_and_what_it_cannot_is_refused_for_the_same_reason(
    corpus, model, tmp_path
):
    names = {name: reason for name, reason in corpus.said.items() if reason != "its name is not UTF-8"}
    paths = [corpus.root / "s6" / "odd" / name for name in names]
    done = run(
        "-m",
        "sv_sparse.commands.main",
        "embed",
        *paths,
        "--output",
        tmp_path / "e.npz",
        "--model",
        model,
        folder=tmp_path,
    )
    assert done.returncode == 2
    with np.load(tmp_path / "e.npz") as file:
        files, embeddings = file["files"].tolist(), file["embeddings"]
    assert files == [str(path) for path in paths if names[path.name] is None]
    assert np.isfinite(embeddings).all()
    reasons = left_out(done.stderr)
    assert set(reasons) == {f"s6/odd/{name}" for name, reason in names.items() if reason is not None}
    for key, reason in reasons.items():
        assert wording(corpus, key) in reason, key


@pytest.mark.parametrize("speaker", SPEAKERS[:1])
def test_training_evaluation_and_verify_hear_the_same_samples_of_every_file(corpus, speaker):
    for name, reason in corpus.said.items():
        path = corpus.root / speaker / "odd" / name
        info = inspect(path)
        if reason is not None and reason != "its name is not UTF-8":
            assert info.problem or info.samples < 0.2 * info.sample_rate, name
            continue
        assert not info.problem, name
        whole = read_utterance(single_file(path))
        assert np.array_equal(whole.numpy(), read_audio(path, 16000, max_seconds=60)), name
        with AudioFile(path) as file:
            native = file.read()
        assert len(native) == info.samples, name
        assert torch.equal(whole, torch.from_numpy(resample(native, info.sample_rate, 16000))), name
        (part,) = single_file(path)
        part = part._replace(samples=info.samples, size=info.size, pcm_offset=info.pcm_offset)
        start, count = info.samples // 3, info.samples // 4
        crop = read_segment([part], info.sample_rate, start, count)
        np.testing.assert_allclose(crop, native[start : start + count], atol=1e-6, err_msg=name)


def test_verify_takes_what_training_takes_and_refuses_the_rest(corpus, model):
    verifier = Verifier.from_pretrained(model)
    for name, reason in corpus.said.items():
        path = corpus.root / "s0" / "odd" / name
        if reason is None or reason == "its name is not UTF-8":
            assert np.isfinite(verifier.embed_recording(path).embedding).all(), name
        else:
            with pytest.raises(ValueError, match=re.escape(reason)):
                verifier.embed_recording(path)
