"""A network class in a folder of the user's: named, it works everywhere; unnamed, it is never imported."""

import sys

import onnx
import pytest
import torch
from helpers.tiny import TINY

from sv_sparse.commands.main import main
from sv_sparse.config.schema import read_config
from sv_sparse.runtime.package import read_package

PATH = "mypkg.net.Net"
SOURCE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, mel_bins, channels=8):
        super().__init__()
        self.conv = torch.nn.Conv1d(mel_bins, channels, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(channels)
        self.linear = torch.nn.Linear(channels, 4)

    def forward(self, filterbank):
        return self.linear(self.norm(self.conv(filterbank)).relu().mean(2))
"""
SHORT = [word for word in TINY if not word.startswith("model.")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a package and a file of configuration beside it; both are forgotten afterwards."""
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "net.py").write_text(SOURCE)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "net.yaml").write_text(f"_target_: {PATH}\nchannels: 8\n")
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name in ("mypkg", "mypkg.net"):
        sys.modules.pop(name, None)


def forget(monkeypatch) -> None:
    """Forget the class, as another process would."""
    for name in ("mypkg", "mypkg.net"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_it_is_trained_resumed_evaluated_and_exported_by_its_name_alone(train, tones, folder, monkeypatch, capsys):
    words = ["model=net", "model.channels=6", "target_sparsity=0.5", "trainer.epochs=1", "run_dir=run"]
    # The class has no such argument.
    words.append("+model.features=wespeaker")
    done = train("--config-dir", str(folder / "conf"), *SHORT, *tones.settings(), *words)
    assert done.status == 0, done.err
    forget(monkeypatch)
    refusals = [train("resume_from=run").err]
    for command in (["evaluate", "run"], ["export", "run", "--output", "m.onnx"]):
        with pytest.raises(SystemExit):
            main(command)
        refusals.append(capsys.readouterr().err)
    for refusal in refusals:
        assert f"its network is {PATH}, a class of your own. Code is imported only if you name it" in refusal
    assert "mypkg.net" not in sys.modules
    done = train("resume_from=run", f"model._target_={PATH}")
    assert done.status == 0, done.err
    main(["evaluate", "run", "--model-class", PATH])
    assert "trials: EER" in capsys.readouterr().out
    main(["export", "run", "--output", "m.onnx", "--model-class", PATH])
    monkeypatch.setenv("SV_SPARSE_MODEL_CLASS", PATH)
    main(["export", "run", "--output", "m.safetensors"])
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "m.onnx").metadata_props}
    assert metadata["features"] == "wespeaker"
    assert read_package(folder / "m.safetensors").features["kind"] == "wespeaker"


def test_a_run_starts_from_a_file_of_its_weights(train, tones, folder):
    words = [*SHORT, *tones.settings(), f"model._target_={PATH}", "+model.channels=6"]
    done = train(*words, "run_dir=run")
    assert done.status == 0, done.err
    torch.save(torch.load("run/checkpoints/model.pt", weights_only=True)["model"], "weights.pt")
    done = train(*words, "init_from=weights.pt", "teacher=self", "head=none", "run_dir=after")
    assert done.status == 0, done.err
    assert read_config(folder / "after").sparsity.penalty == "l0"


def test_a_run_starts_from_one_of_it_if_the_command_line_names_it(train, tones, folder, monkeypatch):
    done = train(*SHORT, *tones.settings(), f"model._target_={PATH}", "+model.channels=6", "run_dir=run")
    assert done.status == 0, done.err
    forget(monkeypatch)
    again = [*SHORT, "init_from=run", "trainer.max_steps=2", "run_dir=after"]
    assert f"model._target_={PATH}" in train(*again).err
    assert "mypkg.net" not in sys.modules
    done = train(*again, f"model._target_={PATH}")
    assert done.status == 0, done.err
    assert "as there: model, data" in done.out
