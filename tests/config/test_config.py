"""Laws of the settings: every choice composes, and what is not allowed is named with what is."""

import math
import re
from dataclasses import fields, is_dataclass

import pytest
from omegaconf import OmegaConf

from sv_sparse.config.help import INTRODUCTION, format_help
from sv_sparse.config.overrides import (
    GROUPS,
    OWN_CLASSES,
    _check_group,
    _updated,
    check_command_line,
    complete_command_line,
    parse_command_line,
)
from sv_sparse.config.schema import Config, default_num_workers, flatten, load_config
from sv_sparse.training.run_dir import open_resumed

CHOICES = [(group, choice) for group in GROUPS for choice in parse_command_line([]).choices(group)]
NEEDED = {
    "folder": ["data.root=/a", "data.trial_lists=/b"],
    "audio": ["data.root=/a", "head=none", "teacher=/a"],
    "prepared": ["data.corpus=c", "data.prepared_dir=/a", "data.train_subsets=[a]", "data.trial_lists=[b]"],
    "voxceleb": ["data.prepared_dir=/a"],
    "cnceleb": ["data.prepared_dir=/a"],
    "musan_rirs": ["augment.noise_dir=/a"],
    "lmft": ["init_from=/a"],
    "none": ["teacher=/a"],
    "paper": ["data.prepared_dir=/a"],
    "wespeaker": ["data.prepared_dir=/a", "augment.noise_dir=/a"],
}
FOLDER = ["data=folder", "data.root=/a", "data.trial_lists=/b"]


def words_of(group: str, choice: str) -> list[str]:
    """Return overrides that choose something, with the settings that it needs."""
    words = [f"{group}={choice}"]
    if choice == "custom":
        setting = "sparsity.controller" if group == "sparsity" else group
        words.append(f"{setting}._target_=mypkg.Own")
    for name, settings in NEEDED.items():
        if name in choice and (group, name) != ("sparsity", "paper"):
            words += settings
    return words


def composed(*overrides: str) -> Config:
    return load_config(parse_command_line(overrides).compose(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_is_the_same_after_it_was_stored(group, choice):
    words = words_of(group, choice)
    check_command_line(words)
    config = composed(*words)
    stored = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(config.to_dict())))
    assert Config.from_dict(stored) == config


def test_settings_from_before_the_choice_of_features_mean_ours():
    stored = composed("model=se_resnet", "model.features=wespeaker").to_dict()
    assert Config.from_dict(stored).model.features == "wespeaker"
    del stored["model"]["features"]
    assert Config.from_dict(stored).model.features == "sv_sparse"


@pytest.mark.parametrize(("per_layer", "allocation"), [(True, "uniform"), (False, "global")])
def test_magnitude_pruning_of_version_0_2_is_read(per_layer, allocation):
    stored = composed("sparsity=gradual_magnitude").to_dict()
    del stored["sparsity"]["allocation"]
    stored["sparsity"]["controller"]["per_layer"] = per_layer
    assert Config.from_dict(stored) == composed("sparsity=gradual_magnitude", f"sparsity.allocation={allocation}")


def test_statistics_can_be_frozen_only_in_a_trained_network():
    with pytest.raises(ValueError, match="trainer.batch_norm=frozen .* without init_from .* must be auto or batch"):
        composed("trainer.batch_norm=frozen")
    composed("trainer.batch_norm=frozen", "init_from=/a")


def test_every_example_in_the_help_is_a_command_line_that_is_taken():
    examples = re.findall(r"^  python train\.py(.*?)  ", INTRODUCTION, re.MULTILINE)
    assert len(examples) == 6
    for example in examples:
        check_command_line(example.split())


def test_every_setting_has_a_sentence_in_the_help():
    help_text = format_help([])
    for group in (Config, *{type(node) for node in vars(composed()).values() if is_dataclass(node)}):
        for setting in fields(group):
            assert setting.metadata["help"].endswith(".")
    for name in flatten(composed().to_dict()):
        # A choice such as model=ecapa sets its name; it is no setting of its own.
        is_choice = name.endswith(".name")
        assert (f"  {name} (" in help_text) is not is_choice, name
    assert "optim.momentum (float, 0.9)  Momentum." in format_help(["optim=sgd", "--help"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("modle=ecapa", r"unknown setting 'modle'; valid: target_sparsity, .*groups with choices: model"),
        ("model=ecappa", r"model=ecappa: expected one of campplus, custom, ecapa, ecapa_256, .*; did you mean ecapa\?"),
        ("model=ecapa,ecappa", r"model=ecappa: expected one of"),
        ("trainer.epoch=3", r"unknown setting 'trainer.epoch'; valid under trainer: .*; did you mean trainer.epochs\?"),
        ("epochs=3", r"unknown setting 'epochs'; .*; did you mean trainer.epochs\?"),
        ("optim.betas.first=1", r"unknown setting 'optim.betas.first'; valid under optim.betas: nothing"),
        ("+extra=1", r"unknown setting 'extra'"),
        ("++trainer.extra=1", r"unknown setting 'trainer.extra'"),
        ("+model.width=1", r"unknown setting 'model.width'"),
        ("~seed", r"~seed: settings cannot be removed"),
        ("epochs", r"cannot read 'epochs': expected SETTING=VALUE"),
        ("optim.momentum=0.9", "unknown setting 'optim.momentum'; valid under optim: lr, lambda_init, betas"),
        ("model.name=resnet34", "model.name comes with the choice of model; choose model=NAME"),
        (
            "sparsity.controller.name=paper",
            "sparsity.controller.name comes with the choice of sparsity; choose sparsity=",
        ),
        ("--config-dir=nowhere", "no such folder: .*nowhere"),
    ],
)
def test_an_argument_that_names_nothing_is_refused_with_the_valid_names(argument, message):
    with pytest.raises(ValueError, match=message):
        check_command_line([argument])


def test_an_argument_of_a_class_of_the_users_own_is_told_to_take_a_plus():
    with pytest.raises(ValueError, match=r"another argument of your class is added with a plus: \+model.width=VALUE"):
        check_command_line(["model=custom", "model._target_=mypkg.Net", "model.width=3"])


def test_a_class_of_the_users_own_takes_the_place_of_an_experiments_model():
    words = complete_command_line(["experiment=wespeaker", "model._target_=mypkg.Net"])
    check_command_line([*words, "data.prepared_dir=/vox", "augment.noise_dir=/noise"])


def test_valid_names_pass_also_in_a_sweep_and_inside_a_chosen_group():
    check_command_line(["-m", "optim=linbreg", "optim.momentum=0.9", "target_sparsity=0.5,0.9", "model=resnet34"])
    check_command_line(["-m", "model=glob(*)", "seed=range(0,3)", "trainer.epochs=2", "run_name='a b'"])
    check_command_line(["--cfg", "job", "-p", "trainer", "-m", "seed=1,2"])


def test_configuration_outside_the_project_is_known_to_the_check_and_to_the_help(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tdnn.yaml").write_text("_target_: mypkg.TDNN\nwidth: 64\n")
    for option in (["--config-dir", str(tmp_path)], [f"hydra.searchpath=[file://{tmp_path}]"]):
        words = [*option, "model=tdnn", "model.width=32", "+model.depth=3"]
        check_command_line(words)
        with pytest.raises(ValueError, match="model.widht.*did you mean model.width"):
            check_command_line([*words, "model.widht=3"])
        assert "model.width (64)" in format_help([*option, "model=tdnn"])


def test_a_class_on_the_command_line_chooses_the_model_without_settings_of_another():
    words = complete_command_line(["model._target_=mypkg.Net", "+model.width=3"])
    check_command_line(words)
    assert composed(*words).model == {"_target_": "mypkg.Net", "width": 3}
    words = complete_command_line(["head._target_=mypkg.Loss", "sparsity.controller._target_=mypkg.Rule"])
    check_command_line([*words, "+head.scale=3", "+sparsity.controller.gain=0.5"])
    config = composed(*words, "+head.scale=3", "+sparsity.controller.gain=0.5")
    assert config.head == {"_target_": "mypkg.Loss", "scale": 3}
    assert config.sparsity.controller == {"_target_": "mypkg.Rule", "gain": 0.5}
    assert config.classes == {"head": "mypkg.Loss", "sparsity.controller": "mypkg.Rule"}
    with pytest.raises(ValueError, match=r"unknown setting 'head.scale'; .* \+head.scale=VALUE"):
        check_command_line([*words, "head.scale=3"])
    assert complete_command_line(["init_from=RUN", "model._target_=a.B"]) == ["init_from=RUN", "model._target_=a.B"]


def test_a_transform_of_ones_own_stands_beside_the_settings_of_its_group():
    for choice in ([], ["augment=musan_rirs", "augment.noise_dir=/store"]):
        words = complete_command_line([*choice, "augment.transform._target_=mypkg.Codec", "+augment.transform.rate=8"])
        check_command_line(words)
        config = composed(*words)
        assert config.augment.transform == {"_target_": "mypkg.Codec", "rate": 8}
        assert config.augment.aug_prob == (0.6 if choice else 0.0)
        assert config.classes == {"augment.transform": "mypkg.Codec"}
        assert Config.from_dict(config.to_dict()) == config
    assert composed().classes == {}
    for words in (["+augment.transform.rate=8"], ["augment.transform=null"], ["augment.transform=codec"]):
        with pytest.raises(ValueError, match=r"augment.transform must be a class, augment.transform._target_=..., and"):
            composed(*words)


def test_arguments_of_ones_own_class_may_be_groups_of_settings():
    for setting in OWN_CLASSES:
        words = complete_command_line([f"{setting}._target_=mypkg.Own", f"+{setting}.encoder.width=3"])
        check_command_line(words)
        own = OmegaConf.select(parse_command_line([]).compose(words), setting)
        assert own == {"_target_": "mypkg.Own", "encoder": {"width": 3}}


def test_a_controller_of_ones_own_is_not_named_by_an_argument():
    words = complete_command_line(["sparsity.controller._target_=mypkg.Rule", "+sparsity.controller.name=fixed"])
    assert composed(*words).sparsity.controller_name == "Rule"


def test_a_loss_of_ones_own_is_fine_tuned_without_the_margins_of_another():
    words = complete_command_line(["experiment=lmft", "init_from=RUN", "head._target_=mypkg.Loss"])
    assert parse_command_line([]).compose(words).head == {"_target_": "mypkg.Loss"}
    assert parse_command_line([]).compose(["experiment=lmft"]).head.margin == 0.5


def test_processes_on_a_machine_share_its_cores_among_their_workers(monkeypatch):
    counts = {}
    for processes in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setattr("sv_sparse.config.schema.cpu_count", lambda: 16)
        counts[processes] = default_num_workers()
    assert counts == {"1": 8, "4": 3, "64": 0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target_sparsity=1.5", "target_sparsity must be a number, at least 0 and below 1, got 1.5"),
        ("target_sparsity=1", "target_sparsity must be .* got 1"),
        ("target_sparsity=90%", "target_sparsity must be a number, got '90%'"),
        ("seed=-1", r"seed must be a whole number, 0 or more and below 2\*\*63, got -1"),
        ("run_name=a/b", "run_name must be a word without /, or null, got 'a/b'"),
        ("runs_dir=null", "runs_dir must be text, got null"),
        ("trainer.epochs=0", "trainer.epochs must be a whole number, 1 or more, got 0"),
        ("trainer.epochs=1.5", "trainer.epochs must be a whole number, got 1.5"),
        ("trainer.batch_size=1", "trainer.batch_size must be a whole number, 2 or more, got 1"),
        ("trainer.crop_seconds=0.1", "trainer.crop_seconds must be a number, 0.2 or more, got 0.1"),
        ("trainer.device=gpu", "trainer.device must be one of auto, cpu, cuda, got 'gpu'"),
        ("trainer.precision=fp8", "trainer.precision must be one of auto, bf16, fp16, fp32, got 'fp8'"),
        ("trainer.compile=maybe", "trainer.compile must be auto, true or false, got 'maybe'"),
        ("trainer.max_steps=-1", "trainer.max_steps must be null or a whole number, 0 or more, got -1"),
        ("trainer.num_avg=3", "trainer.keep_last must be at least 3, the epochs that are needed, got 2"),
        ("trainer.checkpoint_interval_minutes=0", "trainer.checkpoint_interval_minutes must be null or a number above"),
        ("trainer.max_grad_norm=0", "trainer.max_grad_norm must be null or a number above 0, got 0"),
        ("trainer.max_grad_norm=inf", "trainer.max_grad_norm must be a finite number, got inf"),
        ("trainer=null", "trainer=None: expected one of default"),
        ("head.margin_warmup_start=0.5", "head.margin_warmup_start must be at most head.margin_warmup_end, got 0.5"),
        ("data.val_seed=-1", r"data.val_seed must be null or a whole number, 0 or more and below 2\*\*63, got -1"),
        ("data.trial_lists=null", "data.trial_lists must be text, or a list of texts, got null"),
        ("data.trial_lists=[a,null]", r"data.trial_lists must be text, or a list of texts, got \['a', None\]"),
        ("data.root=null", "data.root must be text, got null"),
        ("sparsity.init_density=0", "sparsity.init_density must be a number above 0 and at most 1, got 0"),
        ("sparsity.sparsify_head=maybe", "sparsity.sparsify_head must be true or false, got 'maybe'"),
        ("sparsity.controller.alpha=-inf", "sparsity.controller.alpha must be a finite number, got -inf"),
        ("sparsity.controller.ramp_start=0.1", "go together: two numbers, both null or both auto, got 0.1 and"),
        ("sparsity.controller=null", "sparsity.controller must be settings by their names, got null"),
        ("sparsity.controller={alpha:nan}", "sparsity.controller.alpha must be a finite number, got nan"),
        ("sparsity.controller={beta:1}", "unknown setting 'sparsity.controller.beta'; valid under sparsity.controller"),
        ("optim.lr=null", r"optim.lr must be above 0, one number or \{sparse_start: number, .*\}, got null"),
        ("optim.lr.sparse_start=nan", "optim.lr.sparse_start must be a finite number, got nan"),
        ("optim.betas=0.9", "optim.betas must be a list, each a number, got 0.9"),
        ("model.channels=null", "model.channels must be a whole number, got null"),
        ("model.channels=16.5", "model.channels must be a whole number, got 16.5"),
        ("model.layout=''", "model.layout must be a text that is not empty, got ''"),
        ("scoring.p_target=nan", "scoring.p_target must be a finite number, got nan"),
        ("augment.speed_perturb=[1,inf]", "augment.speed_perturb must be a finite number, got inf"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(override, message):
    with pytest.raises(ValueError, match=message):
        check_command_line(["data=folder", override])


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] != "experiment"])
def test_each_setting_of_each_choice_refuses_values_of_another_kind_by_its_name(group, choice):
    node = parse_command_line([]).compose(words_of(group, choice))
    accepted = []
    for name, default in flatten(OmegaConf.to_container(node[group])).items():
        for value in wrong_values(default):
            message = refusal(f"{group}.{name}", value, node)
            if message is None:
                accepted.append((name, value))
            else:
                assert name in message
    # Of a class of the user's own nothing is known; and these may be null.
    nullable = {"max_grad_norm", "checkpoint_interval_minutes", "noise_dir", "controller.initial_sparsity"}
    unexpected = [(name, value) for name, value in accepted if not (name in nullable and value is None)]
    targets = {"sparsity": "controller._target_"}
    assert unexpected == ([(targets.get(group, "_target_"), None)] if choice == "custom" else [])


def refusal(name: str, value: object, node) -> str | None:
    """Return why a value is refused, None if it is not."""
    try:
        _check_group(name, _updated(node, name, value))
    except ValueError as error:
        return str(error)
    return None


def wrong_values(default: object) -> list[object]:
    """Values of another kind than a default, none of which any setting with such a default takes."""
    not_finite = [math.nan, math.inf, -math.inf]
    if isinstance(default, bool):
        return [None, "maybe", "", 0.5, *not_finite]
    if isinstance(default, (int, float)):
        return [None, "x", "", {"a": 1}, *not_finite]
    if isinstance(default, str):
        return [None, "", {"a": 1}, *not_finite]
    if isinstance(default, list):
        return [None, "", {"a": 1}, [None], [""], *not_finite]
    return ["", {"a": 1}, *not_finite]  # null


def test_a_list_may_be_one_value_and_null_stands_where_it_is_the_default():
    words = ["scoring.p_target=0.01", "data.trial_lists=a", "data.speaker_metadata=b.csv", "trainer.epochs=${seed}"]
    ramp = ["sparsity.controller.ramp_start=0.1", "sparsity.controller.ramp_end=0.5"]
    check_command_line(["data=folder", *words, "data.train_utterances=null", "optim.lr=0.01"])
    assert composed(*FOLDER, *ramp).sparsity.controller.arguments()["ramp_end"] == 0.5


def stored_run(folder, settings) -> None:
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("scale", math.nan, "head.scale must be a finite number, got nan"), ("scail", 1, "not those of this version")],
)
def test_a_stored_run_with_a_value_or_setting_that_is_not_allowed_is_refused(tmp_path, name, value, message):
    settings = composed(*FOLDER).to_dict()
    settings["head"][name] = value
    stored_run(tmp_path, settings)
    with pytest.raises(ValueError, match=message):
        open_resumed(tmp_path, [])


def test_a_stored_head_without_a_name_is_aam_softmax(tmp_path):
    """As in runs of version 0.2, which know no teacher either."""
    settings = composed(*FOLDER, "head=large_margin").to_dict()
    del settings["head"]["name"], settings["distill"], settings["teacher"]
    stored_run(tmp_path, settings)
    assert open_resumed(tmp_path, []).config == composed(*FOLDER, "head=large_margin")


def test_a_setting_that_a_stored_run_lacks_has_its_default(tmp_path):
    settings = composed(*FOLDER).to_dict()
    del settings["sparsity"]["dense"], settings["trainer"]["profile"], settings["runs_dir"], settings["scoring"]
    stored_run(tmp_path, settings)
    assert open_resumed(tmp_path, []).config == composed(*FOLDER)


@pytest.mark.parametrize("choice", ["feedback", "gradual_magnitude"])
def test_a_bound_of_the_ramp_may_be_a_whole_number(choice):
    words = (f"sparsity={choice}", "sparsity.controller.ramp_start=0", "sparsity.controller.ramp_end=1")
    check_command_line(words)
    controller = composed(*words).sparsity.controller
    assert (controller.ramp_start, controller.ramp_end) == (0, 1)
