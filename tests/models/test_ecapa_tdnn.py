import pytest
import torch
from torch import Tensor, nn

from sv_sparse.data.torchaudio_guard import torchaudio  # noqa: F401  (importing SpeechBrain needs the guard)
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.pretrained.convert import convert


def randomize_norms(model: nn.Module) -> None:
    """Give batch norms gains, offsets and statistics that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.3, 0.1)
            module.running_var.uniform_(0.3, 1.5)


def small(layout: str = "wespeaker") -> ECAPA:
    return ECAPA(mel_bins=20, channels=32, mfa_channels=48, attention_channels=8, se_channels=8, layout=layout)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "mfa_channels"), [(64, 96), (1024, 3072)])
def test_with_speechbrains_weights_it_is_speechbrains_model(channels: int, mfa_channels: int, training: bool) -> None:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415

    torch.manual_seed(0)
    theirs = ECAPA_TDNN(80, channels=[channels] * 4 + [mfa_channels], lin_neurons=192)
    randomize_norms(theirs)
    ours = ECAPA(channels=channels, mfa_channels=mfa_channels, layout="speechbrain")
    _, _, weights = convert(theirs.state_dict())
    ours.load_state_dict(weights)
    ours.train(training)
    theirs.train(training)

    filterbank = torch.randn(3, 80, 60)
    with torch.no_grad():
        expected = theirs(filterbank.transpose(1, 2)).squeeze(1)
        embedding = ours(filterbank)
    assert (embedding - expected).abs().max() < 1e-4
    assert (embedding - expected).norm() < 1e-4 * expected.norm()
    _, _, weights = convert(theirs.state_dict())
    for name, value in weights.items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("settings", "parameters", "tensors"),
    [
        ({}, 14_657_088, 134),
        ({"channels": 512}, 6_190_720, 134),
        ({"mfa_channels": 3072, "layout": "speechbrain"}, 20_767_552, 138),
    ],
)
def test_the_sizes_are_those_of_the_published_models(settings: dict[str, int], parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = ECAPA(**settings)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors


def test_the_default_layout_is_the_papers_written_out() -> None:
    torch.manual_seed(0)
    model = small().eval()
    randomize_norms(model)
    filterbank = torch.randn(2, 20, 40)

    def block_output(block: nn.Module, x: Tensor) -> Tensor:
        chunks = block.conv_in(x).split(4, dim=1)
        outputs: list[Tensor] = []
        for unit, chunk in zip(block.res2.convs, chunks[:-1], strict=True):
            outputs.append(unit(outputs[-1] + chunk if outputs else chunk))
        y = block.conv_out(torch.cat([*outputs, chunks[-1]], dim=1))
        return x + y * block.se(y)

    x = filterbank.unsqueeze(2)
    x = model.stem.norm(model.stem.conv(x).relu())
    outputs = []
    for block in model.blocks:
        x = block_output(block, x)
        outputs.append(x)
    x = model.mfa(torch.cat(outputs, dim=1)).relu().squeeze(2)
    expected = model.embedding(model.norm(model.pooling(x)))
    torch.testing.assert_close(model(filterbank), expected, rtol=1e-4, atol=1e-5)


def test_the_memory_order_of_the_input_does_not_matter() -> None:
    model = small().eval()
    filterbank = torch.randn(2, 40, 20).transpose(1, 2)
    torch.testing.assert_close(model(filterbank), model(filterbank.contiguous()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 36}, "channels must be divisible by res2net_scale=8, got 36"),
        ({"mfa_channels": 0}, "mfa_channels must be at least 1, got 0"),
        ({"res2net_scale": 1}, "res2net_scale must be at least 2, got 1"),
        ({"layout": "kaldi"}, "layout must be one of wespeaker, speechbrain, got 'kaldi'"),
        ({"kernel_sizes": [5, 3, 3, 2]}, r"kernel_sizes must be positive odd numbers, got \[5, 3, 3, 2\]"),
        (
            {"dilations": [1, 2, 3, float("nan")]},
            r"dilations must be whole numbers of at least 1, got \[1, 2, 3, nan\]",
        ),
        ({"kernel_sizes": [5, 3, 3, float("nan")]}, "kernel_sizes must be positive odd numbers"),
        ({"embedding_dim": float("nan")}, "embedding_dim must be a whole number, got nan"),
        ({"se_channels": True}, "se_channels must be a whole number, got True"),
        ({"dilations": [1, 2, 3, 0]}, r"dilations must be whole numbers of at least 1, got \[1, 2, 3, 0\]"),
        ({"dilations": [1, 2]}, r"equally long .* got \[5, 3, 3, 3\] and \[1, 2\]"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ECAPA(**settings)  # type: ignore[arg-type]


def test_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames"):
        small()(torch.zeros(2, 20, 1))
