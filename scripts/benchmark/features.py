"""Measure the distance of our features to those that public weights were trained on: medians over recordings."""

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from sv_sparse.data.decoding import AUDIO_SUFFIXES
from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.models.features import Filterbank
from sv_sparse.models.pretrained.convert import DECIBELS

RATE, BINS, LOWEST = 16000, 80, 10
Features = Callable[[Tensor], Tensor]  # waveform [1, S] to [F, T]


def speechbrain_features() -> Features:
    """Return SpeechBrain's features: decibels, frames at multiples of 10 ms, the mean over time removed."""
    from speechbrain.lobes.features import Fbank  # noqa: PLC0415  # after torchaudio
    from speechbrain.processing.features import InputNormalization  # noqa: PLC0415

    filterbank, normalize = Fbank(n_mels=BINS), InputNormalization(norm_type="sentence", std_norm=False)
    return lambda waveform: normalize(filterbank(waveform), torch.ones(1))[0].T


def wespeaker_features(waveform: Tensor) -> Tensor:
    """Compute Kaldi's features with pre-emphasis and removal of each frame's mean, which ours have not."""
    features = torchaudio.compliance.kaldi.fbank(
        waveform * 32768, num_mel_bins=BINS, sample_frequency=RATE, window_type="hamming", use_energy=False
    )
    return (features - features.mean(dim=0)).T


def compare(reference: Tensor, features: Tensor, shift: int) -> tuple[float, float, float]:
    """Compare features [F, T] with a toolkit's.

    Args:
        reference: features of the toolkit.
        features: ours.
        shift: frames by which the reference starts earlier.

    Returns:
        Correlation, rms of the difference as a fraction of the reference's, and the same of the ten lowest bins.
    """
    frames = min(reference.shape[1] - shift, features.shape[1])
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (reference[:, shift : shift + frames], features[:, :frames]))
    fractions = [((a[bins] - b[bins]).norm() / a[bins].norm()).item() for bins in (slice(None), slice(LOWEST))]
    return (a * b).sum().item() / (a.norm() * b.norm()).item(), *fractions


def main() -> None:
    """Print a row for each toolkit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of recordings at 16 kHz")
    parser.add_argument("--utterances", type=int, default=60, help="recordings that are compared")
    args = parser.parse_args()
    files = sorted(file for file in args.root.rglob("*") if file.suffix in AUDIO_SUFFIXES)
    random.Random(0).shuffle(files)
    filterbank = Filterbank(RATE, BINS)
    print("| features of | correlation | relative rms | lowest to highest | relative rms, ten lowest bins |")
    print("|---|---:|---:|---|---:|")
    for name, features, scale, shift in (
        ("SpeechBrain", speechbrain_features(), DECIBELS, 1),
        ("WeSpeaker", wespeaker_features, 1, 0),
    ):
        rows = []
        for file in files[: args.utterances]:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
            if rate != RATE:
                parser.error(f"{file}: has {rate} Hz, expected {RATE}")
            waveform = torch.from_numpy(samples[:, 0]).unsqueeze(0)
            rows.append(compare(features(waveform), scale * filterbank(waveform)[0], shift))
        correlation, rms, lowest = (statistics.median(column) for column in zip(*rows, strict=True))
        extremes = f"{min(row[1] for row in rows):.3f} to {max(row[1] for row in rows):.3f}"
        print(f"| {name} | {correlation:.4f} | {rms:.3f} | {extremes} | {lowest:.3f} |")


if __name__ == "__main__":
    main()
