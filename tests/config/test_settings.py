"""Laws of the command line: every file of conf/ composes, and what is not allowed is named with what is."""

import copy
import math
from inspect import signature

import pytest
from helpers.tiny import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from sv_sparse.config.settings import automatic_workers, check, flat

from sv_sparse.config.overrides import check_names
from sv_sparse.training.run_dir import resumed

CONF = ROOT / "conf"
CHOICES = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml"))

NEEDED = {
    "folder": ["data.root=/a", "data.trial_lists=/b"],
    "voxceleb": ["data.prepared_dir=/a"],
    "cnceleb": ["data.prepared_dir=/a"],
    "musan_rirs": ["augment.noise_dir=/a"],
    "full": ["augment.noise_dir=/a"],
    "lmft": ["init_from=/a"],
    "paper": ["data.prepared_dir=/a"],
    "strong": ["data.prepared_dir=/a", "augment.noise_dir=/a"],
}


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["run_name=test", *overrides])


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_names_a_class_that_takes_its_settings(group, choice):
    needed = [setting for name, settings in NEEDED.items() if name in choice for setting in settings]
    config = composed(f"{group}={choice}", *needed)
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check(settings)
    if group == "experiment":  # it has no settings of its own
        return
    for node in (settings[group], settings[group].get("controller"), settings[group].get("make")):
        if node and "_target_" in node:
            target = get_object(node["_target_"])
            instantiated = {name for name in node if not name.startswith("_")}
            assert instantiated <= set(signature(target).parameters)


def test_group_files_are_short_lists_of_scalars():
    for file in CONF.glob("*/*.yaml"):
        assert len(file.read_text().splitlines()) <= 25, file


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("modle=ecapa", r"unknown setting 'modle'; valid: target_sparsity, .*groups with choices: .*model"),
        ("model=ecappa", r"model=ecappa: expected one of ecapa, ecapa_256, ecapa_512, ecapa_speechbrain, resnet34"),
        ("model=ecapa,ecappa", r"model=ecappa: expected one of"),
        ("trainer.epoch=3", r"unknown setting 'trainer.epoch'; valid under trainer: epochs, steps, batch_size"),
        ("optim.betas.first=1", r"unknown setting 'optim.betas.first'; valid under optim.betas: nothing"),
        ("+extra=1", r"unknown setting 'extra'"),
        ("++trainer.extra=1", r"unknown setting 'trainer.extra'"),
        ("~seed", r"~seed: settings cannot be removed"),
        ("epochs", r"cannot read 'epochs': expected SETTING=VALUE"),
    ],
)
def test_an_argument_that_names_nothing_is_refused_with_the_valid_names(argument, message):
    with pytest.raises(ValueError, match=message):
        check_names([argument], CONF)


def test_valid_names_pass_also_in_a_sweep_and_inside_a_chosen_group():
    check_names(["-m", "optim=linbreg", "optim.momentum=0.9", "target_sparsity=0.5,0.9", "model=resnet34"], CONF)
    check_names(["-m", "model=glob(*)", "seed=range(0,3)", "trainer.epochs=2", "run_name='a b'"], CONF)


def test_options_of_the_launcher_may_take_their_value_as_a_word_of_its_own():
    check_names(["--cfg", "job", "-p", "trainer", "-m", "seed=1,2"], CONF)


def test_processes_on_a_machine_share_its_cores_among_their_workers(monkeypatch):
    counts = {}
    for processes in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setattr("sv_sparse.config.settings.cpu_count", lambda: 16)
        counts[processes] = automatic_workers()
    assert counts == {"1": 8, "4": 3, "64": 0}


def test_a_setting_of_a_choice_not_taken_is_refused():
    with pytest.raises(ValueError, match="unknown setting 'optim.momentum'; valid under optim: lr, lambda_, betas"):
        check_names(["optim.momentum=0.9"], CONF)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target_sparsity=1.5", "target_sparsity must be a number, at least 0 and below 1, got 1.5"),
        ("target_sparsity=1", "target_sparsity must be .* got 1"),
        ("target_sparsity=90%", "target_sparsity must be .* got '90%'"),
        ("seed=-1", r"seed must be a whole number, 0 or more and below 2\*\*63, got -1"),
        ("run_name=a/b", "name must be a word without /, got 'a/b'"),
        ("trainer.epochs=0", "trainer.epochs must be a whole number, 1 or more, got 0"),
        ("trainer.batch_size=1", "trainer.batch_size must be a whole number, 2 or more, got 1"),
        ("trainer.crop_seconds=0.1", "trainer.crop_seconds must be a number, 0.2 or more, got 0.1"),
        ("trainer.device=gpu", "trainer.device must be one of auto, cpu, cuda, got 'gpu'"),
        ("trainer.precision=fp8", "trainer.precision must be one of auto, bf16, fp16, fp32, got 'fp8'"),
        ("trainer.compile=maybe", "trainer.compile must be auto, true or false, got 'maybe'"),
        ("trainer.max_steps=0", "trainer.max_steps must be null or a whole number, 1 or more, got 0"),
        ("trainer.num_avg=3", "trainer.keep_last must be at least 3, the epochs that are needed, got 2"),
        ("trainer.checkpoint_interval_minutes=0", "trainer.checkpoint_interval_minutes must be null or a number above 0, got 0"),
        ("trainer.max_grad_norm=0", "trainer.max_grad_norm must be null or a number above 0, got 0"),
        ("head.margin_warmup_start=0.5", "head.margin_warmup_start must be at most head.margin_warmup_end, got 0.5 and 0.27"),
        (
            "data.val_seed=-1",
            r"data.val_seed must be a whole number, 0 or more and below 2\*\*63, got -1",
        ),
        ("sparsity.init_density=0", "sparsity.init_density must be a number above 0 and at most 1, got 0"),
        ("sparsity.sparsify_head=maybe", "sparsity.sparsify_head must be true or false, got 'maybe'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(override, message):
    with pytest.raises(ValueError, match=message):
        check(OmegaConf.to_container(composed(override), resolve=True))


def refused(settings, name: str) -> bool:
    """Return whether settings are refused before any data are read, in a sentence that names the setting."""
    try:
        check(settings)
    except ValueError as error:
        return name in str(error)
    return False


def changed(settings, name: str, value: object):
    """Settings with one of them changed."""
    other = copy.deepcopy(settings)
    *groups, last = name.split(".")
    node = other
    for group in groups:
        node = node[group]
    node[last] = value
    return other


def wrong_values(default: object) -> list[object]:
    """Values of another kind than a default, none of which any setting with such a default takes."""
    not_finite = [math.nan, math.inf, -math.inf]
    if isinstance(default, bool):
        return [None, "maybe", "", 0.5, [True], *not_finite]
    if isinstance(default, (int, float)):
        return [None, "x", "", True, [1], {"a": 1}, *not_finite]
    if isinstance(default, str):
        return [None, "", True, [[]], {"a": 1}, *not_finite]
    if isinstance(default, list):
        return [None, "", True, {"a": 1}, [None], [""], *([value] for value in not_finite), *not_finite]
    return ["", True, {"a": 1}, [None], *not_finite]  # null


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_each_setting_of_each_choice_refuses_values_of_another_kind_by_its_name(group, choice):
    needed = [setting for name, settings in NEEDED.items() if name in choice for setting in settings]
    settings = OmegaConf.to_container(composed(f"{group}={choice}", *needed), resolve=True)
    accepted = []
    for name, default in flat(settings).items():
        own = name.startswith(f"{group}.") or (group, choice) == ("trainer", "default")
        if own and not name.rpartition(".")[2].startswith("_"):
            accepted += [
                (name, value) for value in wrong_values(default) if not refused(changed(settings, name, value), name)
            ]
    # Comments in conf/ name the first three; without its store, Augmentation refuses to have a probability.
    allowed = {
        "trainer": {("trainer.compile", True), ("trainer.checkpoint_interval_minutes", None), ("trainer.max_grad_norm", None)}
    }
    by_constructor = {("augment.noise_dir", None)} if choice in {"full", "musan_rirs"} else set()
    assert set(accepted) == allowed.get(group, set()) | by_constructor


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.trial_lists=null", "data.trial_lists must be text or a list, each text, got null"),
        ("data.root=null", "data.root must be text, got null"),
        ("data.trial_lists=[a,null]", r"data.trial_lists must be text or a list, each text, got \['a', None\]"),
        ("trainer.crop_seconds=nan", "trainer.crop_seconds must be a number, 0.2 or more, got nan"),
        ("trainer.crop_seconds=null", "trainer.crop_seconds must be a number, 0.2 or more, got null"),
        ("trainer.max_grad_norm=inf", "trainer.max_grad_norm must be null or a number above 0, got inf"),
        ("trainer.best_sparsity_tolerance=inf", "trainer.best_sparsity_tolerance must be a number, 0 or more, got inf"),
        ("trainer=null", "trainer=None: expected one of default"),
        ("optim.lr=null", r"optim.lr must be above 0, one number or \{sparse: number, .*\}, got null"),
        ("optim.lr.sparse_start=nan", "optim.lr.sparse_start must be a number, got nan"),
        ("optim.betas=0.9", "optim.betas must be a list, each a number, got 0.9"),
        ("sparsity.controller.alpha=-inf", "sparsity.controller.alpha must be a number, got -inf"),
        ("sparsity.controller.ramp=[0.1,nan]", "sparsity.controller.ramp must be null or a list, each a number, got"),
        ("sparsity.controller=null", "sparsity.controller must be settings by their names, got null"),
        ("sparsity.controller={alpha:nan}", "sparsity.controller.alpha must be a number, got nan"),
        ("sparsity.controller={beta:1}", "unknown setting 'sparsity.controller.beta'; valid under sparsity.controller"),
        ("model.channels=null", "model.channels must be a whole number, got null"),
        ("model.channels=16.5", "model.channels must be a whole number, got 16.5"),
        ("model.layout=''", "model.layout must be text, got ''"),
        ("scoring.p_target=nan", "scoring.p_target must be a number or a list, each a number, got nan"),
        ("augment.speed_perturb=[1,inf]", r"augment.speed_perturb must be a list, each a number, got \[1, inf\]"),
        ("runs_dir=null", "runs must be a folder, got null"),
    ],
)
def test_a_value_of_another_kind_is_refused_on_the_command_line_before_anything_else(argument, message):
    with pytest.raises(ValueError, match=message):
        check_names(["data=folder", argument], CONF)


def test_settings_of_a_list_may_be_one_and_null_stands_where_it_is_the_default():
    words = ["scoring.p_target=0.01", "data.trial_lists=a", "data.speaker_metadata=b.csv", "sparsity.controller.ramp=[0.1,0.5]"]
    check_names(["data=folder", *words, "data.train_utterances=null", "optim.lr=0.01", "trainer.epochs=${seed}"], CONF)


def test_a_stored_run_with_a_value_that_is_not_allowed_is_refused_by_its_setting(tmp_path):
    settings = OmegaConf.to_container(composed("data=folder", "data.root=/a", "data.trial_lists=/b"), resolve=True)
    settings["head"]["scale"] = math.nan
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    with pytest.raises(ValueError, match="head.scale must be a number, got nan"):
        resumed(tmp_path, [])


def test_a_run_that_an_earlier_version_stored_goes_on_without_the_settings_that_came_since(tmp_path):
    settings = OmegaConf.to_container(composed("data=folder", "data.root=/a", "data.trial_lists=/b"), resolve=True)
    for name in ("dense", "sparse"):
        del settings["sparsity"][name]
    del settings["data"]["validation_seed"], settings["runs"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    stored, _ = resumed(tmp_path, [])
    assert (stored["sparsity"]["dense"], stored["sparsity"]["sparse"]) == ([], [])
