"""A transform of waveforms of the user's own: the class that ``augment.transform._target_`` names."""

from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.models.protocol import own_code

# Waveforms that a transform is tried on: some random choice differs between two calls.
_NUM_TRIED = 8
# Of waveforms in [-1, 1]: some operations on a GPU add up in any order.
_TOLERANCE = 1e-4


class WaveformTransform:
    """Call a transform of the user's own, and check what it returns.

    Args:
        transform: waveforms, float32 [B, S], and a ``torch.Generator``, both on the device, to waveforms [B, S].
        name: import path of its class, for messages.
        device: where a run trains. A ``torch.nn.Module`` is moved there.

    Raises:
        ValueError: it cannot be called.
    """

    def __init__(self, transform: Any, name: str, device: torch.device) -> None:
        if not callable(transform):
            raise ValueError(f"augment.transform: an object of {name} cannot be called; it needs __call__ or forward")
        self.transform = transform.to(device) if isinstance(transform, nn.Module) else transform
        self.name = name
        self.device = device

    @torch.no_grad()
    def __call__(self, waveforms: Tensor, generator: torch.Generator) -> Tensor:
        """Return transformed waveforms, float32 [B, S].

        Args:
            waveforms: float32 [B, S] in [-1, 1], on the device.
            generator: of random numbers, on the device.

        Raises:
            ValueError: the transform raised an error, or returned something else; on a CPU also, what is not finite.
        """
        shape = waveforms.shape
        with own_code("augment.transform", self.name):
            output = self.transform(waveforms, generator)
        if not isinstance(output, Tensor):
            self._refuse(f"returns {type(output).__name__}, expected a tensor {list(shape)}")
        if output.shape != shape or not output.is_floating_point() or output.device != waveforms.device:
            kind = f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)} on {output.device}"
            self._refuse(f"returns {kind}, expected floating point {list(shape)} on {waveforms.device}")
        # A GPU would be waited for. There the trainer sees a loss that is not finite.
        if output.device.type == "cpu":
            self._check_finite(output)
        return output.float()

    def check(self, crop_samples: int) -> None:
        """Try it on noise, before data are read.

        Args:
            crop_samples: S.

        Raises:
            ValueError: as of a call, or it gives other waveforms for the same ones and an equal generator.
        """
        noise = torch.Generator().manual_seed(0)
        waveforms = (0.1 * torch.randn(_NUM_TRIED, crop_samples, generator=noise)).to(self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        # A run does not depend on the check.
        with torch.random.fork_rng(devices):
            state = torch.get_rng_state()
            first = self(waveforms.clone(), torch.Generator(self.device).manual_seed(0))
            second = self(waveforms.clone(), torch.Generator(self.device).manual_seed(0))
            uses_torch_rng = not torch.equal(state, torch.get_rng_state())
        self._check_finite(first)
        if uses_torch_rng or not torch.allclose(first, second, rtol=0, atol=_TOLERANCE):
            self._refuse(
                "gives other waveforms when it is called again with the same ones and an equal generator, or draws "
                "torch's own random numbers; a resumed run needs the same, so draw from the generator alone, and keep "
                "no state"
            )

    def _check_finite(self, output: Tensor) -> None:
        if not output.isfinite().all():
            self._refuse("returns numbers that are not finite")

    def _refuse(self, problem: str) -> None:
        raise ValueError(f"augment.transform: {self.name} {problem}")
