from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from tqdm import tqdm

from sv_sparse.data.corpora.headers import read_headers, single_segments
from sv_sparse.data.dataset import CropDataset
from sv_sparse.data.manifest import Manifest

Record = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def record() -> Record:
    """Writes a recording of noise: ``record(path, samples, rate, channels)``."""

    def write(path: Path, samples: int = 4000, rate: int = 16000, channels: int = 1, subtype=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(str(path))).uniform(-0.5, 0.5, (samples, channels))
        container = {".opus": "OGG", ".ogg": "OGG"}.get(path.suffix.lower())
        if path.suffix.lower() == ".opus":
            subtype = "OPUS"
        soundfile.write(path, noise, rate, format=container, subtype=subtype)
        return path

    return write


@pytest.fixture
def corpus(tmp_path: Path, record: Record) -> Path:
    """Six speakers with two sessions of two utterances each."""
    root = tmp_path / "speech"
    for speaker in range(6):
        for session in "ab":
            for utterance in (1, 2):
                record(root / f"id{speaker:05d}" / session / f"{utterance:05d}.wav", 4000 + 10 * speaker)
    return root


@pytest.fixture
def tabulate(tmp_path: Path) -> Callable[..., Manifest]:
    """Writes a manifest of files that exist, all of them training speech."""

    def write(root: Path, files: list[Path]) -> Manifest:
        keys = [file.relative_to(root).as_posix() for file in files]
        headers = read_headers(root, keys, tqdm(disable=True))
        columns = {
            "utterance": keys,
            "speaker": [key.split("/")[0] for key in keys],
            "session": [key.split("/")[1] for key in keys],
            **{name: headers.column(name) for name in ("samples", "sample_rate", "channels")},
            "segments": single_segments(pa.array(keys, pa.string()), headers),
            "split": ["train"] * len(keys),
        }
        return Manifest.write(tmp_path / "manifest.parquet", pa.table(columns), root)

    return write


@pytest.fixture
def files(corpus, record):
    """Recordings of every format, rate and length, plus the corpus."""
    for name, options in {
        "8k.wav": {"rate": 8000},
        "44k.flac": {"rate": 44100, "samples": 9000},
        "stereo.wav": {"channels": 2},
        "short.wav": {"samples": 300},
        "vorbis.ogg": {"samples": 3200},
        "opus.opus": {"samples": 3200},
        "float.wav": {"subtype": "FLOAT"},
    }.items():
        record(corpus / "id00000" / "kinds" / name, **options)
    return sorted(file for file in corpus.rglob("*.*") if file.is_file())


@pytest.fixture
def crops(corpus, files, tabulate):
    manifest = tabulate(corpus, files)
    rows = manifest.split("train")
    return CropDataset(manifest, rows, manifest.labels(rows), crop_samples=800, seed=7)
