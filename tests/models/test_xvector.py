"""X-vector network: sizes, lengths, gradients, export."""

import pytest
import torch

from sv_sparse.models.xvector import MIN_FRAMES, XVector


def small() -> XVector:
    torch.manual_seed(0)
    return XVector(mel_bins=20, channels=16, statistics_channels=24, embedding_dim=6)


def test_the_size_is_that_of_wespeakers_table() -> None:
    # 4.61 M.
    with torch.device("meta"):
        network = XVector()
    assert sum(param.numel() for param in network.parameters()) == 4_610_524


def test_a_frame_is_seen_with_seven_frames_on_both_sides() -> None:
    network = small().eval()
    filterbank = torch.randn(1, 20, 40, requires_grad=True)
    network.layers(filterbank.unsqueeze(2))[0, :, 0, 10].sum().backward()
    (frames,) = filterbank.grad.abs().sum(dim=(0, 1)).nonzero(as_tuple=True)
    assert 15 - MIN_FRAMES == -1
    assert (frames.min(), frames.max()) == (10, 24)
    assert network.layers(filterbank.unsqueeze(2)).shape == (1, 24, 1, 26)


def test_too_short_input_is_refused() -> None:
    network = small().eval()
    with pytest.raises(ValueError, match="at least 16 frames, got 15; use longer utterances"):
        network(torch.zeros(2, 20, 15))
    assert network(torch.zeros(2, 20, 16)).shape == (2, 6)


@pytest.mark.parametrize("setting", ["mel_bins", "channels", "statistics_channels", "embedding_dim"])
def test_a_wrong_setting_is_named_with_what_is_allowed(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        XVector(**{setting: 0})
