"""A transform of the user's own: what it may return, and how it is tried."""

import numpy as np
import pytest
import torch

from sv_sparse.training.transform import WaveformTransform

CPU = torch.device("cpu")


def wrapped(transform):
    return WaveformTransform(transform, "mypkg.Own", CPU)


def add_noise(waveforms, generator):
    return waveforms + torch.rand(waveforms.shape, generator=generator)


def test_a_transform_that_draws_from_its_generator_passes_and_leaves_torchs_own_numbers():
    state = torch.get_rng_state()
    wrapped(add_noise).check(800)
    assert torch.equal(torch.get_rng_state(), state)
    waveforms = torch.rand(2, 800)
    output = wrapped(add_noise)(waveforms, torch.Generator().manual_seed(1))
    assert torch.equal(output, add_noise(waveforms, torch.Generator().manual_seed(1)))


def test_a_module_is_a_transform_without_gradients():
    class Gain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, waveforms, generator):
            return waveforms.double() * self.gain

    transform = wrapped(Gain())
    transform.check(800)
    output = transform(torch.ones(2, 800), torch.Generator())
    assert (output.dtype, output.requires_grad, output.mean().item()) == (torch.float32, False, 2.0)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            lambda waveforms, _: waveforms[:, 1:],
            r"returns float32 \[8, 799\] on cpu, expected floating point \[8, 800\]",
        ),
        (lambda waveforms, _: waveforms.int(), r"returns int32 \[8, 800\] on cpu, expected floating point"),
        (lambda waveforms, _: waveforms.numpy(), r"returns ndarray, expected a tensor \[8, 800\]"),
        (lambda waveforms, _: waveforms / 0, "returns numbers that are not finite"),
        (lambda waveforms, _: waveforms + torch.rand(1), "gives other waveforms .*, so draw from the generator alone"),
        (
            lambda waveforms, _: waveforms + np.random.default_rng().uniform(),
            "gives other waveforms .*, and keep no state",
        ),
        (lambda waveforms: waveforms, "raises TypeError: .* takes 1 positional argument but 2 were given"),
    ],
)
def test_what_a_transform_may_not_do_is_refused_by_name(transform, message):
    with pytest.raises(ValueError, match=rf"augment.transform: mypkg.Own {message}"):
        wrapped(transform).check(800)


def test_numbers_that_become_infinite_in_training_are_refused():
    with pytest.raises(ValueError, match=r"mypkg.Own returns numbers that are not finite"):
        wrapped(lambda waveforms, _: waveforms.log())(-torch.ones(2, 8), torch.Generator())


def test_what_cannot_be_called_is_refused():
    with pytest.raises(ValueError, match=r"augment.transform: an object of mypkg.Own cannot be called"):
        wrapped(3)
