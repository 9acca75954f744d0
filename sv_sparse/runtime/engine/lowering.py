"""Lowering of networks to programs for the sparse kernels."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.layers import ConvReluNorm, Res2Conv, SERes2Block
from sv_sparse.models.pooling import AttentiveStatisticsPooling
from sv_sparse.models.resnet import BasicBlock, ResNet34
from sv_sparse.runtime.engine.program import BufferView, Epilogue, NoProgramError, Program, Resolution


@torch.no_grad()
def lower(network: nn.Module) -> Program:
    """Return the program of a folded network: filterbank [F, T] to embedding [E].

    Raises:
        NoProgramError: There is no program for its class, or it is too wide for the kernels.
    """
    # Not isinstance: a subclass may compute something else.
    if type(network) is ECAPA:
        return _ECAPALowering(network).program
    if type(network) is ResNet34:
        return _lower_resnet(network)
    raise NoProgramError(f"the sparse kernels have no program for {type(network).__name__}, only for ECAPA, ResNet34")


def _scale_and_shift(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a folded batch norm; None where there is no norm."""
    if norm is None or isinstance(norm, nn.Identity):
        return None
    assert isinstance(norm, _BatchNorm)
    return norm.weight, norm.bias


def _scaled_conv(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution without bias and the folded norm behind it."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    weight = conv.weight.double() * norm.weight.double()[:, None, None, None]
    return weight.float(), norm.bias


def _add_embedding(program: Program, layer: nn.Linear, norm: nn.Module, source: BufferView) -> None:
    """Add the last linear layer, with the folded norm before it, and the step that stores the embedding."""
    weight = layer.weight.double()
    bias = layer.bias.double()
    folded_norm = _scale_and_shift(norm)
    if folded_norm is not None:
        scale, shift = folded_norm
        bias = bias + weight @ shift.double()
        weight = weight * scale.double()
    target = program.new_vector(layer.out_features)
    program.add_convolution("embedding.weight", weight.float(), source, target, Epilogue(bias.float()))
    program.add_step("store", target, target)


class _ECAPALowering:
    """Lowering of ECAPA-TDNN; the outputs of all blocks lie side by side, as the feature aggregation reads them."""

    def __init__(self, network: ECAPA) -> None:
        self.program = program = Program(network.mel_bins, network.embedding_dim)
        blocks = [block for block in network.blocks if isinstance(block, SERes2Block)]
        units: list[nn.Module] = [network.stem]
        for block in blocks:
            units.extend(block.res2.convs)
        halo = max(_halo(unit) for unit in units)
        frames = program.add_resolution(Resolution(1, 0, (0, halo)))
        for unit in units:
            # As many frames must have a mirror image.
            if _is_reflect_padded(unit):
                program.layout.min_frames = max(program.layout.min_frames, 1 + _halo(unit))

        channels = network.stem.conv.out_channels
        mfa_channels = network.mfa.out_channels
        outputs = program.new_planes(frames, len(blocks) * channels)
        # Two buffers that all blocks share: the input and two intermediate results, and sums of the Res2Net parts.
        self.work = program.new_planes(frames, max(3 * channels, 2 * mfa_channels))
        res2_planes = max(2 * channels // block.res2.scale for block in blocks)
        self.narrow = program.new_planes(frames, max(res2_planes, network.pooling.linear1.out_features))

        filterbank = program.new_planes(frames, network.mel_bins)
        program.add_step("load", filterbank, filterbank)
        x = self.work.part(0, channels)
        self._add_unit("stem", network.stem, filterbank, x)
        for index, block in enumerate(blocks):
            output = outputs.part(index * channels, channels)
            self._add_block(f"blocks.{index}", block, x, output)
            x = output
        aggregated = self.work.part(0, mfa_channels)
        epilogue = Epilogue(network.mfa.bias, pre_activation="relu", norm=_scale_and_shift(network.mfa_norm))
        program.add_convolution("mfa.weight", network.mfa.weight, outputs, aggregated, epilogue)
        pooled = self._add_pooling(network.pooling, aggregated)
        _add_embedding(program, network.embedding, network.norm, pooled)

    def _add_unit(
        self,
        name: str,
        unit: nn.Module,
        source: BufferView,
        target: BufferView,
        add_to_next: BufferView | None = None,
        next_input: BufferView | None = None,
    ) -> None:
        assert isinstance(unit, ConvReluNorm)
        if _is_reflect_padded(unit):
            self.program.add_step("mirror", source, source, mirror_width=_halo(unit))
        epilogue = Epilogue(
            unit.conv.bias,
            pre_activation="relu",
            norm=_scale_and_shift(unit.norm),
            add_to_next=add_to_next,
            next_input=next_input,
        )
        dilation = (1, unit.conv.dilation[1])
        self.program.add_convolution(
            f"{name}.conv.weight", unit.conv.weight, source, target, epilogue, dilation=dilation
        )

    def _add_block(self, name: str, block: SERes2Block, x: BufferView, output: BufferView) -> None:
        program = self.program
        channels = x.count
        y = self.work.part(channels, channels)
        z = self.work.part(2 * channels, channels)
        self._add_unit(f"{name}.conv_in", block.conv_in, x, y)
        self._add_res2(f"{name}.res2", block.res2, y)
        self._add_unit(f"{name}.conv_out", block.conv_out, y, z)
        squeeze = block.se.squeeze
        expand = block.se.expand
        means = program.new_vector(channels)
        squeezed = program.new_vector(squeeze.out_features)
        gains = program.new_vector(channels)
        program.add_step("means", z, means)
        name = f"{name}.se"
        epilogue = Epilogue(squeeze.bias, pre_activation="relu")
        program.add_convolution(f"{name}.squeeze.weight", squeeze.weight, means, squeezed, epilogue)
        epilogue = Epilogue(expand.bias, pre_activation="sigmoid")
        program.add_convolution(f"{name}.expand.weight", expand.weight, squeezed, gains, epilogue)
        program.add_step("excite", z, output, Epilogue(add=x, dynamic_bias=gains))

    def _add_res2(self, name: str, res2: Res2Conv, y: BufferView) -> None:
        """Add the Res2Net convolution in place on y: each unit reads a sum that the unit before it has written."""
        width = y.count // res2.scale
        chunks = [y.part(index * width, width) for index in range(res2.scale)]
        chunks.pop(0 if res2.identity_first else -1)
        # Two places for sums: one is read while the next one is written.
        unit_input = self.narrow.part(0, width)
        next_input = self.narrow.part(width, width)
        self.program.add_step("copy", chunks[0], unit_input)
        for index, (unit, chunk) in enumerate(zip(res2.convs, chunks, strict=True)):
            unit_name = f"{name}.convs.{index}"
            if index + 1 < len(chunks):
                self._add_unit(unit_name, unit, unit_input, chunk, chunks[index + 1], next_input)
            else:
                self._add_unit(unit_name, unit, unit_input, chunk)
            unit_input, next_input = next_input, unit_input

    def _add_pooling(self, pooling: AttentiveStatisticsPooling, frames: BufferView) -> BufferView:
        program = self.program
        channels = frames.count
        name = "pooling.linear1.weight"
        weight = pooling.linear1.weight
        hidden_channels = pooling.linear1.out_features
        floor = pooling.variance_floor
        context = program.new_vector(2 * channels)
        context_bias = program.new_vector(hidden_channels)
        pooled = program.new_vector(2 * channels)
        correction = float(pooling.context_correction)
        program.add_step("statistics", frames, context, rows=channels, correction=correction, min_variance=floor)
        # The context is the same in all frames, so its two thirds of the weight are multiplied once.
        program.add_convolution(
            f"{name}[context]", weight[:, channels:], context, context_bias, Epilogue(pooling.linear1.bias)
        )
        hidden = self.narrow.part(0, hidden_channels)
        scores = self.work.part(channels, channels)
        if pooling.norm is None:
            epilogue = Epilogue(dynamic_bias=context_bias, pre_activation="tanh")
        else:
            norm = _scale_and_shift(pooling.norm)
            epilogue = Epilogue(dynamic_bias=context_bias, pre_activation="relu", norm=norm, post_activation="tanh")
        program.add_convolution(f"{name}[frames]", weight[:, :channels], frames, hidden, epilogue)
        epilogue = Epilogue(pooling.linear2.bias)
        program.add_convolution("pooling.linear2.weight", pooling.linear2.weight, hidden, scores, epilogue)
        program.add_step("attend", frames, pooled, Epilogue(add=scores), rows=channels, min_variance=floor)
        return pooled


def _halo(unit: nn.Module) -> int:
    """Return the columns that a unit reads beyond an end."""
    assert isinstance(unit, ConvReluNorm)
    return unit.conv.dilation[1] * (unit.conv.kernel_size[1] // 2)


def _is_reflect_padded(unit: nn.Module) -> bool:
    assert isinstance(unit, ConvReluNorm)
    return unit.conv.padding_mode == "reflect"


def _lower_resnet(network: ResNet34) -> Program:
    program = Program(network.mel_bins, network.embedding_dim)
    resolutions = []
    bins = network.mel_bins
    for num_downsamplings in range(len(network.stages)):
        resolutions.append(program.add_resolution(Resolution(bins, num_downsamplings, (1, 1))))
        bins = -(-bins // 2)
    # The last stage must have two columns, or there is no standard deviation.
    program.layout.min_frames = 2 ** (len(network.stages) - 1) + 1
    image = program.new_planes(resolutions[0], 1)
    program.add_step("load", image, image)
    x = program.new_planes(resolutions[0], network.conv.out_channels)
    weight, bias = _scaled_conv(network.conv, network.norm)
    program.add_convolution("conv.weight", weight, image, x, Epilogue(bias, pre_activation="relu"))
    for stage_index, stage in enumerate(network.stages):
        blocks = [block for block in stage.children() if isinstance(block, BasicBlock)]
        y = program.new_planes(resolutions[stage_index], blocks[0].conv1.out_channels)
        for index, block in enumerate(blocks):
            x = _add_basic_block(program, f"stages.{stage_index}.{index}", block, x, y)
    pooled = program.new_vector(2 * x.count * program.layout.resolutions[x.resolution].rows)
    floor = network.pooling.variance_floor
    program.add_step("statistics", x, pooled, rows=x.count, correction=1.0, min_variance=floor)
    _add_embedding(program, network.embedding, network.statistics_norm, pooled)
    return program


def _add_basic_block(program: Program, name: str, block: BasicBlock, x: BufferView, y: BufferView) -> BufferView:
    """Add a block; its output replaces its input or, where the shape changes, the output of the shortcut."""
    output = x
    phases = None
    if len(block.shortcut):
        if block.conv1.stride[0] == 2:
            phases = program.new_planes(y.resolution, 4 * x.count)
            program.add_step("phases", x, phases, rows=x.count)
        output = program.new_planes(y.resolution, y.count)
        weight, bias = _scaled_conv(block.shortcut[0], block.shortcut[1])
        program.add_convolution(f"{name}.shortcut.0.weight", weight, x, output, Epilogue(bias), phases=phases)
    weight, bias = _scaled_conv(block.conv1, block.norm1)
    program.add_convolution(f"{name}.conv1.weight", weight, x, y, Epilogue(bias, pre_activation="relu"), phases=phases)
    weight, bias = _scaled_conv(block.conv2, block.norm2)
    epilogue = Epilogue(bias, add=output, post_activation="relu")
    # The output holds what is added, so a dense product waits in y, which is no longer needed.
    program.add_convolution(f"{name}.conv2.weight", weight, y, output, epilogue, product=y)
    return output
