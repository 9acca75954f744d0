"""Command ``sv-sparse autotune``: measures the fastest kernel of each layer of a model on this machine."""

import argparse

import torch

from sv_sparse.commands.common import add_model_arguments, model_path
from sv_sparse.runtime.engine.autotune import autotune, benchmark_ms
from sv_sparse.runtime.engine.plan import USE_DENSE
from sv_sparse.runtime.engine.runtime import check_threads, machine_name, plan_path
from sv_sparse.runtime.package import read_package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse autotune``."""
    add_model_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="print the kernel of each layer and the plan's path")


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse autotune``."""
    path = model_path(args)
    package = read_package(path)
    program = package.program
    threads = check_threads(torch.get_num_threads() if args.threads is None else args.threads)
    # A plan is right for this model, machine and number of threads alone, and its path names them (DECISIONS 56).
    plan = autotune(program, machine_name(), threads=threads)
    output = plan_path(package, threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    plan.save(output)
    if args.verbose:
        for name, tile in plan.layers.items():
            kernel = "dense, by torch" if tile == USE_DENSE else f"sparse, tiles of {tile} vectors"
            print(f"{name}: {kernel}")
        print(f"plan: {output}, for this model, machine and number of threads")
    before_ms = benchmark_ms(program, None, threads=threads)
    after_ms = benchmark_ms(program, plan, threads=threads)
    num_dense = list(plan.layers.values()).count(USE_DENSE)
    layers = f"{len(plan.layers) - num_dense} layers sparse, {num_dense} dense"
    count = "1 thread" if threads == 1 else f"{threads} threads"
    print(f"{before_ms:.1f} ms before, {after_ms:.1f} ms after, for 3 s of speech by {count}: {layers}")
