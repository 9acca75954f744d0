"""Compare the features of toolkits with ours of the same kind, and with those of networks that are trained here."""

import argparse
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from sv_sparse.data.decoding import AUDIO_SUFFIXES
from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.models.features import DEFAULT_FEATURES, build_features

RATE, BINS = 16000, 80
DECIBELS = 10 / math.log(10)
Features = Callable[[Tensor], Tensor]  # waveform [1, S] to [F, T]


def speechbrain_features() -> Features:
    """Return SpeechBrain's features: decibels, frames at multiples of 10 ms, the mean over time removed."""
    from speechbrain.lobes.features import Fbank  # noqa: PLC0415  # after torchaudio
    from speechbrain.processing.features import InputNormalization  # noqa: PLC0415

    filterbank, normalize = Fbank(n_mels=BINS), InputNormalization(norm_type="sentence", std_norm=False)
    return lambda waveform: normalize(filterbank(waveform), torch.ones(1))[0].T


def kaldi_features(scale: int, window_type: str) -> Features:
    """Return Kaldi's features of samples times a factor, the mean over time removed."""

    def features(waveform: Tensor) -> Tensor:
        settings = {"num_mel_bins": BINS, "sample_frequency": RATE, "window_type": window_type, "dither": 0.0}
        filterbank = torchaudio.compliance.kaldi.fbank(waveform * scale, **settings)
        return (filterbank - filterbank.mean(dim=0)).T

    return features


def distance(reference: Tensor, features: Tensor, shift: int) -> tuple[float, float]:
    """Return the correlation with a toolkit's features [F, T], and the rms of the difference relative to theirs.

    Args:
        reference: features of the toolkit.
        features: ours.
        shift: frames by which the reference starts earlier.
    """
    frames = min(reference.shape[1] - shift, features.shape[1])
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (reference[:, shift : shift + frames], features[:, :frames]))
    return (a * b).sum().item() / (a.norm() * b.norm()).item(), ((a - b).norm() / a.norm()).item()


def main() -> None:
    """Print a row for each toolkit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of recordings at 16 kHz")
    parser.add_argument("--utterances", type=int, default=60, help="recordings that are compared")
    args = parser.parse_args()
    files = sorted(file for file in args.root.rglob("*") if file.suffix in AUDIO_SUFFIXES)
    random.Random(0).shuffle(files)
    default = build_features(DEFAULT_FEATURES, RATE, BINS)
    print("| model.features | largest difference to the toolkit | sv_sparse: correlation | relative rms |")
    print("|---|---:|---:|---:|")
    for kind, toolkit_features, scale, shift in (
        ("3dspeaker", kaldi_features(1, "povey"), 1, 0),
        ("wespeaker", kaldi_features(32768, "hamming"), 1, 0),
        ("speechbrain", speechbrain_features(), DECIBELS, 1),
    ):
        same_kind = build_features(kind, RATE, BINS)
        differences = []
        rows = []
        for file in files[: args.utterances]:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
            if rate != RATE:
                parser.error(f"{file}: has {rate} Hz, expected {RATE}")
            waveform = torch.from_numpy(samples[:, 0]).unsqueeze(0)
            reference = toolkit_features(waveform)
            differences.append((same_kind(waveform)[0] - reference).abs().max().item())
            rows.append(distance(reference, scale * default(waveform)[0], shift))
        correlation, rms = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {kind} | {max(differences):.1e} | {correlation:.3f} | {rms:.2f} |")


if __name__ == "__main__":
    main()
