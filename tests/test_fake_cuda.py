"""Training on a fake CUDA device: an unlogged step never waits for it, a logged step once, to fetch its figures."""

import re
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from fake_cuda import CUDA, Device, on_fake_cuda
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tiny import RATE, ROOT, TINY

from sv_sparse.build import Experiment, build
from sv_sparse.compute import Compute
from sv_sparse.corpus import prepare_corpus
from sv_sparse.data.mixing import _resampler
from sv_sparse.data.noise import KINDS, build_store
from sv_sparse.optim.optimizer import IMPLEMENTATIONS
from sv_sparse.settings import resolve
from sv_sparse.trainer import Trainer
from sv_sparse.update import Heard

AUTO = "auto" if "auto" in IMPLEMENTATIONS else "foreach"
MODELS, OPTIMIZERS, SPARSITIES = (
    sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")) for group in ("model", "optim", "sparsity")
)
ECAPA = [word for word in TINY if word.startswith("model.")]
RESNET = ["model.base_channels=4", "model.embedding_dim=8"]
SE_RESNET = ["model.channels=[4,4,8,8]", "model.attention_channels=8", "model.embedding_dim=8"]
SMALL = {"resnet34": RESNET, "resnet_speechbrain": SE_RESNET}


def make(device: Device, folder: Path, *words: str, precision: str = "fp32") -> Experiment:
    """An experiment on the device, built by the code of a run; constructors may read."""
    GlobalHydra.instance().clear()
    _resampler.cache_clear()  # of the device of another test
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = resolve(compose("config", ["name=test", *words]))
    compute = Compute(CUDA, precision, compiled=False)
    with device.waiting(), mock.patch("sv_sparse.build.choose_compute", return_value=compute):
        return build(settings, folder, prepare_corpus(settings, folder))


def train(folder: Path, *words: str, precision: str = "fp32") -> dict[bool, list[str]]:
    """Train for three steps, of which the second is logged; the waits of logged and of other steps."""
    general = [word for word in TINY if word.startswith("trainer.") and "log_every" not in word]
    waits: dict[bool, list[str]] = {True: [], False: []}
    with ExitStack() as stack:
        device = stack.enter_context(Device())
        made = make(device, folder, *general, "trainer.log_every=2", *words, precision=precision)
        with device.waiting():
            trainer = Trainer(made, time.monotonic())
            stack.enter_context(trainer.update.ready())
            stack.enter_context(trainer.monitor.progress(0, 3))
        made.network.train()
        device.value = 0  # no step failed
        size = made.settings["trainer"]["batch_size"] // made.settings["trainer"]["accumulate"]
        for step in range(3):
            indices = [[(0, number * size + row) for row in range(size)] for number in range(made.batches.accumulate)]
            parts = [made.dataset.__getitems__(part) for part in indices]
            crops = sum(len(part.labels) for part in parts)
            with device.waiting() as found:
                trainer._train_step(parts, Heard(crops, 0, size, 0))
            waits[step == 1] += found
        trainer.monitor.close()
    return waits


def check(waits: dict[bool, list[str]]) -> None:
    """The law of waits."""
    assert waits[False] == []
    assert len(waits[True]) == 1, "\n".join(waits[True])
    assert re.fullmatch(r"sv_sparse/\S*trainer.py:\d+ _log: reads by tolist", waits[True][0]), waits[True]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Noises and rooms for augmentation."""
    root = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    for kind in (*KINDS, "simulated_rirs"):
        (root / kind).mkdir()
        soundfile.write(root / kind / "1.wav", 0.1 * draw.normal(size=4000), RATE)
    build_store([root], root / "store")
    return root / "store"


@pytest.mark.parametrize("augment", ["full", "musan_rirs"])
@on_fake_cuda
def test_a_step_on_augmented_speech_does_not_wait(augment, store, tones, tmp_path):
    words = [f"augment={augment}", f"augment.store={store}", "augment.probability=1", "augment.mask_probability=1"]
    words += ["trainer.batch_size=12", *tones.settings(), *ECAPA, f"optim.implementation={AUTO}"]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("model", MODELS)
@on_fake_cuda
def test_a_step_of_every_model_does_not_wait(model, tones, tmp_path):
    words = [*tones.settings(), f"model={model}", *SMALL.get(model, ECAPA), f"optim.implementation={AUTO}"]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@on_fake_cuda
def test_a_step_of_every_way_to_sparsity_does_not_wait(sparsity, tones, tmp_path):
    target = [] if sparsity == "dense" else ["target_sparsity=0.5"]
    often = {"feedback_decaying": "every", "feedback_damped": "every"}
    controller = [f"sparsity.controller.{often[sparsity]}=1"] if sparsity in often else []
    words = [*tones.settings(), *ECAPA, f"optim.implementation={AUTO}", f"sparsity={sparsity}", *target, *controller]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("optim", OPTIMIZERS)
@on_fake_cuda
def test_a_step_of_every_optimizer_does_not_wait(optim, tones, tmp_path):
    own = [] if optim == "proxsgd" else [f"optim.implementation={AUTO}"]  # which has no other
    check(train(tmp_path, *tones.settings(), *ECAPA, f"optim={optim}", *own, "trainer.accumulate=2"))


@pytest.mark.parametrize("grouping", ["output", "input", "kernel"])
@on_fake_cuda
def test_a_step_under_a_group_penalty_does_not_wait(grouping, tones, tmp_path):
    words = ["sparsity.regularizer=group", f"sparsity.grouping={grouping}", "sparsity.density=1"]
    check(train(tmp_path, *tones.settings(), *ECAPA, f"optim.implementation={AUTO}", *words))


@on_fake_cuda
def test_a_step_in_bf16_does_not_wait(tones, tmp_path):
    check(train(tmp_path, *tones.settings(), *ECAPA, f"optim.implementation={AUTO}", precision="bf16"))


@on_fake_cuda
def test_a_step_in_fp16_reads_the_scale_alone(tones, tmp_path):
    waits = train(tmp_path, *tones.settings(), *ECAPA, f"optim.implementation={AUTO}", precision="fp16")
    assert waits[False]
    for wait in waits[False]:
        assert "update.py" in wait
