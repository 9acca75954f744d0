"""sv-sparse tune: measure on this machine how each layer of a model is computed fastest, and remember it."""

import argparse

import torch

from sv_sparse.commands.common import add_model, model_path
from sv_sparse.runtime.engine.autotune import measured_plan, milliseconds
from sv_sparse.runtime.engine.lowering import LOWERED, lower
from sv_sparse.runtime.engine.plan import DENSE
from sv_sparse.runtime.engine.runtime import check_threads, machine, plan_path
from sv_sparse.runtime.package import read_package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse tune``."""
    add_model(parser)


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse tune``.

    Raises:
        ValueError: the model cannot be read, or has no program for the sparse kernels.
        OSError: the kernels cannot be compiled, or the plan cannot be written.
    """
    package = read_package(model_path(chosen))
    network = package.network()
    if not isinstance(network, LOWERED):
        raise ValueError(f"{model_path(chosen)}: its network is computed by torch, there is nothing to tune")
    threads = check_threads(torch.get_num_threads() if chosen.threads is None else chosen.threads)
    program = lower(network)
    plan = measured_plan(program, machine(), threads=threads)
    path = plan_path(package, threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    plan.save(path)
    for name, tile in plan.layers.items():
        print(f"{name}: {'dense, by torch' if tile == DENSE else f'sparse, tiles of {tile} vectors'}")
    before, after = (milliseconds(program, each, threads=threads) for each in (None, plan))
    print(f"3 seconds of speech: {after:.1f} ms as planned, {before:.1f} ms without, by {threads} threads")
    print(f"kept in {path}, for this model, machine and number of threads")
