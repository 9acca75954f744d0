"""From a ResNet34 to the settings and the state of a `CompactResNet34` with the same outputs. All in float64.

The stream of a stage has the channels that any of its blocks, or what it starts from, computes. All others are
constants, which change from block to block as the biases of batch norms are added.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.deploy.compact_signals import (
    Signal,
    Term,
    assembled,
    constants,
    filled,
    picked,
    reached,
    scale_and_shift,
    slots_for,
)
from sv_sparse.deploy.compact_silence import silence_resnet
from sv_sparse.models.resnet import BasicBlock, ResNet34


def from_resnet(network: ResNet34, round_to: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of a `CompactResNet34` without ``mel_bins``, and its state in float64."""
    source = copy.deepcopy(network).double().eval()
    silence_resnet(source)
    state: dict[str, Tensor] = {}
    weight, bias = _folded(source.conv, source.norm)
    image = Signal(torch.arange(1), torch.ones(1).double(), torch.zeros(1).double())
    stream, widths, inner, branch = image, list[int](), list[int](), list[int]()
    for number, stage in enumerate(source.stages):
        blocks = [block for block in stage.children() if isinstance(block, BasicBlock)]
        start = source.conv.weight if number == 0 else blocks[0].shortcut[0].weight
        assert isinstance(start, Tensor)
        live = _rows(start)
        for block in blocks:
            live = live | _rows(block.conv2.weight)
        begun = torch.relu(bias) if number == 0 else None
        shifts = [torch.where(live, 0.0, shift) for shift in _shifts(blocks, begun)]
        heard = shifts if begun is None else [torch.where(live, 0.0, begun), *shifts]  # by the blocks
        one = any(bool(shift.any()) for shift in heard)
        slots = filled(slots_for(live, round_to, one=one), round_to)
        if number == 0:
            _put(state, "conv", *assembled([Term(weight, image)], bias, slots))
            stream = Signal(slots, live.double(), torch.where(live, 0.0, begun))  # type: ignore[arg-type]
        for index, (block, shift) in enumerate(zip(blocks, shifts, strict=True)):
            between, computed = _block(state, f"stages.{number}.{index}", block, stream, slots, round_to)
            inner.append(between)
            branch.append(computed)
            stream = Signal(slots, live.double(), shift)
        widths.append(len(slots))
    _end(state, source, stream)
    settings = {
        "stream_channels": widths,
        "inner_channels": inner,
        "branch_channels": branch,
        "embedding_dim": source.embedding_dim,
        "statistics_norm": isinstance(source.statistics_norm, nn.BatchNorm1d),
    }
    return settings, state


def _shifts(blocks: list[BasicBlock], begun: Tensor | None) -> list[Tensor]:
    """What each block gives for channels that neither its convolutions nor any before it compute: [C] each."""
    shifts = list[Tensor]()
    for block in blocks:
        _, added = scale_and_shift(block.norm2)
        if begun is None or len(block.shortcut):
            _, begun = scale_and_shift(block.shortcut[1])
        begun = torch.relu(begun + added)
        shifts.append(begun)
    return shifts


def _block(
    state: dict[str, Tensor], name: str, block: BasicBlock, stream: Signal, slots: Tensor, round_to: int
) -> tuple[int, int]:
    """Put the block's weights into the state; the width between its convolutions, and that of a branch or 0."""
    weight, bias = _folded(block.conv1, block.norm1)
    heard = [Term(weight, stream)]
    live = reached(heard) | constants(heard).flatten(1).ne(0).any(1)
    shift = torch.where(live, 0.0, torch.relu(bias))
    last, last_bias = _folded(block.conv2, block.norm2)
    one = bool(torch.einsum("ochw,c->ohw", last, shift).any())
    inner = Signal(filled(slots_for(live, round_to, one=one), round_to), live.double(), shift)
    _put(state, f"{name}.conv1", *assembled(heard, bias, inner.slots, padded=True))
    branch = _branch(state, name, Term(last, inner), last_bias, slots, round_to)
    if len(block.shortcut):
        weight, bias = _folded(block.shortcut[0], block.shortcut[1])
        _put(state, f"{name}.shortcut", *assembled([Term(weight, stream)], bias, slots))
    return len(inner.slots), branch


def _branch(state: dict[str, Tensor], name: str, term: Term, bias: Tensor, slots: Tensor, round_to: int) -> int:
    """Put the second convolution into the state, by a branch where that is fewer multiplications; its width or 0."""
    live = reached([term]) | constants([term]).flatten(1).ne(0).any(1)
    rows = filled(slots_for(live, round_to), round_to)
    taps, heard, count = term.weight[0, 0].numel(), len(term.signal.slots), len(rows)
    if count * (taps * heard + len(slots)) >= len(slots) * taps * heard:
        _put(state, f"{name}.conv2", *assembled([term], bias, slots, padded=True, one=0.0))
        return 0
    _put(state, f"{name}.conv2", *assembled([term], bias, rows, padded=True))
    places = slots.unsqueeze(1).eq(rows) & (rows >= 0)
    rest = torch.where(live, 0.0, bias)
    _put(state, f"{name}.spread", places.double()[:, :, None, None], picked(rest, slots))
    return count


def _end(state: dict[str, Tensor], source: ResNet34, stream: Signal) -> None:
    """Pooling's norm and the embedding; a channel has as many statistics as bins."""
    bins = source.embedding.in_features // (2 * len(stream.scale))
    places = stream.slots.unsqueeze(1)
    half = torch.where(places >= 0, places * bins + torch.arange(bins), places).flatten()
    slots = torch.cat([half, torch.where(half >= 0, half + bins * len(stream.scale), half)])
    live = stream.scale.repeat_interleave(bins).repeat(2)
    deviation = torch.full_like(stream.shift, source.pooling.variance_floor**0.5)
    shift = torch.cat([stream.shift, deviation]).repeat_interleave(bins)
    norm = source.statistics_norm
    if isinstance(norm, nn.BatchNorm1d):
        scale, offset = scale_and_shift(norm)
        shift = shift * scale + offset
        for part, value in norm.state_dict().items():
            rest = float(part == "running_var")
            found = picked(value, slots, one=rest, nothing=rest) if value.ndim else value
            state[f"statistics_norm.{part}"] = found
    terms = [Term(source.embedding.weight, Signal(slots, live, torch.where(live == 0, shift, 0.0)))]
    _put(state, "embedding", *assembled(terms, source.embedding.bias, torch.arange(source.embedding_dim)))


def _folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and its batch norm in one."""
    assert isinstance(conv, nn.Conv2d)
    scale, shift = scale_and_shift(norm)
    return conv.weight * scale.view(-1, 1, 1, 1), shift


def _rows(weight: Tensor) -> Tensor:
    """Which rows [O] are not all zero."""
    return weight.flatten(1).ne(0).any(1)


def _put(state: dict[str, Tensor], name: str, weight: Tensor, bias: Tensor) -> None:
    state |= {f"{name}.weight": weight, f"{name}.bias": bias}
