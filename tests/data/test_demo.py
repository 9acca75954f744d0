"""Laws of the demo corpus."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sv_sparse.data.synthetic import demo, espeak
from sv_sparse.data.synthetic.demo import make_demo_corpus
from sv_sparse.io import install_command

pytest.importorskip("espeakng_loader")

SETTINGS = {"train_speakers": 4, "test_speakers": 4, "sessions": 2, "utterances": 2, "trials": 20, "seed": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "corpus"
    make_demo_corpus(root, num_workers=1, **SETTINGS)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def moments(root: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in root.rglob("*")}


def test_the_number_of_workers_changes_no_bit(corpus: Path, tmp_path: Path):
    make_demo_corpus(tmp_path / "two", num_workers=2, **SETTINGS)
    assert contents(tmp_path / "two") == contents(corpus)


def test_an_interrupted_corpus_is_completed_to_the_same_bits(corpus: Path, tmp_path: Path, monkeypatch):
    class InterruptedBar(demo.tqdm):
        def update(self, n: int = 1) -> None:
            super().update(n)
            if self.n == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(demo, "tqdm", InterruptedBar)
    with pytest.raises(KeyboardInterrupt):
        make_demo_corpus(tmp_path / "c", num_workers=1, **SETTINGS)
    monkeypatch.undo()
    finished = json.loads((tmp_path / "c/corpus.json").read_text())["files"]
    assert len(finished) == 5
    made = moments(tmp_path / "c/wav")
    make_demo_corpus(tmp_path / "c", num_workers=1, **SETTINGS)
    assert contents(tmp_path / "c") == contents(corpus)
    assert all(p.stat().st_mtime_ns == made[p] for p in (tmp_path / "c/wav" / name for name in finished))


def test_a_complete_corpus_is_not_rewritten(corpus: Path):
    before = moments(corpus)
    make_demo_corpus(corpus, num_workers=2, **SETTINGS)
    assert moments(corpus) == before


def test_missing_and_damaged_files_and_only_those_are_made_again(corpus: Path):
    before, made = contents(corpus), moments(corpus / "wav")
    files = sorted((corpus / "wav").rglob("*.flac"))
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:-1] + b"?")
    (corpus / "veri_test.txt").write_text("nonsense")
    make_demo_corpus(corpus, num_workers=1, **SETTINGS)
    assert contents(corpus) == before
    assert all(p.stat().st_mtime_ns == made[p] for p in files[3:])


def test_the_layout_is_that_of_voxceleb_in_16_khz_mono_16_bit_flac(corpus: Path):
    files = sorted((corpus / "wav").rglob("*.flac"))
    assert len(files) == 8 * 2 * 2
    for path in files:
        speaker, session, name = path.relative_to(corpus / "wav").parts
        assert speaker.startswith("id1")
        assert (len(speaker), len(session), name) in {(7, 11, "00001.flac"), (7, 11, "00002.flac")}
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 2.0 < info.duration < 6.0
        assert 0.01 < np.abs(soundfile.read(path)[0]).max() <= 1.0


def test_the_training_list_names_every_training_utterance_and_no_test_speaker(corpus: Path):
    rows = [line.split() for line in (corpus / "train_list.txt").read_text().splitlines()]
    assert len(rows) == len({path for _, path in rows}) == 4 * 2 * 2
    assert all(path.startswith(f"{speaker}/") and (corpus / "wav" / path).is_file() for speaker, path in rows)
    assert {s for s, _ in rows}.isdisjoint(line.split()[1][:7] for line in trial_lines(corpus))


def trial_lines(root: Path) -> list[str]:
    return (root / "veri_test.txt").read_text().splitlines()


def test_trials_are_balanced_cross_session_same_sex_and_distinct(corpus: Path):
    trials = [line.split() for line in trial_lines(corpus)]
    assert [label for label, _, _ in trials] == ["1", "0"] * (SETTINGS["trials"] // 2)
    assert len({frozenset(pair) for _, *pair in trials}) == len(trials)
    for label, enrollment, test in trials:
        assert (enrollment[:7] == test[:7]) == (label == "1")
        assert enrollment.split("/")[:2] != test.split("/")[:2]
        assert int(enrollment[3:7]) % 2 == int(test[3:7]) % 2  # even ones are female
        assert (corpus / "wav" / enrollment).is_file()


def test_another_seed_gives_other_voices_text_and_trials(corpus: Path, tmp_path: Path):
    make_demo_corpus(tmp_path, num_workers=1, **SETTINGS | {"seed": 4})
    assert contents(tmp_path).keys() & contents(corpus).keys() == {
        "corpus.json",
        "train_list.txt",
        "veri_test.txt",
        "speakers.csv",
    }
    assert trial_lines(tmp_path) != trial_lines(corpus)


@pytest.mark.parametrize("name", ["train_speakers", "sessions", "trials", "seed"])
def test_a_corpus_of_other_settings_is_refused_and_left_alone(corpus: Path, name: str):
    before, other = contents(corpus), SETTINGS[name] - 2 if name == "trials" else SETTINGS[name] + 1
    with pytest.raises(ValueError, match=f"has {name}={SETTINGS[name]}, asked for was {name}={other}"):
        make_demo_corpus(corpus, num_workers=1, **SETTINGS | {name: other})
    assert contents(corpus) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "wav").mkdir()
    with pytest.raises(ValueError, match=r"holds wav but no corpus\.json"):
        make_demo_corpus(tmp_path, num_workers=1, **SETTINGS)
    assert [p.name for p in tmp_path.rglob("*")] == ["wav"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_speakers", 1), ("test_speakers", 3), ("sessions", 1), ("utterances", 0), ("num_workers", 0), ("seed", -1)],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path: Path, name: str, value: int):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        make_demo_corpus(tmp_path, **{"num_workers": 1} | SETTINGS | {name: value})


@pytest.mark.parametrize("trials", [19, 34])
def test_trials_must_be_even_and_available(tmp_path: Path, trials: int):
    with pytest.raises(ValueError, match=f"trials must be even and at most 32, .* got {trials}"):
        make_demo_corpus(tmp_path, num_workers=1, **SETTINGS | {"trials": trials})


def test_a_folder_that_cannot_be_written_gives_the_plain_error(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError):
        make_demo_corpus(tmp_path / "file" / "corpus", num_workers=1, **SETTINGS)


def test_a_missing_synthesizer_is_named_with_its_remedy(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match=re.escape(f"needs the package espeakng-loader: {install_command('demo')}")):
        make_demo_corpus(tmp_path, num_workers=1, **SETTINGS)


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    with espeak.espeak_data() as folder:
        yield folder


def test_speech_does_not_depend_on_what_was_spoken_before(data: Path):
    voices = [espeak.draw_voice(np.random.default_rng(k), female=k % 2 == 0) for k in range(4)]
    order = [0, 0, 1, 2, 3, 2, 1, 0, 3, 3, 1]
    spoken = [(k, espeak.speak("The river ran high.", voices[k], seed=1, data=data).tobytes()) for k in order]
    by_voice = {k: {audio for _, audio in group} for k, group in groupby(sorted(spoken), key=lambda row: row[0])}
    assert [len(by_voice[k]) for k in range(4)] == [1, 1, 1, 1]


def test_the_pitch_of_a_voice_is_heard(data: Path):
    voice = espeak.draw_voice(np.random.default_rng(0), female=False)
    low, high = (replace(voice, pitch=p, flutter=0) for p in ((80.0, 90.0), (160.0, 180.0)))
    periods = [pitch_period(espeak.speak("Our neighbour was warm.", v, seed=1, data=data)) for v in (low, high)]
    assert periods[0] / periods[1] == pytest.approx(2.0, rel=0.15)


def pitch_period(speech: np.ndarray) -> float:
    """Median over frames of the autocorrelation's peak, in samples, between 60 and 250 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(speech.astype(float), 1024)[::512]
    spectra = np.abs(np.fft.rfft(frames, 4096)) ** 2
    correlation = np.fft.irfft(spectra)[:, 88:367]
    return float(np.median(88 + correlation.argmax(axis=1)))
