"""The compiled kernels: where they apply, what they count, and what is said where they cannot be had."""

import ast
import copy
import subprocess
import sys

import pytest
import torch
from helpers.small import network, train
from torch import nn

from sv_sparse.optim import AdaBreg, LinBreg, count_zeros, param_groups
from sv_sparse.optim.cpp import bindings

KINDS = [(LinBreg, {}), (LinBreg, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}), (AdaBreg, {})]
KINDS += [(LinBreg, {"penalty": "l0", "momentum": 0.9}), (AdaBreg, {"penalty": "l0", "delta": 0.5})]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_cpp_and_foreach_agree(kind, settings):
    models = network(), network()
    for model, backend in zip(models, ("cpp", "foreach"), strict=True):
        groups = param_groups(model, penalty=settings.get("penalty", "l1"))
        train(model, kind(groups, lr=0.02, lambda_init=0.02, backend=backend, **settings), 10)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert count_zeros(list(models[0].parameters())) > 0


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_number_of_threads_changes_no_bit(kind, settings):
    results = []
    for threads in (1, 2):
        torch.manual_seed(0)
        param = nn.Parameter(torch.randn(70, 90))
        optimizer = kind([param], lr=0.1, lambda_init=0.3, **settings)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            for step in range(3):
                param.grad = torch.randn(70, 90, generator=torch.Generator().manual_seed(step))
                optimizer.step()
        finally:
            torch.set_num_threads(before)
        results.append(param.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
def test_the_count_of_a_step_is_the_count_of_its_weights_also_after_a_change(backend):
    model = network()
    optimizer = AdaBreg(param_groups(model), lr=0.02, lambda_init=0.02, backend=backend)
    params = optimizer.param_groups[0]["params"]

    def check() -> None:
        assert optimizer.count_nonzero(params).tolist() == [int(param.count_nonzero()) for param in params]

    check()
    train(model, optimizer, 5, after=check)
    optimizer.param_groups[0]["lambda_"].mul_(3)
    optimizer.apply_prox()
    check()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    check()
    twin = copy.deepcopy(optimizer)
    assert torch.equal(twin.count_nonzero(params), optimizer.count_nonzero(params))


@pytest.mark.parametrize(
    "param",
    [
        torch.linspace(-1, 1, 96).view(8, 12)[:, ::2],
        torch.linspace(-1, 1, 96).view(8, 12)[:, :7],
        torch.linspace(-1, 1, 48, dtype=torch.float64).view(8, 6),
        torch.linspace(-1, 1, 48, dtype=torch.bfloat16).view(8, 6),
    ],
    ids=["strided", "narrow", "float64", "bfloat16"],
)
def test_what_the_kernels_do_not_take_goes_the_plain_way_and_is_trained_all_the_same(param):
    weight = nn.Parameter(param.detach())
    optimizer = AdaBreg([weight], lr=0.1, lambda_init=0.5)
    outside = torch.full_like(weight, 0.3)
    weight.grad = outside
    optimizer.step()
    dual = optimizer.state[weight]["dual"]
    assert not bindings.supports_pair(weight, dual)
    assert 0 < int(weight.count_nonzero()) < weight.numel()


def test_memory_between_the_weights_of_a_view_is_left_alone():
    whole = torch.zeros(8, 12)
    weight = nn.Parameter(whole[:, :7])
    weight.grad = torch.ones(8, 7)
    AdaBreg([weight], lr=0.1, lambda_init=0.01).step()
    assert (weight != 0).all()
    assert (whole[:, 7:] == 0).all()


def test_a_channels_last_weight_and_one_of_kernel_size_one_take_the_kernels():
    for shape in ((8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 1, 5)):
        weight = nn.Parameter(torch.randn(shape).to(memory_format=torch.channels_last))
        optimizer = LinBreg([weight], lr=0.1)
        weight.grad = torch.randn(shape)
        optimizer.step()
        assert bindings.supports_pair(weight, optimizer.state[weight]["dual"])


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
@pytest.mark.parametrize("penalty", ["l1", "l0"])
def test_nan_and_infinity_reach_the_weights(penalty, backend):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([float("nan"), float("inf"), 1.0])
    LinBreg([weight], lr=0.1, lambda_init=0.1, penalty=penalty, backend=backend).step()
    assert weight.isnan().tolist() == [True, False, False]
    assert weight.isinf().tolist() == [False, True, False]


def run_without_compiler(code: str, tmp_path, compiler: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    words = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "No such file"), ("false", "failed"), ("g++ '", "is no command (No closing quotation)")],
)
def test_without_a_compiler_cpp_says_in_the_constructor_how_to_do_without(tmp_path, compiler, reason):
    code = (
        "import torch; from sv_sparse.optim import AdaBreg\nAdaBreg([torch.nn.Parameter(torch.ones(3))], backend='cpp')"
    )
    done = run_without_compiler(code, tmp_path, compiler)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ")
    assert compiler in last
    assert reason in last
    assert 'backend="foreach"' in last
    assert run_without_compiler(code.replace("cpp", "foreach"), tmp_path, compiler).returncode == 0


def test_without_a_compiler_the_default_trains_and_warns_once_what_that_costs(tmp_path):
    code = """
import warnings, torch
from torch import nn
from sv_sparse.optim import AdaBreg, FeedbackController, LinBreg, QuantileController, clip_grad_norm_
model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for kind, control in ((AdaBreg, FeedbackController), (LinBreg, QuantileController)):
        optimizer = kind([{"params": [model[0].weight, model[2].weight]}], lr=0.01, lambda_init=0.01)
        controller = control(optimizer, 0.5, 10, ramp_start=None, ramp_end=None)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            controller.step()
        controller.finalize()
        print(float(controller.sparsity()))
print([str(warning.message) for warning in seen if "takes" in str(warning.message)])
"""
    done = run_without_compiler(code, tmp_path, "no-such-compiler")
    assert done.returncode == 0, done.stderr
    first, second, warned = done.stdout.splitlines()
    assert (first, second) == ("0.5", "0.5")
    (message,) = ast.literal_eval(warned)
    assert "a step takes about twice as long" in message
    assert "no-such-compiler" in message


def test_without_a_compiler_clipping_by_its_kernel_says_how_to_do_without(tmp_path):
    code = (
        "import torch; from sv_sparse.optim import clip_grad_norm_\n"
        "weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 2.0]]))\n"
        "weight.grad = torch.tensor([[3.0, 7.0, 4.0]])\n"
        "print(clip_grad_norm_([weight], 1.0, backend='cpp').item())"
    )
    done = run_without_compiler(code, tmp_path, "no-such-compiler")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ")
    assert 'choose backend="foreach"' in last
    for other in ("foreach", "auto"):
        done = run_without_compiler(code.replace("cpp", other), tmp_path, "no-such-compiler")
        assert float(done.stdout) == pytest.approx(5.0, rel=1e-6)


def test_ctrl_c_of_the_terminal_does_not_reach_the_compiler(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncut -d" " -f5 /proc/$$/stat >> {tmp_path / "groups"}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    code = "import os; from sv_sparse.optim.cpp.bindings import library; library(); print(os.getpgrp())"
    done = run_without_compiler(code, tmp_path, str(compiler))
    assert done.returncode == 0, done.stderr
    groups = (tmp_path / "groups").read_text().split()
    assert len(groups) == 3  # version, macros, compiling
    assert done.stdout.strip() not in groups


def test_a_broken_source_is_reported_and_leaves_nothing_in_the_cache(tmp_path):
    code = (
        "from pathlib import Path; from sv_sparse.optim.cpp import bindings\n"
        f"bindings.SOURCE = Path({str(tmp_path / 'bad.cpp')!r})\n"
        "bindings.SOURCE.write_text('this is no program')\n"
        "bindings.library()"
    )
    done = run_without_compiler(code, tmp_path, "g++")
    assert "OSError: g++ failed" in done.stderr
    assert not list((tmp_path / "sv-sparse" / "native").iterdir())


def test_the_room_imports_nothing_but_torch():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import sv_sparse.optim\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sv_sparse']"
