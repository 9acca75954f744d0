"""Laws of embedding whole recordings."""

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from sv_sparse.data.audio import recording
from sv_sparse.embedding import embed, mean_embedding


class Sums(nn.Module):
    """An embedding that tells recordings apart: the sum of the samples, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.stack([x.sum(1), torch.full((len(x),), float(x.shape[1]))], dim=1) * self.one


def test_every_recording_keeps_its_place_and_its_whole_length(tmp_path):
    lengths = [*range(1000, 1150), *[777] * 40]
    generator = np.random.default_rng(0)
    paths, expected = [], []
    for number, length in enumerate(generator.permutation(lengths)):
        path = str(tmp_path / f"{number}.wav")
        soundfile.write(path, generator.uniform(-0.5, 0.5, length), 16000, subtype="FLOAT")
        samples, _ = soundfile.read(path, dtype="float32")
        paths.append(recording(path))
        expected.append((samples.sum(), length))
    found = embed(Sums(), nn.Identity(), paths, title="test")
    np.testing.assert_allclose(found, np.array(expected), atol=1e-3)


def test_a_recording_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.flac").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.flac"):
        embed(Sums(), nn.Identity(), [recording(tmp_path / "broken.flac")], title="test")


def test_the_mean_weighs_every_crop_alike():
    batches = [torch.ones(3, 10), torch.zeros(1, 10)]
    assert mean_embedding(Sums(), batches).tolist() == [7.5, 10.0]
