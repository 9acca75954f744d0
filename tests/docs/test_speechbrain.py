"""The recipe of docs/optimizer.md inside SpeechBrain."""

import pytest
import torch
from helpers.pages import snippet
from torch import nn
from torch.utils.data import DataLoader

from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.optim import sparsity

assert torchaudio  # SpeechBrain imports it; where only the stand-in works, that must be first
from speechbrain.utils.checkpoints import Checkpointer  # noqa: E402

DATA = [(torch.randn(8, 10, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 4) for i in range(20)]
BATCHES = DataLoader(DATA, batch_size=None)


def make_brain(folder=None):
    scope: dict = {}
    exec(snippet("optimizer", "SparseBrain"), scope)

    class Recipe(scope["SparseBrain"]):
        def compute_forward(self, batch, stage):
            return self.modules.model(batch[0])

        def compute_objectives(self, outputs, batch, stage):
            return nn.functional.cross_entropy(outputs, batch[1])

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    checkpointer = None
    if folder is not None:
        checkpointer = Checkpointer(folder, recoverables={"model": model})
    hparams = {"target_sparsity": 0.8, "total_steps": 200}
    options = {"device": "cpu", "noprogressbar": True}
    return Recipe({"model": model}, hparams=hparams, run_opts=options, checkpointer=checkpointer)


def weights(brain) -> list[torch.Tensor]:
    return [param for param in brain.modules.parameters() if param.ndim > 1]


@pytest.mark.filterwarnings("ignore")
def test_a_speechbrain_recipe_ends_at_its_target() -> None:
    brain = make_brain()
    brain.fit(range(10), BATCHES)
    assert brain.controller.steps == 200
    assert abs(sparsity(weights(brain)).item() - 0.8) < 0.02
    brain.evaluate(BATCHES)
    assert sparsity(weights(brain)).item() == pytest.approx(0.8, abs=1 / 896)


@pytest.mark.filterwarnings("ignore")
def test_speechbrains_checkpointer_keeps_optimizer_and_controller(tmp_path) -> None:
    whole = make_brain()
    whole.fit(range(4), BATCHES)
    first = make_brain(tmp_path)
    first.fit(range(2), BATCHES)
    first.checkpointer.save_checkpoint()
    second = make_brain(tmp_path)
    second.fit(range(2), BATCHES)
    assert second.controller.steps == 80
    pairs = zip(whole.modules.parameters(), second.modules.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
