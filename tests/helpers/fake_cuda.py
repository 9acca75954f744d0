"""A CUDA device on a machine without a GPU, on which every wait of the host is recorded.

Tensors on a CPU are ordinary. Tensors on ``cuda`` are torch's fake tensors: operations on them run
the real code down to the kernels, of which only shapes, types and devices are computed. `Device`
sees each operation and

- records where the host reads from the device (``item``, ``tolist``, ``bool(tensor)``,
  ``torch.equal``, copies to the host) or waits for a copy to it (one that is not ``non_blocking``),
- raises where the shape of a result depends on values (``nonzero``, ``unique``, an index of
  booleans), or where tensors of two devices meet. A 0-dim CPU tensor beside CUDA tensors is allowed:
  torch passes its value to the kernel.

torch without CUDA has no guard of the device, which autograd needs. `load_guard` compiles one that
does nothing. It is there for the whole process, starts a thread of autograd, and forbids forks that
train. Hence tests that need it run in a process of their own: `on_fake_cuda` sends them there.
"""

import ctypes
import functools
import importlib
import os
import shlex
import shutil
import subprocess
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import sv_sparse

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_GUARD = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using c10::Device, c10::DeviceType, c10::Stream;
struct Guard : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {  // of one device with one stream
  Device exchangeDevice(Device) const override { return getDevice(); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, getDevice()); }
  Stream exchangeStream(Stream) const noexcept override { return getStream(getDevice()); }
};
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, Guard) }
struct Hooks : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }  // or autograd finds no accelerator whose stream to ask for
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
// torch made its own when it was imported; these take their place in memory
const auto hooks = new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks;
"""
_plain_to = nn.Module.to
_plain_load = torch.load
_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.allclose}
_SHAPED_BY_VALUES = {
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_consecutive,
    _aten.unique_dim,
    _aten._unique,
    _aten._unique2,
    _aten.bincount,
    _aten.repeat_interleave,
}
_COPIES = {_aten._to_copy, _aten.copy_, _aten.copy}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}
# These work in place, and torch has no fake kernels for them.
_WITHOUT_SHAPES = {_aten._fused_sgd_.default, _aten._fused_sgd_.tensor_lr, _aten._fused_adam_.tensor_lr}
_ONE_DEVICE = {_aten.cat, _aten.stack, *_INDEXES}  # these take no CPU scalars either
_ROOT, _TORCH = (Path(package.__file__ or "").parent for package in (sv_sparse, torch))


class WaitsError(AssertionError):
    """The host waits for the device where it must not, or two devices meet in an operation."""


def load_guard() -> None:
    """Give this process a guard of CUDA devices that does nothing.

    Raises:
        OSError: there is no C++ compiler.
    """
    if torch.cuda.is_available():
        return
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        raise OSError(f"{compiler[0]} is not there")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(_GUARD)
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{_TORCH}/include", f"-L{_TORCH}/lib"]
        libraries = ["-ltorch_cpu", "-lc10"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(library), *libraries], check=True)
        ctypes.CDLL(str(library))


class Device(TorchDispatchMode):
    """Inside, ``cuda`` is a device of fake tensors.

    Attributes:
        waits: Each wait of the host so far, as ``file:line function: reason``.
        value: What the host reads, whatever it reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fakes = FakeTensorMode()
        self.waits: list[str] = []
        self.value = 1
        self._stack = ExitStack()

    def __enter__(self) -> "Device":
        self._stack.enter_context(self.fakes)
        replaced: tuple[tuple[Any, str, Any], ...] = (
            (nn.Module, "to", functools.partialmethod(_move_module, self)),
            (FakeTensor, "tolist", functools.partialmethod(_as_list, self)),
            (FakeTensor, "__deepcopy__", _copied),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch, "load", _load),
        )
        for owner, name, function in replaced:
            self._stack.enter_context(mock.patch.object(owner, name, function))
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        to_cuda = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if not to_cuda and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        packet = function.overloadpacket
        if packet in _READS:
            self.record(f"reads by {packet}")
            return self.values(tensors[0]) if packet is _aten._local_scalar_dense else bool(self.value)
        if packet in _COPIES:
            return self._copy(function, args, kwargs)
        self._check(packet, args, tensors)
        if function in _WITHOUT_SHAPES:
            return None
        args, kwargs = tree_map(self.as_fake, (args, kwargs))
        return function(*args, **kwargs)

    def _copy(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A copy from device to device, or on one."""
        in_place = function.overloadpacket is not _aten._to_copy
        target, source = args[:2] if in_place else (None, args[0])
        goal = torch.device(kwargs.get("device") or source.device) if target is None else target.device
        if goal.type == source.device.type:
            return function(*args, **kwargs)
        non_blocking = args[2] if in_place and len(args) > 2 else kwargs.get("non_blocking", False)
        if goal.type == "cpu":
            self.record("copies to the host")
            return self._stand_in(source) if target is None else target
        if not non_blocking:
            self.record("waits for a copy to the device, which is not non_blocking")
        args, kwargs = tree_map(self.as_fake, (args, kwargs))
        return function(*args, **kwargs)

    def _check(self, packet: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """Refuse what cannot go on without waiting.

        Raises:
            WaitsError: the operation waits, or mixes devices.
        """
        if packet in _SHAPED_BY_VALUES:
            raise WaitsError(f"{_place()}: waits, the shape of {packet} depends on values")
        if packet in _INDEXES:
            masks = [index for index in args[1] if index is not None and index.dtype in {torch.bool, torch.uint8}]
            filled = len(args) > 2 and args[2].numel() == 1 and args[2].device == _CPU  # this is masked_fill
            if masks and not filled:
                raise WaitsError(f"{_place()}: waits, {packet} is by booleans")
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        if any(tensor.ndim > 0 or (packet in _ONE_DEVICE and tensor is not args[-1]) for tensor in on_cpu):
            shapes = [tuple(tensor.shape) for tensor in on_cpu]
            raise WaitsError(f"{_place()}: {packet} has tensors of cuda and of cpu, the latter of shapes {shapes}")

    def record(self, reason: str) -> None:
        """The host waits."""
        self.waits.append(f"{_place()}: {reason}")

    def values(self, tensor: Tensor) -> Any:
        """Numbers in place of what is read from the device."""
        with unset_fake_temporarily():
            return self._stand_in(tensor).tolist()

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """A tensor on the CPU in place of what is read from the device."""
        with unset_fake_temporarily():
            return torch.full(tensor.shape, self.value, dtype=tensor.dtype)

    def as_fake(self, value: Any) -> Any:
        """A tensor of the CPU as a fake tensor there; anything else as it is."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return self._fake(value, _CPU)

    def _fake(self, tensor: Tensor, device: torch.device) -> Tensor:
        with unset_fake_temporarily():
            shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.fakes, shape, device)

    def empty(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor on the device, of the shape and strides of another."""
        fake = self._fake(tensor.detach(), CUDA)
        return fake if dtype is None or not fake.is_floating_point() else fake.to(dtype)

    @contextmanager
    def waiting(self) -> Iterator[list[str]]:
        """Inside, the host may wait: constructors read settings, ends of runs read results."""
        before, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            self.waits = before

    @contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Inside, the host must not wait.

        Raises:
            WaitsError: it does; names each place.
        """
        with self.waiting() as waits:
            yield
        if waits:
            raise WaitsError("\n".join(waits))


def _place() -> str:
    """The innermost frame of this project's code, outside of this file."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)]
    ours = own or [frame for frame in frames if not Path(frame.filename).is_relative_to(_TORCH)]
    frame = ours[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(_ROOT.parent) if own else path}:{frame.lineno} {frame.name}"


def _as_list(tensor: FakeTensor, device: Device) -> Any:
    """Read all values at once, as ``tolist`` does."""
    device.record("reads by tolist")
    return device.values(tensor)


def _load(*args: Any, **kwargs: Any) -> Any:
    """Load values from a file: inside, ``torch.load`` itself returns tensors without any."""
    with unset_fake_temporarily():
        return _plain_load(*args, **kwargs)


def _copied(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """Copy for ``copy.deepcopy``, which would copy the mode of the fake tensor as well."""
    return memo.setdefault(id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad))


def _move_module(module: nn.Module, device: Device, *args: Any, **kwargs: Any) -> nn.Module:
    """``module.to``, which leaves parameters the objects that they are, as torch does otherwise."""
    goal, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    if goal is None or goal.type == "cpu":
        return _plain_to(module, *args, **kwargs)
    assert memory_format is None
    if not non_blocking:
        device.record("waits for a copy to the device, which is not non_blocking")
    for child in module.modules():
        for name, param in child._parameters.items():
            if param is None:
                continue
            assert param.grad is None
            moved = device.empty(param, dtype).requires_grad_(param.requires_grad)
            moved._is_param = True  # this is what nn.Parameter sets on tensors of other classes
            torch.utils.swap_tensors(param, moved)
            assert child._parameters[name] is param
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = device.empty(buffer, dtype)
    return module


def _run(module: str, name: str, arguments: dict[str, Any]) -> None:
    warnings.simplefilter("error")
    getattr(importlib.import_module(module), name).here(**arguments)


class _Processes:
    """The process with the guard, which the first test starts."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, *arguments: Any) -> None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=load_guard)
        self._pool.submit(_run, *arguments).result()

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


_processes = _Processes()


@pytest.fixture(scope="module")
def fake_cuda_process() -> Iterator[None]:
    """The process of the fake device, for the tests of a module."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not there, which compiles the guard of the fake device")
    yield
    _processes.close()


def on_fake_cuda(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test run in the process of the fake device; its arguments must be picklable."""

    @pytest.mark.usefixtures("fake_cuda_process")
    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        _processes(test.__module__, test.__name__, arguments)

    run.here = test  # type: ignore[attr-defined]  # found there by the other process
    return run
