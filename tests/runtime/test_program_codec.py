"""Programs that would leave their planes are refused: when they are read, or for the length that they do not fit."""

import numpy as np
import pytest

from sv_sparse.runtime.engine.executor import SparseEngine, uniform_plan
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.plan import USE_DENSE
from sv_sparse.runtime.engine.program import VECTOR, Columns, Layer, Planes, Program, Resolution, Step
from sv_sparse.runtime.engine.program_codec import join_program, split_program

NOTHING = Planes(0, 0, 0)
MEL_BINS = 4


def program(*steps: Step, others: tuple[Resolution, ...] = (), num_planes: tuple[int, ...] = ()) -> Program:
    """The filterbank is loaded into planes 0 to 3 of resolution 1; the value at vector 0 is the embedding."""
    load = Step("load", MEL_BINS, NOTHING, Planes(1, 0, MEL_BINS))
    store = Step("store", 1, Planes(0, 0, 1), NOTHING)
    resolutions = [Resolution(1, VECTOR), Resolution(1, Columns()), *others]
    return Program(MEL_BINS, 1, 1, resolutions, [2, 8, *num_planes], [load, *steps, store])


def largest(planes: Planes) -> Step:
    return Step("reduce", 1, planes, Planes(0, 0, 1), parameters=(3, 1))


def reread(original: Program) -> Program:
    return join_program(split_program(original), MEL_BINS)


def convolution(source: Planes, target: Planes, strides: tuple[int, int], kernel_source: Planes) -> Step:
    layer = Layer("w", np.ones((1, 1, 1, 1), np.float32), source, strides)
    return Step("convolve", 1, kernel_source, target, [("store_plane", target.first)], layer=layer)


def test_a_program_that_fits_is_computed():
    x = np.random.default_rng(0).normal(size=(2, MEL_BINS, 20)).astype(np.float32)
    fitting = reread(program(largest(Planes(1, 0, 1))))
    for engine in (SparseEngine(fitting), NumpyEngine(fitting)):
        np.testing.assert_array_equal(engine(x)[:, 0], x[:, 0].max(axis=1))


FORGED = {
    "columns behind the source": program(
        convolution(Planes(1, 0, 1), Planes(2, 2, 1), (1, 2), Planes(2, 0, 2)),
        largest(Planes(2, 2, 1)),
        others=(Resolution(1, Columns(1 << 20, 2)),),
        num_planes=(3,),
    ),
    "rows behind the source": program(
        convolution(Planes(1, 0, 1), Planes(2, 0, 1), (1000, 1), Planes(1, 0, 1000)),
        largest(Planes(2, 0, 1)),
        others=(Resolution(1000, Columns()),),
        num_planes=(1,),
    ),
    "a copy of more columns": program(
        Step("copy", 1, Planes(1, 0, 1), Planes(2, 0, 1), parameters=(0, 1), sources=np.zeros(1, np.int32)),
        largest(Planes(2, 0, 1)),
        others=(Resolution(1, Columns(100, 1)),),
        num_planes=(1,),
    ),
    "segments beyond the frames": program(
        Step("segments", 1, Planes(1, 0, 1), Planes(2, 0, 1), parameters=(7,)),
        largest(Planes(2, 0, 1)),
        others=(Resolution(1, Columns(10, 1)),),
        num_planes=(1,),
    ),
    "a mirror image of more than there is": program(
        Step("extend", 1, Planes(1, 0, 1), Planes(1, 0, 1), parameters=(20, 0, 0)), largest(Planes(1, 0, 1))
    ),
    "more memory than is used": program(
        Step("copy", 1, Planes(1, 0, 1), Planes(2, 0, 1), parameters=(0, 1 << 14), sources=np.zeros(1, np.int32)),
        largest(Planes(2, 0, 1)),
        others=(Resolution(1 << 14, Columns(1000, 1)),),
        num_planes=(500,),
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_leaves_its_planes_is_refused(name):
    x = np.zeros((1, MEL_BINS, 20), np.float32)
    with pytest.raises(ValueError, match="does not fit|GiB of memory|planes"):
        NumpyEngine(reread(FORGED[name]))(x)
    for tile in (USE_DENSE, 8):
        with pytest.raises(ValueError, match="does not fit|GiB of memory|planes"):
            forged = reread(FORGED[name])
            SparseEngine(forged, plan=uniform_plan(forged, tile))(x)


def test_more_steps_than_any_network_has_are_refused():
    many = program(*[largest(Planes(1, 0, 1))] * 10_001)
    with pytest.raises(ValueError, match="more than 10000 steps"):
        reread(many)


@pytest.mark.parametrize("shape", [(1, 3, 20), (MEL_BINS, 20), (1, MEL_BINS, 0)])
def test_a_filterbank_of_another_shape_is_refused(shape):
    fitting = program(largest(Planes(1, 0, 1)))
    for engine in (SparseEngine(fitting), NumpyEngine(fitting)):
        with pytest.raises(ValueError, match="expected"):
            engine(np.zeros(shape, np.float32))
