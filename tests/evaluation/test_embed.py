"""Laws of embedding whole recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from sv_sparse.data.audio import single_file
from sv_sparse.data.manifest import AudioSegment
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.evaluation.embed import embed, mean_embedding


class Sums(nn.Module):
    """An embedding that tells recordings apart: the sum of the samples, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.stack([x.sum(1), torch.full((len(x),), float(x.shape[1]))], dim=1) * self.one


def test_every_recording_keeps_its_place_and_its_whole_length(tmp_path):
    lengths = [*range(4000, 4150), *[3777] * 40]
    generator = np.random.default_rng(0)
    paths, expected = [], []
    for number, length in enumerate(generator.permutation(lengths)):
        path = str(tmp_path / f"{number}.wav")
        soundfile.write(path, generator.uniform(-0.5, 0.5, length), 16000, subtype="FLOAT")
        samples, _ = soundfile.read(path, dtype="float32")
        paths.append(single_file(path))
        expected.append((samples.sum(), length))
    embeddings = embed(Sums(), nn.Identity(), paths, title="test")
    np.testing.assert_allclose(embeddings.values, np.array(expected), atol=1e-3)
    assert embeddings.unusable == {}
    assert embeddings.usable.all()


def ramp(samples: int, peak: float = 0.1) -> np.ndarray:
    """Samples that differ, since a recording of equal ones holds nothing."""
    return np.linspace(0, peak, samples)


def ramps(folder: Path, count: int) -> list[list[AudioSegment]]:
    """Recordings of several lengths."""
    recordings = []
    for number in range(count):
        path = folder / f"{number}.wav"
        soundfile.write(path, ramp(3600 + number % 3), 16000, subtype="FLOAT")
        recordings.append(single_file(path))
    return recordings


class Refusing(Sums):
    """Refuses recordings that are too short, as networks do, and has no number for those that are too loud."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] < 3500:
            raise ValueError(f"expected 3500 samples, got {x.shape[1]}")
        loud = x.abs().amax(dim=1, keepdim=True) > 10
        return super().forward(x).masked_fill(loud, torch.inf)


def test_recordings_that_cannot_be_used_are_named_with_the_reason_and_left_out(tmp_path, caplog):
    recordings = ramps(tmp_path, 100)
    positions = [5, 6, 7, 17, 18, 60]
    broken, too_short, silent, short, not_a_number, loud = (Path(recordings[row][0].path) for row in positions)
    broken.write_bytes(b"nothing")
    for path, samples in (
        (too_short, ramp(800)),
        (silent, np.full(3600, 0.1)),
        (short, ramp(3300)),
        (not_a_number, np.full(3600, np.nan)),
        (loud, ramp(3600, 1e6)),
    ):
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    embeddings = embed(Refusing(), nn.Identity(), recordings, title="test", limit=UnreadableLimit(0.01))
    assert list(embeddings.unusable) == positions
    assert np.flatnonzero(~embeddings.usable).tolist() == positions
    assert np.isnan(embeddings.values[~embeddings.usable]).all()
    assert np.isfinite(embeddings.values[embeddings.usable]).all()
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        f"left out of the test: {broken}: cannot be read as a recording",
        f"left out of the test: {too_short}: is too short: 0.05 seconds, at least 0.2 are needed",
        f"left out of the test: {silent}: holds nothing but silence",
        f"left out of the test: {short}: expected 3500 samples, got 3300",
        f"left out of the test: {not_a_number}: holds samples that are not finite, or beyond 2 ** 31",
        f"left out of the test: {loud}: its embedding is not finite",
    ]


def test_more_than_the_allowed_share_that_cannot_be_used_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sv_sparse.evaluation.embed._PREFETCH", 100)
    recordings = ramps(tmp_path, 200)
    for number in range(20):
        Path(recordings[number][0].path).write_bytes(b"nothing")
    assert len(embed(Sums(), nn.Identity(), recordings, title="test", limit=UnreadableLimit(0.1)).unusable) == 20
    limit = UnreadableLimit(0.09, "--max-unreadable ")
    message = r"--max-unreadable 0.09: more than 18 of the 200 recordings of the test cannot be used; first .*/0\.wav"
    with pytest.raises(ValueError, match=message):
        embed(Sums(), nn.Identity(), recordings, title="test", limit=limit)


def test_a_few_of_a_small_set_may_be_unusable_but_none_where_none_is_allowed(tmp_path):
    recordings = ramps(tmp_path, 20)
    Path(recordings[7][0].path).unlink()
    assert list(embed(Sums(), nn.Identity(), recordings, title="test", limit=UnreadableLimit(0.01)).unusable) == [7]
    with pytest.raises(
        ValueError, match=r"more than 0 of the 20 recordings of the test cannot be used; first .*7\.wav"
    ):
        embed(Sums(), nn.Identity(), recordings, title="test", limit=UnreadableLimit(0.0))


def test_where_no_recording_can_be_used_there_are_no_embeddings(tmp_path):
    (tmp_path / "broken.flac").write_bytes(b"nothing")
    recordings = [single_file(tmp_path / "broken.flac")]
    embeddings = embed(Sums(), nn.Identity(), recordings, title="test", limit=UnreadableLimit(1.0))
    assert embeddings.values.shape == (1, 0)
    assert not embeddings.usable.any()


def test_the_mean_weighs_every_crop_alike():
    batches = [torch.ones(3, 10), torch.zeros(1, 10)]
    assert mean_embedding(Sums(), batches).tolist() == [7.5, 10.0]


def test_a_mean_of_no_crops_is_refused():
    with pytest.raises(ValueError, match="has no training crops that can be read"):
        mean_embedding(Sums(), [])
