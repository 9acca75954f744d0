"""The recordings of trial lists in noise and rooms: a folder for each condition, as ``sv-sparse evaluate`` reads it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from scipy.signal import lfilter
from torch import Tensor
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance, recording
from sv_sparse.data.augment_ops import reverberate
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.noise import ROOM, NoiseStore, build_store
from sv_sparse.data.rng import generator
from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.data.trials import read_trials
from sv_sparse.io import atomic_write, write_text

MADE_UP = "nowhere: it is made up (sloped noise, babble of six training speakers, rooms of noise that dies away)"
LEVELS = (20, 10, 5, 0)  # dB
KINDS = {"noise": LEVELS, "speech": (20, 10), ROOM: (None,)}


class Condition(NamedTuple):
    """What is done to every recording.

    Attributes:
        kind: Of the noise, or room.
        snr: In dB; None for rooms.
    """

    kind: str
    snr: int | None

    @property
    def name(self) -> str:
        """Of its folder, and at the end of the names of its lists."""
        return self.kind if self.snr is None else f"{self.kind}_{self.snr}dB"


CONDITIONS = [Condition(kind, snr) for kind, levels in KINDS.items() for snr in levels]


def make_noisy(root: Path, trials: Sequence[Path], store: NoiseStore, out: Path) -> list[Path]:
    """Write every condition, ``out/CONDITION/wav`` and the lists beside it, where it is not there yet.

    Both sides of a trial are heard in the condition, each in a stretch of noise or a room of its own. What an
    utterance gets depends on its name and the condition alone.

    Returns:
        The folders.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in trials}
    utterances = sorted({name for path in trials for name in read_trials(path).utterances})
    for condition in CONDITIONS:
        folder = out / condition.name
        lists = {folder / f"{stem}_{condition.name}.txt": text for stem, text in texts.items()}
        if all(path.is_file() and path.read_text(encoding="utf-8") == text for path, text in lists.items()):
            continue
        for name in tqdm(utterances, desc=condition.name, unit="utterance"):
            clean = read_utterance(recording(root / name), SAMPLE_RATE)
            _write((folder / "wav" / name).with_suffix(".flac"), _heard(clean, name, condition, store))
        for path, text in lists.items():  # the last thing: a list says that its recordings are there
            write_text(path, text)
    return [out / condition.name for condition in CONDITIONS]


def _heard(clean: Tensor, name: str, condition: Condition, store: NoiseStore) -> Tensor:
    """An utterance [S] in a condition, at most as loud as a file can be."""
    draw = generator(0, f"evidence {condition.kind}", 0, name)
    chosen, place = int(draw.integers(store.count(condition.kind))), float(draw.random())
    if condition.snr is None:
        heard = reverberate(clean[None], torch.tensor(store.room(chosen))[None])[0]
    else:
        noise = torch.tensor(store.sound(condition.kind, chosen, place, len(clean)).astype(np.float32))
        snr = torch.tensor(float(condition.snr))
        heard = torchaudio.functional.add_noise(clean, noise, snr) if noise.any() else clean
    return heard / heard.abs().max().clamp(min=1.0)


def _write(path: Path, waveform: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="FLAC")


def open_store(roots: Sequence[Path] | None, speech: Sequence[Path], out: Path) -> NoiseStore:
    """Noise and rooms: recordings, or, where there are none, made-up ones.

    Args:
        roots: Folders shaped like MUSAN and RIRS_NOISES; None for what is made up.
        speech: Recordings that made-up babble is mixed of.
        out: Folder of what is made.

    Raises:
        ValueError: The folder has noise from elsewhere.
    """
    source = "; ".join(map(str, roots)) if roots else MADE_UP
    said = out / "source.txt"
    if said.is_file() and said.read_text(encoding="utf-8") != source:
        raise ValueError(f"{out} has noise from {said.read_text(encoding='utf-8')}, not from {source}; remove it first")
    if not (out / "store" / "index.parquet").is_file():
        if not roots:
            _make_up(speech, out / "made_up")
        build_store(roots or [out / "made_up"], out / "store")
        write_text(said, source)
    return NoiseStore(out / "store")


def _make_up(speech: Sequence[Path], out: Path) -> None:
    """Noise with the slope of speech, babble of six talkers, and rooms that die away by 60 dB in 0.2 to 0.8 s."""
    for path, waveform in _made_up(speech):
        loudest = np.abs(waveform).max()
        _write(out / path, torch.from_numpy((0.9 * waveform / loudest).astype(np.float32)))


def _made_up(speech: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
    for number in range(10):
        draw = generator(0, "evidence made up", 0, str(number))
        white = draw.standard_normal(5 * SAMPLE_RATE)
        yield f"noise/{number}.flac", lfilter([1.0], [1.0, -0.9], white)
        talkers = [
            read_utterance(recording(speech[k]), SAMPLE_RATE).numpy() for k in draw.integers(len(speech), size=6)
        ]
        samples = max(map(len, talkers))
        yield f"speech/{number}.flac", np.sum([np.resize(talker, samples) for talker in talkers], axis=0)
        seconds = draw.uniform(0.2, 0.8)
        time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tail = draw.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
        tail[0] = 4.0  # the direct sound
        yield f"simulated_rirs/{number}.flac", tail
