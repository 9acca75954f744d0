"""Drafts of programs: steps over storages that have no place in memory yet."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sv_sparse.runtime.engine.program import VECTOR, Columns, Layer, Planes, Program, Resolution, Step

Float64Array = NDArray[np.float64]


@dataclass(eq=False)
class Storage:
    """Planes that one or more steps write."""

    rows: int
    columns: Columns
    count: int
    # Step in whose registers it is, so that further operations can follow there.
    step: "DraftStep | None" = None
    # Number of the step that writes it.
    index: int = -1
    # Storage that it is a part of, and its first plane there.
    parent: "tuple[Storage, int] | None" = None
    is_read: bool = False
    # Rows are continued beyond their ends by other values than zeros; or some step counts on zeros.
    is_extended: bool = False
    is_zero_padded: bool = False

    @property
    def root(self) -> tuple["Storage", int]:
        """The storage that it lies in, and its first plane there."""
        storage = self
        first = 0
        while storage.parent is not None:
            storage, offset = storage.parent
            first += offset
        return storage, first


@dataclass(eq=False)
class View:
    """Range of planes of a storage."""

    storage: Storage
    first: int
    count: int


@dataclass(eq=False)
class Action:
    """Elementwise operation; the operand is one of constants [rows], planes, or what is stored."""

    code: str
    operand: Float64Array | View | None = None


@dataclass(eq=False)
class DraftStep:
    """Step of a program."""

    op: str
    rows: int
    index: int
    source: View | None = None
    target: View | None = None
    actions: list[Action] = field(default_factory=list)
    parameters: tuple[int | View, ...] = ()
    numbers: tuple[float, ...] = ()
    sources: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    # Of a convolution; its weight is in float64 still. What a dense product reads is apart.
    layer: Layer | None = None
    layer_source: View | None = None
    # What its registers hold in the end.
    tail: Storage | None = None

    def views(self) -> Iterator[View]:
        """Yield all that it reads and writes."""
        operands = [action.operand for action in self.actions]
        for view in (self.source, self.target, self.layer_source, *self.parameters, *operands):
            if isinstance(view, View):
                yield view


def finish(steps: list[DraftStep], *, mel_bins: int, embedding_dim: int, min_frames: int) -> Program:
    """Return the program of a draft: constants folded, and every storage at a place in memory."""
    for step in steps:
        step.actions = [
            action
            for action in step.actions
            if action.code != "store_plane" or action.operand.storage.is_read  # type: ignore[union-attr]
        ]
        _fold_constants(step)
    places = _Places(steps)
    return Program(
        mel_bins=mel_bins,
        embedding_dim=embedding_dim,
        min_frames=min_frames,
        resolutions=places.resolutions,
        num_planes=places.num_planes,
        steps=[_finish_step(step, places) for step in steps],
    )


def _fold_constants(step: DraftStep) -> None:
    """Make one multiplication and one addition of each run of them, and let a convolution's weight do the first one."""
    actions: list[Action] = []
    scale = np.ones(step.rows)
    shift = np.zeros(step.rows)

    def flush() -> None:
        nonlocal scale, shift
        if not actions and step.layer is not None:
            weight: Any = step.layer.weight * scale[:, None, None, None]
            step.layer = replace(step.layer, weight=weight)
        elif (scale != 1).any():
            actions.append(Action("multiply_constant", scale))
        if shift.any():
            actions.append(Action("add_constant", shift))
        scale = np.ones(step.rows)
        shift = np.zeros(step.rows)

    for action in step.actions:
        constant = action.operand if isinstance(action.operand, np.ndarray) else None
        if action.code == "multiply_constant" and constant is not None:
            scale = scale * constant
            shift = shift * constant
        elif action.code == "add_constant" and constant is not None:
            shift = shift + constant
        else:
            flush()
            actions.append(action)
    flush()
    step.actions = _fused(actions)


# Sequences that are one action for the kernels, the longest first. Constants follow each other.
_SEQUENCES = (
    ("add_constant", "relu", "multiply_constant", "add_constant"),
    ("add_constant", "relu"),
    ("multiply_constant", "add_constant"),
)


def _fused(actions: list[Action]) -> list[Action]:
    fused: list[Action] = []
    while actions:
        for sequence in _SEQUENCES:
            taken = actions[: len(sequence)]
            if tuple(action.code for action in taken) == sequence:
                operands = [action.operand for action in taken if isinstance(action.operand, np.ndarray)]
                code = "_".join(code.removesuffix("_constant") for code in sequence)
                fused.append(Action(code, np.concatenate(operands)))
                actions = actions[len(sequence) :]
                break
        else:
            fused.append(actions[0])
            actions = actions[1:]
    return fused


class _Places:
    """Places of all storages: planes are used again when nothing reads them any more."""

    def __init__(self, steps: list[DraftStep]) -> None:
        last_use: dict[Storage, int] = {}
        for index, step in enumerate(steps):
            for view in step.views():
                root, _ = view.storage.root
                last_use[root] = index
        self.resolutions = [Resolution(1, VECTOR)]
        self._num_others = [0]
        self._planes: dict[Storage, Planes] = {}
        # Planes whose rows are continued by other values than zeros come behind all others and share none with them.
        self._num_extended = [0]
        live: list[Storage] = []
        for index, step in enumerate(steps):
            for view in step.views():
                root, _ = view.storage.root
                if root not in self._planes:
                    self._planes[root] = self._allocate(root, live)
                    live.append(root)
            # What a step reads is free after it only: its outputs never lie over its inputs.
            live = [root for root in live if last_use[root] > index]

    def _allocate(self, root: Storage, live: list[Storage]) -> Planes:
        resolution = Resolution(root.rows, root.columns)
        if resolution not in self.resolutions:
            self.resolutions.append(resolution)
            self._num_others.append(0)
            self._num_extended.append(0)
        number = self.resolutions.index(resolution)
        first = 0
        for planes in sorted(self._planes[other] for other in live if other.is_extended == root.is_extended):
            if planes.resolution != number:
                continue
            if planes.first - first >= root.count:
                break
            first = planes.first + planes.size
        sizes = self._num_extended if root.is_extended else self._num_others
        sizes[number] = max(sizes[number], first + root.count)
        return Planes(number, first, root.count)

    @property
    def num_planes(self) -> list[int]:
        """Number of planes of each resolution."""
        return [sum(sizes) for sizes in zip(self._num_others, self._num_extended, strict=True)]

    def __call__(self, view: View) -> Planes:
        """Return the planes of a view."""
        root, first = view.storage.root
        planes = self._planes[root]
        if root.is_extended:
            first += self._num_others[planes.resolution]
        return Planes(planes.resolution, planes.first + first + view.first, view.count)


_NO_PLANES = Planes(0, 0, 0)


def _finish_step(step: DraftStep, places: _Places) -> Step:
    constants: list[Float64Array] = []
    size = 0
    actions = []
    target = step.target
    for action in step.actions:
        argument = 0
        if isinstance(action.operand, View):
            argument = places(action.operand).first
            if action.code == "store_plane" and target is None:
                target = action.operand
        elif action.operand is not None:
            argument = size
            constants.append(action.operand)
            size += len(action.operand)
        actions.append((action.code, argument))
    layer = step.layer
    if layer is not None:
        assert step.layer_source is not None
        weight = np.ascontiguousarray(layer.weight, np.float32)
        layer = replace(layer, weight=weight, source=places(step.layer_source))
    parameters = []
    for parameter in step.parameters:
        parameters.append(places(parameter).first if isinstance(parameter, View) else parameter)
    return Step(
        op=step.op,
        rows=step.rows,
        source=places(step.source) if step.source is not None else _NO_PLANES,
        target=places(target) if target is not None else _NO_PLANES,
        actions=actions,
        constants=np.concatenate([*constants, np.empty(0)]).astype(np.float32),
        parameters=tuple(parameters),
        numbers=step.numbers,
        sources=step.sources,
        layer=layer,
    )
