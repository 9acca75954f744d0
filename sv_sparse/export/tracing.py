"""Tracing of networks: the operations of a forward pass, with sizes that depend on the number of frames.

A network runs on utterances of several lengths, of which only shapes are computed, while its operations are recorded.
Those that do not depend on the utterance are computed: they are constants. Numbers that differ between the lengths are
known by their values at each (`Samples`), which is enough to tell what formula they follow.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Of the utterances. They have all remainders by 8, which tells divisors apart. Most are longer than two segments of
# CAM++; the last one is longer than any number that a network may compare its frames with.
FRAMES = (150, 257, 402, 611, 700, 805, 1008, 20015)
# A number at each of FRAMES.
Samples = NDArray[Any]
Size = int | Samples
_COPIES = {"aten.clone.default", "aten._to_copy.default", "aten.alias.default", "aten.detach.default"}
_NAMES = {"aten._unsafe_view.default": "aten.view.default"}
_OWN_FOLDER = str(Path(__file__).parent)
_TORCH_FOLDER = str(Path(torch.__file__).parent)


class TracingError(ValueError):
    """Error for a network whose operations cannot be listed."""


@dataclass(eq=False)
class Node:
    """One result of an operation: a tensor that depends on the utterance.

    An argument is a node, a constant tensor, a number, samples of a number, or a list of these.
    """

    op: str
    args: list[Any]
    kwargs: dict[str, Any]
    # Place in the code of the network's author.
    place: str
    # Which of the results of the operation.
    index: int
    shape: list[Size]


@dataclass
class _Call:
    name: str
    func: Any
    args: Any
    kwargs: Any
    place: str
    results: list[Any]
    # Some result depends on the utterance.
    is_dependent: bool


@dataclass(frozen=True)
class _Result:
    """Reference to a result of a call; call -1 is the utterance."""

    call: int
    index: int


class _Recorder(TorchDispatchMode):
    """Records all operations of a forward pass."""

    def __init__(self, utterance: Tensor, constants: Mapping[int, Tensor]) -> None:
        super().__init__()
        # Weights and buffers by the identity of those that have shapes only.
        self._constants = constants
        self.calls: list[_Call] = []
        # By the identity of tensors; constants that were copied stand for themselves.
        self._results: dict[int, Any] = {id(utterance): _Result(-1, 0)}
        self._copies = [utterance]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            # Questions, such as on which device a tensor is.
            return func(*args, **kwargs)
        place = _place()
        try:
            output = func(*args, **kwargs)
        except RuntimeError as error:
            raise TracingError(f"{place}: {func} cannot be listed: {str(error).splitlines()[0]}") from error
        name = _NAMES.get(str(func), str(func))
        if name in _COPIES and isinstance(args[0], Tensor) and args[0].dtype == output.dtype:
            # Whether a copy is made may depend on a size.
            self._results[id(output)] = self._reference(args[0])
            self._copies.append(output)
            return output
        args, kwargs = tree_map(self._reference, (args, kwargs))
        references = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, _Result)]
        is_dependent = any(reference.call < 0 or self.calls[reference.call].is_dependent for reference in references)
        results = list(output) if isinstance(output, (tuple, list)) else [output]
        for index, result in enumerate(results):
            # Not None or a number, of which there is one for all.
            if isinstance(result, Tensor):
                self._results[id(result)] = _Result(len(self.calls), index)
        # The call holds the tensors, so that no other one gets their identity.
        self.calls.append(_Call(name, func, args, kwargs, place, results, is_dependent))
        return output

    def _reference(self, leaf: Any) -> Any:
        return self._results.get(id(leaf), leaf)

    def result(self, tensor: Tensor) -> _Result:
        """Return the reference to a tensor."""
        return self._results[id(tensor)]

    def constant(self, result: _Result) -> Tensor:
        """Compute a result that does not depend on the utterance."""
        call = self.calls[result.call]
        args, kwargs = tree_map(self._value, (call.args, call.kwargs))
        output = call.func(*args, **kwargs)
        return output[result.index] if isinstance(output, (tuple, list)) else output

    def _value(self, leaf: Any) -> Any:
        if isinstance(leaf, _Result):
            return self.constant(leaf)
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return self.with_values(leaf)

    def with_values(self, leaf: Any) -> Any:
        """Return the weight or buffer that something with its shape only stands for; anything else as it is."""
        leaf = self._constants.get(id(leaf), leaf)
        if isinstance(leaf, Tensor) and leaf.is_meta:
            raise TracingError("it makes a tensor from numbers in its forward pass: make that a buffer")
        return leaf


def _equal_tensors(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, 0, 0, equal_nan=True)


def _place() -> str:
    """Return the file and line of the network's own code that is running."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_TORCH_FOLDER) and not path.startswith(_OWN_FOLDER) and not path.startswith("<"):
            return f"{path}, line {frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"


@dataclass(frozen=True)
class Trace:
    """Operations of a network."""

    source: Node
    # In the order in which they are computed.
    nodes: list[Node]
    output: Node
    # Copy of the network that computes shapes only.
    shapes: nn.Module

    def least_frames(self, start: int) -> int:
        """Return the least number of frames, from ``start`` on, that the network itself accepts."""
        mel_bins = int(self.source.shape[1])
        for frames in range(start, FRAMES[0]):
            try:
                with torch.device("meta"), torch.no_grad():
                    self.shapes(torch.empty(1, mel_bins, frames))
            # A network may refuse short utterances in any way.
            except Exception:  # noqa: BLE001
                continue
            return frames
        return FRAMES[0]


@torch.no_grad()
def trace(network: nn.Module, mel_bins: int) -> Trace:
    """Return the operations of a network in evaluation mode.

    Args:
        network: From filterbank [1, F, T] to embedding [1, E], float32 on the CPU.
        mel_bins: F.

    Raises:
        TracingError: The operations depend on the utterance or its length, or the output is not one embedding.
    """
    recorders = []
    outputs = []
    shapes, constants = _without_values(network)
    for frames in FRAMES:
        with torch.device("meta"):
            utterance = torch.empty(1, mel_bins, frames)
            recorder = _Recorder(utterance, constants)
            with recorder:
                output = _run(shapes, utterance)
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
            raise TracingError("a network must map a filterbank [1, F, T] to one embedding [1, E]")
        recorders.append(recorder)
        outputs.append(recorder.result(output))
    source, nodes, node = _Merge(recorders).nodes(mel_bins, outputs[0])
    if node is None:
        raise TracingError("its embedding does not depend on the utterance")
    return Trace(source, nodes, node, shapes)


def _run(network: nn.Module, utterance: Tensor) -> Any:
    try:
        # In-place operations become others that return their result.
        return torch.func.functionalize(network)(utterance)
    except TracingError:
        raise
    # Code of the user's may fail in any way where tensors have no values.
    except Exception as error:
        problem = str(error).partition("\n")[0]
        raise TracingError(f"it cannot be run on shapes alone: {type(error).__name__}: {problem}") from error


def _without_values(network: nn.Module) -> tuple[nn.Module, dict[int, Tensor]]:
    """Return a copy on the device "meta", where tensors have no values, and the tensors by the identity of its own."""
    shapes = copy.deepcopy(network).to("meta")
    constants = {}
    for module, original in zip(shapes.modules(), network.modules(), strict=True):
        pairs: list[tuple[Any, Any]] = [
            (module._parameters, original._parameters),
            (module._buffers, original._buffers),
        ]
        for name, tensor in vars(original).items():
            if isinstance(tensor, Tensor):
                # An attribute that is no buffer stays where it is.
                setattr(module, name, tensor.to("meta"))
                constants[id(getattr(module, name))] = tensor
        for tensors, originals in pairs:
            for name, tensor in originals.items():
                if tensor is not None:
                    constants[id(tensors[name])] = tensor.detach()
    return shapes, constants


class _Merge:
    """Nodes that the recordings of all lengths have in common."""

    def __init__(self, recorders: list[_Recorder]) -> None:
        self.recorders = recorders
        self.results: dict[_Result, Node] = {}

    def nodes(self, mel_bins: int, output: _Result) -> tuple[Node, list[Node], Node | None]:
        source = Node("input", [], {}, "", 0, [1, mel_bins, np.array(FRAMES)])
        self.results[_Result(-1, 0)] = source
        lists = [recorder.calls for recorder in self.recorders]
        names = [[call.name for call in calls] for calls in lists]
        if any(name_list != names[0] for name_list in names):
            raise TracingError("its operations depend on the length of the utterance")
        nodes = []
        for call_index, calls in enumerate(zip(*lists, strict=True)):
            if not calls[0].is_dependent:
                continue
            place = calls[0].place
            args = self._common(place, *[list(call.args) for call in calls])
            kwargs = self._common(place, *[dict(call.kwargs) for call in calls])
            for index, tensors in enumerate(zip(*[call.results for call in calls], strict=True)):
                # Some operations return None or a number in the place of a tensor.
                if not isinstance(tensors[0], Tensor):
                    continue
                shape = self._common(place, *[list(tensor.shape) for tensor in tensors])
                node = Node(calls[0].name, args, kwargs, place, index, shape)
                self.results[_Result(call_index, index)] = node
                nodes.append(node)
        return source, nodes, self.results.get(output)

    def _common(self, place: str, *values: Any) -> Any:
        """Return what the arguments of one call have in common at all lengths."""
        first = values[0]
        if isinstance(first, _Result):
            if first in self.results:
                return self.results[first]
            values = tuple(map(_Recorder.constant, self.recorders, values))
            first = values[0]
        if isinstance(first, Tensor):
            first, *others = map(_Recorder.with_values, self.recorders, values)
            values = (first, *others)
            # Of a constant that some operation computes there are several; NaN is equal to itself here.
            if not all(_equal_tensors(first, other) for other in others if other is not first):
                raise TracingError(f"{place}: a tensor there depends on the length of the utterance")
            return first
        if isinstance(first, (list, tuple)):
            return [self._common(place, *items) for items in zip(*values, strict=True)]
        if isinstance(first, dict):
            return {key: self._common(place, *[value[key] for value in values]) for key in first}
        if isinstance(first, (int, float)) and any(value != first for value in values):
            return np.array(values)
        return first
