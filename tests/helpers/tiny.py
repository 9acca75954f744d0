"""A tiny corpus of tones and a tiny network."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
RATE = 16000
TINY = (
    "model.channels=16",
    "model.mfa_channels=24",
    "model.attention_channels=8",
    "model.se_channels=8",
    "model.res2net_scale=4",
    "model.embedding_dim=16",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.crop_seconds=0.3",
    "trainer.num_bn_crops=8",
    "trainer.num_workers=0",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.log_interval=1",
)

THREE_EPOCHS = (*TINY, "trainer.epochs=3", "target_sparsity=0.8")  # of 6 steps each, on the tiny corpus


class Tones(NamedTuple):
    """Where the tiny corpus is."""

    root: Path
    trials: Path

    def settings(self) -> list[str]:
        return ["data=folder", f"data.root={self.root}", f"data.trial_lists={self.trials}"]


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def tone(speaker: int, session: int, seconds: float) -> np.ndarray:
    """A voice of its own pitch, in a session of its own noise."""
    generator = np.random.default_rng([speaker, session, int(1000 * seconds)])
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 100 + 35 * speaker
    voice = sum(np.sin(2 * np.pi * pitch * k * time + generator.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * voice + 0.02 * generator.normal(size=len(time))).astype(np.float32)


def write_tones(root: Path, speakers: Sequence[str]) -> list[str]:
    keys = []
    for number, speaker in enumerate(speakers):
        for session in range(2):
            for utterance in range(3):
                key = f"{speaker}/s{session}/{utterance:05d}.flac"
                (root / key).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(root / key, tone(number, session, 0.5 + 0.1 * utterance), RATE)
                keys.append(key)
    return keys


def damage_middle(path: Path) -> None:
    """Damage a FLAC file of 0.6 seconds or more where only whoever reads it whole notices it.

    It has blocks of 4096 samples: the first and the last, which are tried when a folder is scanned, remain.
    """
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    path.write_bytes(content)


def write_trial_list(path: Path, keys: Sequence[str]) -> None:
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in combinations(keys, 2)]
    path.write_text("".join(lines))
