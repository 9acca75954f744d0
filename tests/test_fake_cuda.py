"""Training on a fake CUDA device: an unlogged step never waits for it, a logged step once, to fetch its figures."""

import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from fake_cuda import CUDA, Device, WaitsError, on_fake_cuda
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tiny import ROOT, TINY

from sv_sparse.build import Experiment, build
from sv_sparse.compute import Compute
from sv_sparse.corpus import prepare_corpus
from sv_sparse.optim.optimizer import IMPLEMENTATIONS
from sv_sparse.settings import resolve
from sv_sparse.trainer import Trainer
from sv_sparse.update import Heard

AUTO = "auto" if "auto" in IMPLEMENTATIONS else "foreach"
CHOICES = {name: sorted(path.stem for path in (ROOT / "conf" / name).glob("*.yaml")) for name in ("model", "sparsity")}
ECAPA = [word for word in TINY if word.startswith("model.")]
RESNET = ["model.base_channels=4", "model.embedding_dim=8"]
SE_RESNET = ["model.channels=[4,4,8,8]", "model.attention_channels=8", "model.embedding_dim=8"]
SMALL = {"resnet34": RESNET, "resnet_speechbrain": SE_RESNET}


def make(device: Device, folder: Path, *words: str, precision: str = "fp32") -> Experiment:
    """An experiment on the device, built by the code of a run; constructors may read."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = resolve(compose("config", ["name=test", *words]))
    compute = Compute(CUDA, precision, compiled=False)
    with device.waiting(), mock.patch("sv_sparse.build.choose_compute", return_value=compute):
        return build(settings, folder, prepare_corpus(settings, folder))


def train(folder: Path, *words: str, precision: str = "fp32") -> dict[bool, list[str]]:
    """Train for four steps, of which every second is logged; the waits of both kinds."""
    general = [word for word in TINY if word.startswith("trainer.") and "log_every" not in word]
    waits: dict[bool, list[str]] = {True: [], False: []}
    with ExitStack() as stack:
        device = stack.enter_context(Device())
        made = make(device, folder, *general, "trainer.log_every=2", *words, precision=precision)
        with device.waiting():
            trainer = Trainer(made, time.monotonic())
            stack.enter_context(trainer.update.ready())
            stack.enter_context(trainer.monitor.progress(0, 4))
        made.network.train()
        device.value = 0  # no step failed
        size = made.settings["trainer"]["batch_size"] // made.settings["trainer"]["accumulate"]
        for step in range(4):
            indices = [[(0, number * size + row) for row in range(size)] for number in range(made.batches.accumulate)]
            parts = [made.dataset.__getitems__(part) for part in indices]
            crops = sum(len(part.labels) for part in parts)
            with device.waiting() as found:
                trainer._train_step(parts, Heard(crops, 0, size, 0))
            waits[step % 2 == 1] += found
        trainer.monitor.close()
    return waits


def check(waits: dict[bool, list[str]]) -> None:
    """The law of waits."""
    assert waits[False] == []
    assert len(waits[True]) == 2, "\n".join(waits[True])
    assert all("trainer.py" in wait and "_log: reads by tolist" in wait for wait in waits[True]), waits[True]


@pytest.mark.parametrize("model", CHOICES["model"])
@on_fake_cuda
def test_a_step_of_every_model_does_not_wait(model, tones, tmp_path):
    words = [*tones.settings(), f"model={model}", *SMALL.get(model, ECAPA), f"optim.implementation={AUTO}"]
    check(train(tmp_path, *words))
