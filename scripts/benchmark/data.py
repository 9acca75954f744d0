"""Measure loading of crops and augmentation on one CPU core, beside SpeechBrain, soundfile and webdataset."""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
import webdataset
from interleaved import medians
from torch import Tensor
from tqdm import tqdm

from sv_sparse.data.augment import SNR_RANGE_DB, Augmentation
from sv_sparse.data.augment_ops import AugmentOnDevice, add_reverb, speed_perturb
from sv_sparse.data.corpora.headers import read_headers, single_segments
from sv_sparse.data.dataset import CropDataset
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.noise import RIR, build_noise_store
from sv_sparse.data.shards import write_shards
from sv_sparse.data.torchaudio_guard import torchaudio

RATE, SECONDS, CROP, BATCH = 16000, 8, 32240, 32


def write_speech(root: Path, ending: str, count: int) -> Manifest:
    """Write ``count`` utterances of eight seconds; return their manifest."""
    draw = np.random.default_rng(0)
    keys = [f"id{k:05d}/s/{k:05d}{ending}" for k in range(count)]
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        walk = np.cumsum(draw.normal(size=SECONDS * RATE)) / 200
        soundfile.write(root / key, 0.3 * np.sin(walk) + 0.01 * draw.normal(size=len(walk)), RATE)
    headers = read_headers(root, keys, tqdm(disable=True))
    names = {"utterance": keys, "speaker": [key[:7] for key in keys], "session": ["s"] * count}
    header_columns = {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    parts = single_segments(pa.array(keys, pa.string()), headers)
    table = pa.table({**names, **header_columns, "segments": parts, "split": ["train"] * count})
    return Manifest.write(root / "manifest.parquet", table, root)


def write_noise(root: Path) -> None:
    """Write noise of five seconds and rooms of half a second, laid out as MUSAN and RIRS_NOISES."""
    draw = np.random.default_rng(1)
    for kind in SNR_RANGE_DB:
        (root / kind).mkdir(parents=True)
        for number in range(20):
            soundfile.write(root / kind / f"{number}.wav", 0.1 * draw.normal(size=5 * RATE), RATE)
    (root / "simulated_rirs").mkdir()
    for number in range(20):
        response = draw.normal(size=RATE // 2) * np.exp(-np.arange(RATE // 2) / 1500)
        soundfile.write(root / "simulated_rirs" / f"{number}.wav", response / np.abs(response).max(), RATE)


def crops_of(manifest: Manifest, augmentation: Augmentation | None = None) -> CropDataset:
    """Return the dataset of two-second crops of all utterances."""
    rows = manifest.split("train")
    return CropDataset(manifest, rows, manifest.labels(rows), crop_samples=CROP, seed=0, augmentation=augmentation)


def exhaust(loader: Callable[[], Iterator[object]]) -> None:
    """Read everything that a loader yields."""
    for _ in loader():
        pass


def our_loader(manifest: Manifest) -> Callable[[], Iterator[object]]:
    """Return our loader, in the calling process."""
    crops = crops_of(manifest)
    return partial(iter, CropLoader(crops, EpochBatchSampler(len(crops), BATCH, 0), 0, "cpu"))


def speechbrain_loader(manifest: Manifest) -> Callable[[], Iterator[object]]:
    """Return SpeechBrain's loader: dynamic items, its reader with start and stop, its padded batches."""
    from speechbrain.dataio.dataio import read_audio  # noqa: PLC0415  # after torchaudio
    from speechbrain.dataio.dataloader import SaveableDataLoader  # noqa: PLC0415
    from speechbrain.dataio.dataset import DynamicItemDataset  # noqa: PLC0415
    from speechbrain.utils.data_pipeline import provides, takes  # noqa: PLC0415

    draw = np.random.default_rng(0)

    @takes("wav")
    @provides("sig")
    def pipeline(wav: str) -> Tensor:
        start = int(draw.integers(SECONDS * RATE - CROP))
        crop: Tensor = read_audio({"file": wav, "start": start, "stop": start + CROP})
        return crop

    from speechbrain.dataio.batch import PaddedBatch  # noqa: PLC0415

    data = {str(row): {"wav": manifest.segments(row)[0].path} for row in range(len(manifest))}
    dataset = DynamicItemDataset(data, [pipeline], ["id", "sig"])
    return partial(iter, SaveableDataLoader(dataset, batch_size=BATCH, collate_fn=PaddedBatch, drop_last=True))


def webdataset_crops(folder: Path) -> Iterator[object]:
    """Yield crops as webdataset does: full members one after the other, decoded, then cut."""
    draw = np.random.default_rng(0)
    for sample in webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False):
        start = int(draw.integers(SECONDS * RATE - CROP))
        yield soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0][start : start + CROP]


def augmentations(noise: Path, store: Path) -> dict[str, Callable[[], object]]:
    """Return functions that put a batch of waveforms in noise or rooms, or make it faster, by name."""
    from speechbrain.augment.time_domain import AddNoise, AddReverb, SpeedPerturb  # noqa: PLC0415

    for kind in ("noise", "simulated_rirs"):
        files = sorted((noise / kind).glob("*.wav"))
        lines = [f"{k},{soundfile.info(f).duration},{f},wav,\n" for k, f in enumerate(files)]
        (noise / f"{kind}.csv").write_text("ID,duration,wav,wav_format,wav_opts\n" + "".join(lines))
    speech = 0.1 * torch.randn(BATCH, CROP)
    samples = (32768 * speech).to(torch.int16)
    lengths = torch.ones(BATCH)
    every, mixer = Augmentation(noise_dir=str(store), aug_prob=1.0), AugmentOnDevice(CROP)
    kinds: dict[str, list[int]] = {"noise": [], "room": []}
    for number in range(1000):
        kind = every.sample(0, 0, str(number)).kind
        kinds["room" if kind == RIR else "noise"].append(number)

    def mixed(kind: str) -> Tensor:
        plans = [every.sample(0, 0, str(number)) for number in kinds[kind][:BATCH]]
        waveforms: Tensor = mixer(samples, every.collate(plans, CROP))
        return waveforms

    add_noise = AddNoise(csv_file=str(noise / "noise.csv"), snr_low=0, snr_high=15, clean_sample_rate=RATE)
    speechbrain_reverb = AddReverb(csv_file=str(noise / "simulated_rirs.csv"), clean_sample_rate=RATE)
    speed = SpeedPerturb(RATE, [90])
    rooms = torch.randn(BATCH, RATE // 2)
    return {
        "noise, ours": partial(mixed, "noise"),
        "noise, SpeechBrain": partial(add_noise, speech, lengths),
        "rooms, ours (one for each utterance)": partial(mixed, "room"),
        "rooms, SpeechBrain (one for the batch)": partial(speechbrain_reverb, speech),
        "rooms, SpeechBrain, one for each utterance": lambda: [
            speechbrain_reverb(waveform[None]) for waveform in speech
        ],
        "rooms, torchaudio.functional.fftconvolve": partial(torchaudio.functional.fftconvolve, speech, rooms),
        "rooms, the convolution alone, eight rows at a time": lambda: [
            *map(add_reverb, speech.split(8), rooms.split(8))
        ],
        "speed, ours": partial(speed_perturb, speech, 0.9),
        "speed, SpeechBrain": partial(speed, speech),
    }


def loaders(wav: Manifest, flac: Manifest, shards: Path) -> dict[str, Callable[[], object]]:
    """Return functions that read all utterances once, cut to crops and put into batches, by name."""
    tar = Manifest(shards / "manifest.parquet")
    return {
        "wav, ours": partial(exhaust, our_loader(wav)),
        "wav, SpeechBrain": partial(exhaust, speechbrain_loader(wav)),
        "flac, ours": partial(exhaust, our_loader(flac)),
        "flac, SpeechBrain": partial(exhaust, speechbrain_loader(flac)),
        "tar of flac, ours": partial(exhaust, our_loader(tar)),
        "tar of flac, webdataset": partial(exhaust, partial(webdataset_crops, shards)),
    }


def show(title: str, seconds: dict[str, float], count: int) -> None:
    """Print utterances per second, and milliseconds of each."""
    print(f"\n| {title} | utterances/s | ms each |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {count / value:,.0f} | {1000 * value / count:.3f} |")


def main() -> None:
    """Print a table per part, then one line of JSON with the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wav, flac = (write_speech(folder / ending, f".{ending}", args.utterances) for ending in ("wav", "flac"))
        write_shards(folder / "flac", folder / "shards")
        write_noise(folder / "noise")
        build_noise_store([folder / "noise"], folder / "store")
        read = medians(loaders(wav, flac, folder / "shards"), args.rounds)
        mixed = medians(augmentations(folder / "noise", folder / "store"), args.rounds)
    print(f"torch {torch.__version__}, one thread, crops of {CROP} samples, page cache warm")
    show("loader", read, args.utterances)
    show("augmentation, batches of 32", mixed, BATCH)
    ratios = {
        "wav_loader_over_speechbrain": read["wav, SpeechBrain"] / read["wav, ours"],
        "flac_loader_over_speechbrain": read["flac, SpeechBrain"] / read["flac, ours"],
        "shards_over_webdataset": read["tar of flac, webdataset"] / read["tar of flac, ours"],
        "wav_crops_per_second": args.utterances / read["wav, ours"],
        "flac_crops_per_second": args.utterances / read["flac, ours"],
        "noise_over_speechbrain": mixed["noise, SpeechBrain"] / mixed["noise, ours"],
        "rooms_over_speechbrain_each": mixed["rooms, SpeechBrain, one for each utterance"]
        / mixed["rooms, ours (one for each utterance)"],
        "rooms_ms": 1000 * mixed["rooms, ours (one for each utterance)"] / BATCH,
        "speed_ms": 1000 * mixed["speed, ours"] / BATCH,
    }
    print("\n" + json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
