"""Laws of the cache of embeddings: nothing is computed twice, nothing stale is taken, nothing is half written."""

import os

import numpy as np
import pytest
import soundfile
import torch
from test_embed import Sums
from torch import nn

from sv_sparse.data.audio import single_file
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.evaluation.embed import _PREFETCH, embed
from sv_sparse.evaluation.embedding_cache import EmbeddingCache

MODEL = {"name": "x", "channels": 3}


class Counting(Sums):
    """Counts the recordings that it has embedded."""

    num_embedded = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_embedded += len(x)
        return super().forward(x)


@pytest.fixture
def recordings(tmp_path):
    recordings = []
    for number in range(150):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 4000 + number % 7), 16000)
        recordings.append(single_file(str(path)))
    return recordings


def embed_with_cache(folder, utterances, network=None):
    """Embeddings by way of the cache, and how many were computed."""
    network = network or Counting()
    cache = EmbeddingCache(folder, network, MODEL)
    embeddings = embed(network, nn.Identity(), utterances, title="test", limit=UnreadableLimit(0.01), cache=cache)
    return embeddings.values, network.num_embedded


def test_the_second_time_nothing_is_computed(recordings, tmp_path):
    first, count = embed_with_cache(tmp_path / "cache", recordings)
    assert count == 150
    again, count = embed_with_cache(tmp_path / "cache", recordings[::-1])
    assert count == 0
    np.testing.assert_array_equal(again, first[::-1])


def test_what_is_new_is_computed_alone(recordings, tmp_path):
    embed_with_cache(tmp_path / "cache", recordings[:100])
    embeddings, count = embed_with_cache(tmp_path / "cache", recordings)
    assert count == 50
    np.testing.assert_array_equal(embeddings, embed_with_cache(tmp_path / "other", recordings)[0])


def test_other_weights_another_network_and_a_changed_file_are_computed_anew(recordings, tmp_path):
    embed_with_cache(tmp_path / "cache", recordings)
    network = Counting()
    with torch.no_grad():
        network.one.add_(1e-7)
    assert embed_with_cache(tmp_path / "cache", recordings, network)[1] == 150
    path = recordings[3][0].path
    soundfile.write(path, np.linspace(-0.5, 0.5, 3500), 16000)
    embeddings, count = embed_with_cache(tmp_path / "cache", recordings)
    assert (count, embeddings[3, 1]) == (1, 3500)
    os.utime(path, ns=(1, 1))
    assert embed_with_cache(tmp_path / "cache", recordings)[1] == 1
    for change in ({"channels": 4}, {"features": "wespeaker"}):
        other = EmbeddingCache(tmp_path / "cache", Counting(), MODEL | change)
        assert other.get(recordings) == {}
    same = EmbeddingCache(tmp_path / "cache", Counting(), dict(reversed(MODEL.items())))
    assert len(same.get(recordings)) == 150


def test_an_interruption_keeps_what_was_embedded_and_the_end_is_the_same(recordings, tmp_path, monkeypatch):
    expected, _ = embed_with_cache(tmp_path / "other", recordings)

    class Interrupted(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.num_embedded > 70:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        embed_with_cache(tmp_path / "cache", recordings, Interrupted())
    embeddings, count = embed_with_cache(tmp_path / "cache", recordings)
    assert count == 150 - _PREFETCH
    np.testing.assert_array_equal(embeddings, expected)


def test_embeddings_are_on_disk_within_seconds(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr("sv_sparse.evaluation.embedding_cache._FLUSH_SECONDS", 0)
    embed_with_cache(tmp_path / "cache", recordings)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 3  # blocks
    assert embed_with_cache(tmp_path / "cache", recordings)[1] == 0


def test_a_damaged_file_is_named(recordings, tmp_path):
    embed_with_cache(tmp_path / "cache", recordings)
    (path,) = (tmp_path / "cache").rglob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}: damaged .* remove it"):
        embed_with_cache(tmp_path / "cache", recordings)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{path.name}: damaged"):
        embed_with_cache(tmp_path / "cache", recordings)


def test_a_recording_that_cannot_be_used_is_not_kept_and_tried_again(recordings, tmp_path):
    path = recordings[3][0].path
    samples, rate = soundfile.read(path)
    soundfile.write(path, np.full(4000, np.nan), rate, subtype="FLOAT")
    values, count = embed_with_cache(tmp_path / "cache", recordings)
    assert (count, np.isnan(values).any(axis=1).nonzero()[0].tolist()) == (149, [3])
    assert embed_with_cache(tmp_path / "cache", recordings)[1] == 0
    soundfile.write(path, samples, rate)
    values, count = embed_with_cache(tmp_path / "cache", recordings)
    assert (count, np.isfinite(values).all()) == (1, True)


def test_a_recording_that_cannot_be_used_does_not_change_which_are_computed_together(recordings, tmp_path):
    """After an interruption: in another batch the last bit of an embedding may differ."""

    class Together(Counting):
        def __init__(self, max_embedded: float) -> None:
            super().__init__()
            self.max_embedded, self.batches = max_embedded, []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.num_embedded >= self.max_embedded:
                raise KeyboardInterrupt
            self.batches.append(sorted(x.sum(1).tolist()))
            return super().forward(x)

    soundfile.write(recordings[3][0].path, np.full(4000, np.nan), 16000, subtype="FLOAT")
    uninterrupted, interrupted, resumed = Together(np.inf), Together(70), Together(np.inf)
    embed_with_cache(tmp_path / "other", recordings, uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_with_cache(tmp_path / "cache", recordings, interrupted)
    embed_with_cache(tmp_path / "cache", recordings, resumed)
    assert 0 < resumed.num_embedded < 149
    assert all(batch in uninterrupted.batches for batch in resumed.batches)
