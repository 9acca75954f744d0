"""The programs of docs/optimizer.md run and end at exactly the sparsity that they ask for."""

import re
import types

import pytest
import torch
from helpers.pages import blocks, commands, run, run_block, snippet, snippets, words_of
from helpers.small import assert_exact, same
from helpers.tiny import ROOT
from torch import nn

# They need another toolkit, or several processes, and have tests of their own.
ELSEWHERE = ("import speechbrain", "import lightning", "from transformers", "init_process_group")
PLAIN = [code for code in snippets("optimizer") if not any(word in code for word in ELSEWHERE)]


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning"
)  # torch.compile's own
@pytest.mark.parametrize("code", [code for code in PLAIN if "finalize()" in code])
def test_a_program_ends_at_exactly_90_percent(code, tmp_path, monkeypatch):
    scope = run_block(code, tmp_path, monkeypatch)
    assert_exact(scope["model"])


def test_the_plain_loop_learns(tmp_path, monkeypatch):
    code = snippet("optimizer", "TensorDataset(inputs, labels), batch_size=64")
    assert run_block(code, tmp_path, monkeypatch)["accuracy"] > 0.5


def test_the_resumed_run_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    code = snippet("optimizer", "checkpoint.pt")
    resumed = run_block(code, tmp_path, monkeypatch)["model"]
    without = re.sub(r"train\(model, optimizer, controller, end=150\)\n.*(?=train\()", "", code, flags=re.DOTALL)
    assert "torch.save" not in without
    model = run_block(without, tmp_path, monkeypatch)["model"]
    assert same(resumed, model)


def test_the_hook_counts_no_update_that_a_scaler_skips(tmp_path, monkeypatch):
    code = snippet("optimizer", "GradScaler(device)").replace(
        "GradScaler(device)", "GradScaler(device, init_scale=1e30)"
    )
    scope = run_block(code, tmp_path, monkeypatch)
    assert 0 < scope["controller"].steps < 300
    assert_exact(scope["model"])


def test_named_layers_stay_dense(tmp_path, monkeypatch):
    groups = run_block(snippet("optimizer", "class Encoder"), tmp_path, monkeypatch)["groups"]
    dense = {name for group in groups if group["name"] == "dense" for name, _ in group["params"]}
    assert {"position", "classifier.weight"} <= dense


def test_an_average_of_weights_is_denser_than_that_of_dual_variables(tmp_path, monkeypatch, capsys):
    run_block(snippet("optimizer", "DualAverage"), tmp_path, monkeypatch)
    of_weights, of_duals, final = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert of_weights < 0.8
    assert of_duals == pytest.approx(0.9, abs=0.01)
    assert final == 0.9


def test_two_processes_end_with_the_same_weights(tmp_path):
    (tmp_path / "ddp.py").write_text(snippet("optimizer", "init_process_group"))
    (command,) = [command for command in commands("optimizer") if command.startswith("torchrun")]
    out = run(words_of(command), tmp_path, OMP_NUM_THREADS="1")
    ends = {line.partition(": ")[2] for line in out.splitlines() if line.startswith("rank")}
    (end,) = ends
    assert end.startswith("sparsity 0.9000")


def test_the_command_of_the_table_runs():
    (command,) = [command for command in commands("optimizer") if command.startswith("python")]
    out = run([*words_of(command), "--steps", "3"], ROOT)
    assert out.count("\n| linear") == 4


# A script with the shape of WeSpeaker's bin/train.py; its parts are stand-ins.
WESPEAKER_SCRIPT = """
import torch


def train(configs, model, checkpoint, epoch_iter, run_epoch, schedulers, save_checkpoint, device):
    model.cuda()
    ddp_model = torch.nn.parallel.DistributedDataParallel(model)
    criterion = getattr(torch.nn, configs['loss'])(**configs['loss_args'])
    optimizer = getattr(torch.optim,
                        configs['optimizer'])(ddp_model.parameters(),
                                              **configs['optimizer_args'])
    scheduler = getattr(schedulers,
                        configs['scheduler'])(optimizer,
                                              **configs['scheduler_args'])
    scaler = torch.amp.GradScaler(device, enabled=configs['enable_amp'])
    for epoch in range(1, configs['num_epochs'] + 1):
        run_epoch(epoch_iter,
                  ddp_model,
                  criterion,
                  optimizer,
                  scheduler,
                  epoch,
                  scaler,
                  configs=configs)
        save_checkpoint(model, 'model_{}.pt'.format(epoch))
"""


def apply_diff(diff: str, script: str) -> str:
    """Apply hunks without line numbers: each has lines that occur once in the script."""
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] in " -")
        after = "\n".join(line[1:] for line in lines if line[0] in " +")
        assert script.count(f"{before}\n") == 1, before
        script = script.replace(f"{before}\n", f"{after}\n")
    return script


class SpeakerModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        self.projection = Projection()

    def cuda(self):
        return self

    def forward(self, features):
        return self.layers(features)


class Projection(nn.Module):
    """A classifier whose weight is a bare parameter, as those of WeSpeaker are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(4, 16))

    def forward(self, embedding):
        return 16 * nn.functional.linear(nn.functional.normalize(embedding), nn.functional.normalize(self.weight))


class Exponential:
    def __init__(self, optimizer, **settings):
        self.optimizer, self.settings = optimizer, settings

    def step(self, current_iter):
        progress = current_iter / self.settings["max_iter"]
        rate = self.settings["initial_lr"] * (self.settings["final_lr"] / self.settings["initial_lr"]) ** progress
        for group in self.optimizer.param_groups:
            group["lr"] = rate


@pytest.fixture
def _one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("enable_amp", [False, True])
def test_a_script_of_wespeakers_shape_ends_sparse_with_the_pages_lines(enable_amp):
    (diff,) = blocks("optimizer", "diff")
    scope: dict = {}
    exec(apply_diff(diff, WESPEAKER_SCRIPT), scope)
    voices = torch.randn(4, 20)
    accuracies = []

    def run_epoch(epoch_iter, model, criterion, optimizer, scheduler, epoch, scaler, configs):
        correct = 0
        for index in range(epoch_iter):
            scheduler.step((epoch - 1) * epoch_iter + index)
            targets = torch.randint(4, (32,))
            features = voices[targets] + 0.5 * torch.randn(32, 20)
            with torch.autocast("cpu", dtype=torch.float16, enabled=configs["enable_amp"]):
                outputs = model.module.projection(model(features))
                loss = criterion(outputs, targets)
            correct += int((outputs.argmax(1) == targets).sum())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        accuracies.append(correct / (32 * epoch_iter))

    saved = {}
    configs = {
        "loss": "CrossEntropyLoss",
        "loss_args": {},
        "optimizer": "SGD",
        "optimizer_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "scheduler": "Exponential",
        "scheduler_args": {"initial_lr": 0.1, "final_lr": 1e-3, "max_iter": 300},
        "num_epochs": 6,
        "enable_amp": enable_amp,
        "model_init": None,
    }
    scope["train"](
        configs=configs,
        model=SpeakerModel(),
        checkpoint=None,
        epoch_iter=50,
        run_epoch=run_epoch,
        schedulers=types.SimpleNamespace(Exponential=Exponential),
        save_checkpoint=lambda model, path: saved.update({path: {k: v.clone() for k, v in model.state_dict().items()}}),
        device="cpu",
    )
    final = saved["model_6.pt"]
    zeros = sum(int((final[name] == 0).sum()) for name in ("layers.0.weight", "layers.3.weight"))
    assert zeros == round(0.9 * (20 * 64 + 64 * 16))
    assert not (final["projection.weight"] == 0).any()
    assert accuracies[-1] > 0.9
