"""Modules of the models, computed by CPU kernels while they train."""

from typing import Any, cast

from torch import Tensor, nn

from sv_sparse.models.cpu_kernels import bindings, ops
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.layers import ConvReluNorm, Res2Conv, SERes2Block, SqueezeExcitation
from sv_sparse.models.module_checks import is_ordinary, is_untouched
from sv_sparse.models.pooling import AttentiveStatisticsPooling, statistics


class FusedConvUnit(ConvReluNorm):
    """``ConvReluNorm`` whose bias, ReLU and batch norm are one kernel in training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, 1, T] to [B, C_out, 1, T]."""
        if ops.can_fuse(self, x, [self.conv], [self.norm]):
            return ops.normalized_relu(ops.convolve(x, self.conv), self.conv.bias, self.norm)
        return super().forward(x)


class FusedRes2Conv(Res2Conv):
    """``Res2Conv`` whose units are kernels that write into the output's chunks, in training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C, 1, T]."""
        units: list[Any] = list(self.convs)
        if all(is_untouched(unit, FusedConvUnit) for unit in units):
            convs = [unit.conv for unit in units]
            norms = [unit.norm for unit in units]
            pads_zeros = all(conv.padding_mode == "zeros" for conv in convs)
            if pads_zeros and ops.can_fuse(self, x, convs, norms):
                return ops.res2(x, convs, norms, identity_first=self.identity_first)
        return super().forward(x)


class FusedSERes2Block(SERes2Block):
    """``SERes2Block`` whose last unit, squeeze-excitation and sum are one kernel in training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C, 1, T]."""
        y = self.res2(self.conv_in(x))
        unit, excitation = self.conv_out, self.se
        if (
            is_untouched(unit, FusedConvUnit)
            and is_untouched(excitation, SqueezeExcitation)
            and ops.can_fuse(self, y, [unit.conv], [unit.norm], [excitation.squeeze, excitation.expand])
            and is_ordinary(x)
            # The sum is written in this type.
            and x.dtype == ops.compute_dtype(y)
        ):
            return ops.normalized_relu(ops.convolve(y, unit.conv), unit.conv.bias, unit.norm, excitation, x)
        return self.add_scaled(x, unit(y))


class FusedPooling(AttentiveStatisticsPooling):
    """``AttentiveStatisticsPooling`` whose softmax and moments are one kernel in training on a CPU."""

    def _statistics(self, frames: Tensor, scores: Tensor | None, *, correction: int) -> Tensor:
        moments = ops.FusedMoments if ops.can_fuse(self, frames.transpose(1, 2)) else None
        return statistics(frames, scores, correction=correction, variance_floor=self.variance_floor, moments=moments)


class FusedECAPA(ECAPA):
    """``ECAPA`` whose aggregation has its bias and ReLU in one kernel in training on a CPU."""

    def _aggregate(self, x: Tensor) -> Tensor:
        if ops.can_fuse(self, x, [self.mfa]):
            return ops.relu(ops.convolve(x, self.mfa), self.mfa.bias)
        return super()._aggregate(x)


FUSED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    ConvReluNorm: FusedConvUnit,
    Res2Conv: FusedRes2Conv,
    SERes2Block: FusedSERes2Block,
    AttentiveStatisticsPooling: FusedPooling,
    ECAPA: FusedECAPA,
}


def accelerate(model: nn.Module, enabled: bool | str = "auto") -> nn.Module:
    """Let the CPU kernels compute a model's modules in training, in place.

    Each module of a class of ``FUSED_CLASSES`` gets its subclass there, as ``torch.nn.utils.parametrize`` does it.
    Parameters, buffers, names and hooks stay the objects that they are, so optimizers, state dicts and copies stay
    valid. Subclasses and parametrized modules are left alone. A module that gets a hook, or is replaced or frozen
    later, is computed by torch's operations from then on, and so is everything in evaluation, on a GPU, under
    torch.compile and in torch.func's transforms. Numbers differ from torch's by rounding.

    Args:
        model: any module, on the CPU or not.
        enabled: ``"auto"``: if g++ can compile the kernels, else a UserWarning says what that costs; True: or an error;
            False: leave the model as it is.

    Returns:
        The model.

    Raises:
        OSError: ``enabled`` is True, and the kernels cannot be compiled; says how to do without.

    >>> model = accelerate(ECAPA(channels=16, mfa_channels=24), enabled=False)
    >>> type(model.stem).__name__
    'ConvReluNorm'
    """
    modules = [module for module in model.modules() if type(module) in FUSED_CLASSES]
    if enabled is False or not modules:
        return model
    if enabled is True:
        bindings.library()
    elif not bindings.available():
        return model
    for module in modules:
        cast(Any, module).__class__ = FUSED_CLASSES[type(module)]
    return model
