"""Lightning and the Hugging Face Trainer as docs/optimizer.md shows them: real runs, and runs that are resumed."""

import pytest
import torch
from helpers.pages import run_block, snippet
from helpers.small import assert_exact, same
from safetensors.torch import load_file

from sv_sparse.data.torchaudio_guard import torchaudio

assert torchaudio  # these toolkits import it; where only the stand-in works, that must be first

# Warnings of the toolkits about themselves and this machine.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty.*"),
]
LIGHTNING = snippet("optimizer", "import lightning")
TRAINER = snippet("optimizer", "from transformers")


@pytest.fixture
def lit(tmp_path, monkeypatch):
    return run_block(LIGHTNING, tmp_path, monkeypatch)


def test_lightnings_last_checkpoint_has_the_exact_network(lit):
    assert_exact(lit["module"])
    saved = torch.load(lit["trainer"].checkpoint_callback.best_model_path, weights_only=True)
    restored = lit["SparseModule"]()
    restored.load_state_dict(saved["state_dict"])
    assert_exact(restored)
    assert saved["controller"]["steps"] == 320


def test_lightning_resumes_with_the_controllers_state(lit, tmp_path):
    class Stop(lit["lightning"].Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 9

    def fit(*callbacks, path=None):
        torch.manual_seed(1)
        module = lit["SparseModule"]()
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "callbacks": list(callbacks)}
        trainer = lit["lightning"].Trainer(max_epochs=20, default_root_dir=tmp_path / "lit", **options)
        trainer.fit(module, lit["loader"], ckpt_path=path)
        return module, trainer

    unbroken, _ = fit()
    first, trainer = fit(Stop())
    assert first.controller.steps == 160
    torch.manual_seed(2)
    second, _ = fit(path=trainer.checkpoint_callback.best_model_path)
    assert second.controller.steps == 320
    assert_exact(second)
    assert same(unbroken, second)


@pytest.fixture
def hugging(tmp_path, monkeypatch):
    return run_block(TRAINER, tmp_path, monkeypatch)


def test_hugging_faces_trainer_saves_the_exact_network(hugging, tmp_path):
    assert_exact(hugging["model"])
    saved = load_file(tmp_path / "hf_run" / "final" / "model.safetensors")
    restored = hugging["Classifier"]()
    restored.load_state_dict(saved)
    assert_exact(restored)


def test_hugging_faces_trainer_resumes_with_the_controllers_state(hugging, tmp_path):
    torch.manual_seed(0)
    model = hugging["Classifier"]()
    optimizer = hugging["AdaBreg"](hugging["param_groups"](model, penalty="l0"), lr=1e-3)
    controller = hugging["FeedbackController"](optimizer, target_sparsity=0.9, total_steps=300)
    arguments = hugging["TrainingArguments"](
        str(tmp_path / "hf_run"), max_steps=300, save_steps=100, report_to=[], disable_tqdm=True
    )
    trainer = hugging["Trainer"](
        model,
        arguments,
        train_dataset=hugging["data"],
        optimizers=(optimizer, None),
        callbacks=[hugging["SparsityCallback"](controller)],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "hf_run" / "checkpoint-200"))
    assert controller.steps == 300
    assert same(model, hugging["model"])
