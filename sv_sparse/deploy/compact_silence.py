"""Zeros in the place of channels that nobody hears: those whose columns in all later layers are zero."""

import torch
from torch import Tensor, nn

from sv_sparse.models.ecapa import ECAPA
from sv_sparse.models.layers import ConvUnit, SERes2Block
from sv_sparse.models.resnet import BasicBlock, ResNet34


def silence_ecapa(network: ECAPA) -> None:
    """Do it from the end to the beginning, in place; outputs stay as they are."""
    pooling, last = network.pooling, hears(network.embedding.weight)
    to_mean, to_deviation = last.chunk(2)
    silence(pooling.score, to_mean | to_deviation)
    silence(pooling.hidden, hears(pooling.score.weight))
    frames, means, deviations = hears(pooling.hidden.weight).chunk(3)
    silence(network.mfa, to_mean | to_deviation | frames | means | deviations)
    stream = torch.zeros(network.first.conv.out_channels, dtype=torch.bool)
    by_block = hears(network.mfa.weight).chunk(len(network.blocks))
    for block, aggregated in zip(reversed(network.blocks), reversed(by_block), strict=True):
        assert isinstance(block, SERes2Block)
        stream = stream | aggregated
        silence(block.excitation.expand, stream)
        silence(block.excitation.squeeze, hears(block.excitation.expand.weight))
        silence(block.leave.conv, stream | hears(block.excitation.squeeze.weight))
        _silence_res2(block)
        stream = stream | hears(block.enter.conv.weight)
    silence(network.first.conv, stream)


def _silence_res2(block: SERes2Block) -> None:
    """The units of a block and what enters them."""
    chunks = list(hears(block.leave.conv.weight).chunk(block.res2.scale))
    identity = chunks.pop(0 if block.res2.identity_first else -1)
    after, entering = torch.zeros_like(identity), list[Tensor]()
    for unit, chunk in zip(reversed(block.res2.units), reversed(chunks), strict=True):
        assert isinstance(unit, ConvUnit)
        silence(unit.conv, chunk | after)
        after = hears(unit.conv.weight)
        entering.insert(0, after)
    silence(block.enter.conv, torch.cat([identity, *entering] if block.res2.identity_first else [*entering, identity]))


def silence_resnet(network: ResNet34) -> None:
    """Do it from the end to the beginning, in place; outputs stay as they are."""
    blocks = [block for stage in network.stages for block in stage.children() if isinstance(block, BasicBlock)]
    stream = hears(network.embedding.weight).view(2, blocks[-1].conv2.out_channels, -1).any(2).any(0)
    for block in reversed(blocks):
        silence(block.conv2, stream)
        silence(block.conv1, hears(block.conv2.weight))
        for shortcut in block.shortcut:
            if isinstance(shortcut, nn.Conv2d):
                silence(shortcut, stream)
                stream = hears(shortcut.weight)
        stream = stream | hears(block.conv1.weight)
    silence(network.conv, stream)


def silence(layer: nn.Module, heard: Tensor) -> None:
    """Put zeros in the place of those rows that nobody hears; ``heard``: [O]."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight[~heard] = 0
    if layer.bias is not None:
        layer.bias[~heard] = 0


def hears(weight: Tensor) -> Tensor:
    """Of which columns [C] a weight [O, C, ...] is not zero."""
    return weight.transpose(0, 1).flatten(1).ne(0).any(1)
