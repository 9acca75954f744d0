"""Command ``sv-sparse autotune``: measures on this machine how each layer of a model is computed fastest."""

import argparse

import torch

from sv_sparse.commands.common import add_model_arguments, model_path
from sv_sparse.runtime.engine.autotune import autotune, benchmark_ms
from sv_sparse.runtime.engine.lowering import lower
from sv_sparse.runtime.engine.plan import USE_DENSE
from sv_sparse.runtime.engine.program import NoProgramError
from sv_sparse.runtime.engine.runtime import check_threads, machine_name, plan_path
from sv_sparse.runtime.package import read_package

# The command has no other arguments.
add_arguments = add_model_arguments


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse autotune``."""
    path = model_path(args)
    package = read_package(path, args.model_class)
    try:
        program = lower(package.network())
    except NoProgramError as error:
        raise ValueError(f"{path}: torch computes it, so there is nothing to tune: {error}") from error
    threads = check_threads(torch.get_num_threads() if args.threads is None else args.threads)
    # A plan is right for this model, machine and number of threads alone, and its path names them (DECISIONS 56).
    plan = autotune(program, machine_name(), threads=threads)
    output = plan_path(package, threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    plan.save(output)
    for name, tile in plan.layers.items():
        kernel = "dense, by torch" if tile == USE_DENSE else f"sparse, tiles of {tile} vectors"
        print(f"{name}: {kernel}")
    default_ms = benchmark_ms(program, None, threads=threads)
    plan_ms = benchmark_ms(program, plan, threads=threads)
    print(f"3 seconds of speech: {plan_ms:.1f} ms with this plan, {default_ms:.1f} ms without, by {threads} threads")
    print(f"saved in {output}, for this model, machine and number of threads")
