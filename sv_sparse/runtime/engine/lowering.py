"""Networks to programs."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.layers import ConvUnit, Res2Conv, SERes2Block
from sv_sparse.models.pooling import AttentiveStatisticsPooling
from sv_sparse.models.resnet import BasicBlock, ResNet34
from sv_sparse.runtime.engine.program import After, Area, NoProgramError, Program, Shape

LOWERED = (ECAPA, ResNet34)


@torch.no_grad()
def lower(network: nn.Module) -> Program:
    """The program of a folded network: filterbank [F, T] to embedding [E].

    Raises:
        NoProgramError: it is none of LOWERED, or too wide for the kernels.
    """
    if isinstance(network, ECAPA):
        return _ECAPA(network).program
    if isinstance(network, ResNet34):
        return _resnet(network)
    known = ", ".join(kind.__name__ for kind in LOWERED)
    raise NoProgramError(f"there is no program for {type(network).__name__}, only for {known}")


def _norm(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a folded batch norm, where there is one."""
    if norm is None or isinstance(norm, nn.Identity):
        return None
    assert isinstance(norm, _BatchNorm)
    return norm.weight, norm.bias


def _scaled(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A convolution without bias, and the folded norm behind it, as weight and bias."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    return (conv.weight.double() * norm.weight.double()[:, None, None, None]).float(), norm.bias


def _embed(program: Program, layer: nn.Linear, norm: nn.Module, source: Area) -> None:
    """The folded norm before the last linear layer, and the layer, whose output is the program's."""
    weight, bias = layer.weight.double(), layer.bias.double()
    folded = _norm(norm)
    if folded is not None:
        scale, shift = folded
        bias, weight = bias + weight @ shift.double(), weight * scale.double()
    target = program.vector(layer.out_features)
    program.convolve("embedding.weight", weight.float(), source, target, After(bias.float()))
    program.step("store", target.count, target, target)


class _ECAPA:
    """ECAPA-TDNN's program, built part by part; outputs of all blocks lie side by side, as the MFA reads them."""

    def __init__(self, network: ECAPA) -> None:
        self.program = program = Program(network.mel_bins, network.embedding_dim)
        blocks = [block for block in network.blocks if isinstance(block, SERes2Block)]
        units = [network.first, *(unit for block in blocks for unit in block.res2.units)]
        reach = max(_width(unit) for unit in units)
        line = program.level(Shape(1, 0, (0, reach)))
        program.layout.least_frames = max(2, 1 + max(_width(unit) if _mirrored(unit) else 0 for unit in units))

        channels, wide = network.first.conv.out_channels, network.mfa.out_channels
        outputs = program.area(line, len(blocks) * channels)
        self.work = program.area(line, max(3 * channels, 2 * wide))
        narrow = max(2 * channels // block.res2.scale for block in blocks)
        self.narrow = program.area(line, max(narrow, network.pooling.hidden.out_features))

        filterbank = program.area(line, network.mel_bins)
        program.step("load", filterbank.count, filterbank, filterbank)
        x = self.work.part(0, channels)
        self._unit("first", network.first, filterbank, x)
        for index, block in enumerate(blocks):
            x = self._block(f"blocks.{index}", block, x, outputs.part(index * channels, channels))
        frames = self.work.part(0, wide)
        after = After(network.mfa.bias, inner="relu", norm=_norm(network.mfa_norm))
        program.convolve("mfa.weight", network.mfa.weight, outputs, frames, after)
        _embed(program, network.embedding, network.norm, self._pool(network.pooling, frames))

    def _unit(
        self,
        name: str,
        unit: nn.Module,
        source: Area,
        target: Area,
        more: Area | None = None,
        onward: Area | None = None,
    ) -> None:
        assert isinstance(unit, ConvUnit)
        if _mirrored(unit):
            self.program.step("mirror", source.count, source, source, first=float(_width(unit)))
        after = After(unit.conv.bias, inner="relu", norm=_norm(unit.norm), more=more, onward=onward)
        dilation = (1, unit.conv.dilation[1])
        self.program.convolve(f"{name}.conv.weight", unit.conv.weight, source, target, after, dilation=dilation)

    def _block(self, name: str, block: SERes2Block, x: Area, out: Area) -> Area:
        program, count = self.program, x.count
        y, z = self.work.part(count, count), self.work.part(2 * count, count)
        self._unit(f"{name}.enter", block.enter, x, y)
        self._res2(f"{name}.res2", block.res2, y)
        self._unit(f"{name}.leave", block.leave, y, z)
        squeeze, expand = block.excitation.squeeze, block.excitation.expand
        means, squeezed, gains = (program.vector(size) for size in (count, squeeze.out_features, count))
        program.step("means", count, z, means)
        name = f"{name}.excitation"
        program.convolve(f"{name}.squeeze.weight", squeeze.weight, means, squeezed, After(squeeze.bias, inner="relu"))
        program.convolve(f"{name}.expand.weight", expand.weight, squeezed, gains, After(expand.bias, inner="sigmoid"))
        program.step("excite", count, z, out, After(add=x, bias_of=gains))
        return out

    def _res2(self, name: str, res2: Res2Conv, y: Area) -> None:
        """In place on y: each unit reads a sum that the one before it left in one of two narrow areas."""
        width = y.count // res2.scale
        chunks = [y.part(index * width, width) for index in range(res2.scale)]
        chunks.pop(0 if res2.identity_first else -1)
        sums = [self.narrow.part(index * width, width) for index in (0, 1)]
        self.program.step("copy", width, chunks[0], sums[0])
        for index, (unit, chunk) in enumerate(zip(res2.units, chunks, strict=True)):
            last = index + 1 == len(chunks)
            onward = (None, None) if last else (chunks[index + 1], sums[1])
            self._unit(f"{name}.units.{index}", unit, sums[0], chunk, *onward)
            sums.reverse()

    def _pool(self, pooling: AttentiveStatisticsPooling, frames: Area) -> Area:
        program, wide = self.program, frames.count
        name, weight, narrow = "pooling.hidden.weight", pooling.hidden.weight, pooling.hidden.out_features
        context, constant, pooled = (program.vector(size) for size in (2 * wide, narrow, 2 * wide))
        floor = pooling.variance_floor
        program.step("statistics", wide, frames, context, first=float(pooling.context_correction), second=floor)
        program.convolve(f"{name}[context]", weight[:, wide:], context, constant, After(pooling.hidden.bias))
        hidden, scores = self.narrow.part(0, narrow), self.work.part(wide, wide)
        after = After(bias_of=constant, inner="tanh")
        if pooling.norm is not None:
            after = After(bias_of=constant, inner="relu", outer="tanh", norm=_norm(pooling.norm))
        program.convolve(f"{name}[frames]", weight[:, :wide], frames, hidden, after)
        program.convolve("pooling.score.weight", pooling.score.weight, hidden, scores, After(pooling.score.bias))
        program.step("attend", wide, frames, pooled, After(add=scores), second=floor)
        return pooled


def _width(unit: nn.Module) -> int:
    """Columns that a unit reads beyond an end."""
    assert isinstance(unit, ConvUnit)
    return unit.conv.dilation[1] * (unit.conv.kernel_size[1] // 2)


def _mirrored(unit: nn.Module) -> bool:
    """Whether a unit's input continues by its mirror image beyond its ends."""
    assert isinstance(unit, ConvUnit)
    return unit.conv.padding_mode == "reflect"


def _resnet(network: ResNet34) -> Program:
    program = Program(network.mel_bins, network.embedding_dim)
    stages = [[block for block in stage.children() if isinstance(block, BasicBlock)] for stage in network.stages]
    levels, bins = [], network.mel_bins
    for halvings in range(len(stages)):
        levels.append(program.level(Shape(bins, halvings, (1, 1))))
        bins = -(-bins // 2)
    program.layout.least_frames = 2 ** (len(stages) - 1) + 1
    image = program.area(levels[0], 1)
    program.step("load", 1, image, image)
    x = program.area(levels[0], network.conv.out_channels)
    weight, bias = _scaled(network.conv, network.norm)
    program.convolve("conv.weight", weight, image, x, After(bias, inner="relu"))
    for number, stage in enumerate(stages):
        y = program.area(levels[number], stage[0].conv1.out_channels)
        for index, block in enumerate(stage):
            x = _basic_block(program, f"stages.{number}.{index}", block, x, y)
    pooled = program.vector(2 * x.count * program.layout.shapes[x.level].rows)
    program.step("statistics", x.count, x, pooled, first=1.0, second=network.pooling.variance_floor)
    _embed(program, network.embedding, network.statistics_norm, pooled)
    return program


def _basic_block(program: Program, name: str, block: BasicBlock, x: Area, y: Area) -> Area:
    """Its output takes the place of its input, or, where the shape changes, of what the shortcut makes of it."""
    out, phases = x, None
    if len(block.shortcut):
        if block.conv1.stride[0] == 2:
            phases = program.area(y.level, 4 * x.count)
            program.step("phases", x.count, x, phases)
        out = program.area(y.level, y.count)
        weight, bias = _scaled(block.shortcut[0], block.shortcut[1])
        program.convolve(f"{name}.shortcut.0.weight", weight, x, out, After(bias), phases=phases)
    weight, bias = _scaled(block.conv1, block.norm1)
    program.convolve(f"{name}.conv1.weight", weight, x, y, After(bias, inner="relu"), phases=phases)
    weight, bias = _scaled(block.conv2, block.norm2)
    program.convolve(f"{name}.conv2.weight", weight, y, out, After(bias, add=out, outer="relu"), product=y)
    return out
