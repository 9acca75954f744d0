"""Training on a fake CUDA device: only a logged step waits for it, once, to fetch its figures."""

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.fake_cuda import CUDA, Device, WaitsError, on_fake_cuda
from helpers.noise import small_noise_store
from helpers.tiny import TINY
from torch._subclasses.fake_tensor import FakeTensor

from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import load_config
from sv_sparse.data import loader
from sv_sparse.data.loader import worker_settings
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.training.device import DeviceConfig
from sv_sparse.training.finalize import finalize
from sv_sparse.training.setup import TrainingSetup, build_setup
from sv_sparse.training.trainer import Trainer

_COMMAND_LINE = parse_command_line([])
OPTIMIZERS = _COMMAND_LINE.choices("optim")
MODELS, SPARSITIES = (
    [name for name in _COMMAND_LINE.choices(group) if name != "custom"] for group in ("model", "sparsity")
)
ECAPA = [word for word in TINY if word.startswith("model.")]
RESNET = ["model.base_channels=4", "model.embedding_dim=8"]
SE_RESNET = ["model.channels=[4,4,8,8]", "model.attention_channels=8", "model.embedding_dim=8"]
CAMPPLUS = ("model.front_channels=4", "model.channels=16", "model.growth_rate=8", "model.bottleneck_channels=16")
CAMPPLUS += ("model.block_layers=[1,2,1]", "model.embedding_dim=16")
XVECTOR = ("model.channels=16", "model.statistics_channels=24", "model.embedding_dim=16")
SMALL = {"campplus": CAMPPLUS, "se_resnet": SE_RESNET, "xvector": XVECTOR}
SMALL |= {model: RESNET for model in MODELS if model.startswith("resnet")}


def make(device: Device, folder: Path, *words: str, precision: str = "fp32") -> TrainingSetup:
    """A setup on the device, built by the code of a run; constructors may read."""
    config = load_config(parse_command_line([]).compose(["run_name=test", *words]))
    on_device = DeviceConfig(CUDA, precision, compiled=False)
    with device.waiting(), mock.patch("sv_sparse.training.setup.resolve_device_config", return_value=on_device):
        return build_setup(config, folder, load_corpus(config, folder))


@contextmanager
def training(
    device: Device, folder: Path, *words: str, precision: str = "fp32"
) -> Iterator[tuple[Trainer, TrainingSetup]]:
    """A run on the device that can be stepped."""
    general = [word for word in TINY if word.startswith("trainer.") and "log_interval" not in word]
    setup = make(device, folder, *general, "trainer.log_interval=2", *words, precision=precision)
    with ExitStack() as stack:
        with device.waiting():
            trainer = Trainer(setup, time.monotonic())
            stack.enter_context(trainer._training_mode())
            stack.enter_context(trainer.metrics.progress(0, 3))
        setup.network.train()
        yield trainer, setup
        trainer.metrics.close()


def train(folder: Path, *words: str, precision: str = "fp32") -> dict[bool, list[str]]:
    """Train for three steps, of which the second is logged; the waits of logged and of other steps."""
    waits: dict[bool, list[str]] = {True: [], False: []}
    with Device() as device, training(device, folder, *words, precision=precision) as (trainer, setup):
        device.value = 0  # no step failed
        size = setup.config.trainer.batch_size // setup.config.trainer.grad_accum_steps
        for step in range(3):
            indices = [
                [(0, number * size + row) for row in range(size)] for number in range(setup.sampler.grad_accum_steps)
            ]
            parts = [setup.dataset.__getitems__(part) for part in indices]
            crops = sum(len(part.labels) for part in parts)
            with device.waiting() as of_step:
                trainer._train_step(parts, crops)
                trainer.state.progress.step += 1
            waits[step == 1] += of_step
    return waits


def check(waits: dict[bool, list[str]]) -> None:
    """The law of waits."""
    assert waits[False] == []
    assert len(waits[True]) == 1, "\n".join(waits[True])
    assert re.fullmatch(r"sv_sparse/\S*trainer.py:\d+ _log_step: reads by tolist", waits[True][0]), waits[True]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Noises and rooms for augmentation."""
    return small_noise_store(tmp_path_factory.mktemp("noise"))


@pytest.mark.parametrize("augment", ["musan_rirs_speed", "musan_rirs"])
@on_fake_cuda
def test_a_step_on_augmented_speech_does_not_wait(augment, store, tones, tmp_path):
    words = [f"augment={augment}", f"augment.noise_dir={store}", "augment.aug_prob=1", "augment.spec_augment_prob=1"]
    words += ["trainer.batch_size=12", *tones.settings(), *ECAPA]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("model", MODELS)
@on_fake_cuda
def test_a_step_of_every_model_does_not_wait(model, tones, tmp_path):
    words = [*tones.settings(), f"model={model}", *SMALL.get(model, ECAPA)]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@on_fake_cuda
def test_a_step_of_every_way_to_sparsity_does_not_wait(sparsity, tones, tmp_path):
    target = [] if sparsity == "dense" else ["target_sparsity=0.5"]
    often = {"feedback_decaying": "every", "feedback_damped": "every"}
    controller = [f"sparsity.controller.{often[sparsity]}=1"] if sparsity in often else []
    words = [*tones.settings(), *ECAPA, f"sparsity={sparsity}", *target, *controller]
    check(train(tmp_path, *words))


@pytest.mark.parametrize("optim", OPTIMIZERS)
@on_fake_cuda
def test_a_step_of_every_optimizer_does_not_wait(optim, tones, tmp_path):
    check(train(tmp_path, *tones.settings(), *ECAPA, f"optim={optim}", "trainer.grad_accum_steps=2"))


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "kernel"])
@on_fake_cuda
def test_a_step_under_a_group_penalty_does_not_wait(granularity, tones, tmp_path):
    words = ["sparsity.penalty=group", f"sparsity.granularity={granularity}", "sparsity.init_density=1"]
    check(train(tmp_path, *tones.settings(), *ECAPA, *words))


@on_fake_cuda
def test_a_step_with_sub_centers_and_the_nearest_others_does_not_wait(tones, tmp_path):
    check(train(tmp_path, *tones.settings(), *ECAPA, "head.sub_centers=3", "head.topk=2"))


@pytest.mark.parametrize("crops", ["clean", "same"])
@on_fake_cuda
def test_a_step_with_a_teacher_does_not_wait(crops, finished, store, tones, tmp_path):
    augment = ["augment=musan_rirs_speed", f"augment.noise_dir={store}", "augment.aug_prob=1"]
    words = [*tones.settings(), *ECAPA, *augment, "augment.spec_augment_prob=1", f"distill.input={crops}"]
    teachers = [["teacher=self", f"init_from={finished}", "head=none", "target_sparsity=0.8"], [f"teacher={finished}"]]
    for number, teacher in enumerate(teachers):
        (tmp_path / str(number)).mkdir()
        check(train(tmp_path / str(number), *words, *teacher))


@on_fake_cuda
def test_a_step_in_bf16_does_not_wait(tones, tmp_path):
    check(train(tmp_path, *tones.settings(), *ECAPA, precision="bf16"))


@on_fake_cuda
def test_a_step_in_fp16_reads_the_scale_alone(tones, tmp_path):
    waits = train(tmp_path, *tones.settings(), *ECAPA, precision="fp16")
    assert waits[False]
    for wait in waits[False]:
        assert "trainer.py" in wait


@on_fake_cuda
def test_a_step_that_failed_ends_the_run_where_figures_are_fetched_and_before_they_are_kept(tones, tmp_path):
    words = [*tones.settings(), *ECAPA, "trainer.log_interval=1"]
    with Device() as device, training(device, tmp_path, *words) as (trainer, setup):
        batch = setup.dataset.__getitems__([(0, row) for row in range(4)])
        device.value = 1  # the first step failed, says whatever is read
        with device.waiting() as waits, pytest.raises(ArithmeticError, match="step 1: the loss or its gradient is not"):
            trainer._train_step([batch], 4)
    assert [wait.partition(" ")[2] for wait in waits[:1]] == ["_log_step: reads by tolist"]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("ending", ["feedback", "quantile", "gradual_magnitude", "teacher"])
@on_fake_cuda
def test_a_run_ends_on_one_device(ending, finished, tones, tmp_path):
    choice = [f"teacher={finished}", "head=none"] if ending == "teacher" else [f"sparsity={ending}"]
    words = [*tones.settings(), *ECAPA, *choice]
    with Device() as device, training(device, tmp_path, *words) as (trainer, setup):
        batch = setup.dataset.__getitems__([(0, row) for row in range(4)])
        device.value = 0
        trainer._train_step([batch], 4)
        device.value = 1  # zeros have no direction for a score
        plain = mock.patch.object(loader, "worker_settings", lambda workers, _: worker_settings(workers, "cpu"))
        with plain, device.waiting(), warnings.catch_warnings():  # without a GPU nothing is pinned
            warnings.filterwarnings("ignore", "land|finaliz")  # what is counted on a fake device is no count
            finalize(setup)
        for name, value in setup.network.state_dict().items():
            assert value.device == CUDA, name


def test_the_fake_device_is_not_in_the_process_of_other_tests():
    assert not isinstance(torch.zeros(()), FakeTensor)
    assert not torch.accelerator.is_available() or torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)) if not torch.cuda.is_available() else nullcontext():
        torch.zeros((), device="cuda")


WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "cpu": lambda x: x.cpu(),
    "to the CPU": lambda x: x.to("cpu", non_blocking=True),
    "into a CPU tensor": lambda x: torch.zeros(3).copy_(x),
    "blocking copy": lambda x: torch.zeros(3).to(x.device),
    "tensor from a number": lambda x: torch.tensor(0.5, device=x.device),
    "list as index": lambda x: x[[0, 1]],
}
REFUSED = {
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "boolean index that is set": lambda x: x.__setitem__(x > 0, x.sum()),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "two devices": lambda x: x + torch.zeros(3),
    "an index of the CPU": lambda x: x[torch.tensor([0, 1])],
    "a stack of two devices": lambda x: torch.stack([x.sum(), torch.zeros(())]),
}
SILENT = {
    "arithmetic": lambda x: (x * 2 + torch.zeros(())).clamp_(0, 1),
    "asynchronous copy": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "constant": lambda x: torch.full((), 0.5, device=x.device),
    "index": lambda x: x[torch.arange(2, device=x.device)],
    "number where": lambda x: x.__setitem__(x > 0, 0.0),
    "values of the CPU": lambda _: torch.arange(3).sum().item(),
}


@pytest.mark.parametrize("name", WAITING)
@on_fake_cuda
def test_a_wait_is_recorded_with_its_place(name):
    with Device() as device:
        x = torch.zeros(3, device=CUDA)
        with pytest.raises(WaitsError, match=r"test_fake_cuda.py:\d+ <lambda>: "), device.not_waiting():
            WAITING[name](x)


@pytest.mark.parametrize("name", REFUSED)
@on_fake_cuda
def test_what_cannot_go_on_without_a_wait_is_refused_with_its_place(name):
    with Device():
        x = torch.zeros(3, device=CUDA)
        with pytest.raises(WaitsError, match=r"test_fake_cuda.py:\d+ <lambda>: "):
            REFUSED[name](x)


@pytest.mark.parametrize("name", SILENT)
@on_fake_cuda
def test_what_does_not_wait_is_not_recorded(name):
    with Device() as device, device.not_waiting():
        SILENT[name](torch.zeros(3, device=CUDA))
