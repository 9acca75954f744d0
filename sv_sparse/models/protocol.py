"""Protocol of a network that can be trained here, and its check on two made-up utterances before training."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sv_sparse.models.features import MEL_BINS


class SpeakerModel(Protocol):
    """A network from features to speaker embeddings, as ``torch.nn.Module``.

    Attributes:
        mel_bins: F, of the filterbank that it takes.
        embedding_dim: E, of the embeddings that it returns.
        features: name of the features that it takes; ``registry.build_model`` sets it.
    """

    mel_bins: int
    embedding_dim: int
    features: str

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map log-mel filterbanks [B, F, T] in float32 to embeddings [B, E]; any T, utterances of one length."""
        ...


REQUIREMENTS = """A network that train.py trains
1. is a torch.nn.Module whose class takes mel_bins, beside the settings of model: Network(mel_bins=80, ...);
2. maps filterbanks [B, mel_bins, T] in float32 to embeddings [B, E] in floating point, one for each utterance;
3. takes any T: crops in training, and whole recordings, one or several of one length, in evaluation mode;
4. gives embeddings of one size E whatever T is (the attribute embedding_dim, if there is one, is E);
5. gives finite embeddings of noise;
6. has parameters that are trained, and trains without an error in backward()."""
# Lengths of the two made-up utterances, in frames of 10 ms.
_FRAMES = (50, 73)
# Parameters in a warning.
_NAMED = 5

logger = logging.getLogger(__name__)


def check_model(network: nn.Module, device: torch.device) -> int:
    """Check what a network makes of two utterances, and return the size E of its embeddings.

    The network is on ``device`` afterwards. Its buffers, gradients and mode stay as they were, and so does the state of
    torch's random numbers.

    Args:
        network: filterbank [B, F, T] to embedding [B, E].
        device: where it is trained.

    Raises:
        ValueError: it does not do what ``REQUIREMENTS`` says; lists everything that was seen.

    Warns of parameters that are trained and that no gradient reached, by the log.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(network).__name__}\n{REQUIREMENTS}")
    network.to(device)
    trained = {name: param for name, param in network.named_parameters() if param.requires_grad}
    problems: list[str] = []
    sizes: dict[str, int] = {}
    if not trained:
        problems.append("it has no parameter that is trained")
    with _unchanged(network, device):
        noise = torch.Generator().manual_seed(0)
        features = [torch.randn(2, MEL_BINS, frames, generator=noise).to(device) for frames in _FRAMES]
        network.train()
        _try_batch("in training", network, features[0], problems, sizes, learn=bool(trained))
        unreached = [name for name, param in trained.items() if param.grad is None]
        network.eval()
        for batch in (*features, features[0][:1]):
            _try_batch("in evaluation mode", network, batch, problems, sizes)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} for {words}" for words, size in sizes.items())
        problems.append(f"the size of its embeddings differs: {listed}")
    size = next(iter(sizes.values()), 0)
    declared_size = getattr(network, "embedding_dim", size)
    if sizes and declared_size != size:
        problems.append(f"its embedding_dim is {declared_size}, its embeddings have {size} numbers")
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ValueError(f"model: {type(network).__name__} cannot be trained:\n{listed}\n{REQUIREMENTS}")
    if unreached:
        names = ", ".join(unreached[:_NAMED]) + (", ..." if len(unreached) > _NAMED else "")
        logger.warning(
            "no gradient reaches %d parameters of %s: %s; freeze them (requires_grad=False) or use them",
            len(unreached),
            type(network).__name__,
            names,
        )
    return size


def check_head(head: nn.Module, embedding_dim: int, num_speakers: int, device: torch.device) -> None:
    """Check what a loss of the user's own makes of random embeddings; it stays as it was.

    Args:
        head: embeddings [B, E] and labels [B] to the loss, 0-dim, and scores [B, K].
        embedding_dim: E.
        num_speakers: K.
        device: where it is trained.

    Raises:
        ValueError: it raises an error, or returns something else; says what.
    """
    name = type(head).__name__
    if not isinstance(head, nn.Module):
        raise ValueError(f"head: expected a torch.nn.Module, got {name}")
    head.to(device)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(4, embedding_dim, generator=generator).to(device).requires_grad_()
    labels = torch.arange(4, device=device) % num_speakers
    with _unchanged(head, device), own_code("head", name):
        output = head(embedding, labels)
        problem = _problem_of_loss(output, num_speakers)
        if problem is None:
            output[0].backward()
            if embedding.grad is None:
                problem = "no gradient of its loss reaches the embeddings"
    if problem is not None:
        raise ValueError(f"head: {name} cannot be trained with: {problem}")


def _problem_of_loss(output: Any, num_speakers: int) -> str | None:
    """Return what is wrong with what a loss of four embeddings returns; None where nothing is."""
    is_pair = isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output)
    if not is_pair:
        return f"it returns {type(output).__name__}, expected a tuple of two tensors, loss and scores"
    loss, scores = output
    if loss.ndim or not loss.isfinite():
        return f"its loss is {loss.tolist()}, expected a finite number, 0-dim"
    if tuple(scores.shape) != (4, num_speakers):
        return f"its scores are {list(scores.shape)}, expected [B, num_speakers] = [4, {num_speakers}]"
    return None


def _try_batch(
    mode: str,
    network: nn.Module,
    features: Tensor,
    problems: list[str],
    sizes: dict[str, int],
    *,
    learn: bool = False,
) -> None:
    """Run a batch, and note what is wrong with its embeddings, and their size."""
    words = f"{list(features.shape)} {mode}"
    try:
        with torch.set_grad_enabled(learn):
            embedding = network(features)
    except torch.OutOfMemoryError:
        # The device's fault, which has its own advice.
        raise
    except Exception as error:  # noqa: BLE001  # somebody else's code may raise anything, and all of it is told
        problems.append(f"forward of {words} raises {type(error).__name__}: {error}{_line_of(error)}")
        return
    if not isinstance(embedding, Tensor):
        problems.append(
            f"forward of {words} returns {type(embedding).__name__}, expected a tensor [{len(features)}, E]"
        )
        return
    if embedding.ndim != 2 or len(embedding) != len(features) or not embedding.is_floating_point():
        shape, kind = list(embedding.shape), str(embedding.dtype).removeprefix("torch.")
        problems.append(f"forward of {words} returns {kind} {shape}, expected floating point [{len(features)}, E]")
        return
    sizes[words] = embedding.shape[1]
    if not embedding.isfinite().all():
        problems.append(f"embeddings of {words} are not finite")
    if not learn:
        return
    try:
        embedding.float().square().sum().backward()
    except Exception as error:  # noqa: BLE001  # as above
        problems.append(f"backward of {words} raises {type(error).__name__}: {error}{_line_of(error)}")


@contextmanager
def own_code(setting: str, name: str) -> Iterator[None]:
    """Name the setting, the class and the line in what code of the user's own raises.

    Args:
        setting: names the class on the command line.
        name: of the class.

    Raises:
        ValueError: whatever the code raised.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        # The device's fault, which has its own advice.
        raise
    # Somebody else's code may raise anything.
    except Exception as error:
        raise ValueError(f"{setting}: {name} raises {type(error).__name__}: {error}{_line_of(error)}") from error


def _line_of(error: Exception) -> str:
    """Return the line of the user's own code that an error came from: the last one outside of torch."""
    torch_dir = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if not frame.filename.startswith(torch_dir)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


@contextmanager
def _unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, gradients, modes and random numbers afterwards: a run does not depend on the check."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients = [(param, param.grad) for param in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    devices = [device] if device.type == "cuda" else []
    for param, _ in gradients:
        param.grad = None
    try:
        # Dropout draws.
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                # Others are made by the first batch.
                if name in buffers:
                    buffer.copy_(buffers[name])
        for param, gradient in gradients:
            param.grad = gradient
        for module, training in modes:
            module.training = training
