"""Laws of init_from: a run takes the settings of the run that it starts from, unless others are given."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.published import speechbrain_ecapa, wespeaker_resnet34
from helpers.tiny import TINY
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from sv_sparse.config.overrides import check_command_line
from sv_sparse.config.schema import Config, conf_dir, load_config, read_config
from sv_sparse.data.manifest import Manifest
from sv_sparse.training.init_from_config import describe_sources, register_init_sources

TAKEN = ("model", "data", "optim", "sparsity", "target_sparsity")
SHORT = tuple(word for word in TINY if not word.startswith("model."))


@pytest.fixture(autouse=True)
def _nothing_offered_afterwards():
    yield
    register_init_sources([])


def composed(*words: str) -> Config:
    """Return the settings of a command line, as a run loads them."""
    register_init_sources(words)
    check_command_line(words)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return load_config(config)


@pytest.fixture
def origin(tmp_path):
    """Make the folder of a finished run with some settings; nothing in it was trained."""

    def make(*words: str, name: str = "origin") -> str:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "model.pt").touch()
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed(*words).to_dict()))
        return str(folder)

    return make


FOLDER = ("data=folder", "data.root=/corpus/wav", "data.trial_lists=[/corpus/a.txt,/corpus/b.txt]")


@pytest.mark.parametrize(
    "words",
    [
        (*FOLDER, "data.max_unreadable_fraction=0.5", "data.corpus=mine", "target_sparsity=0.75"),
        (
            "model=resnet34",
            "data=voxceleb",
            "data.prepared_dir=/vox",
            "data.train_subsets=[vox1_dev,vox2_dev]",
            "optim=linbreg",
        ),
        ("model=ecapa_512", "model.channels=384", "optim=sgd", "optim.lr=0.005", "data.cache_dir=/demo", "seed=3"),
        (*FOLDER, "sparsity=gradual_magnitude", "sparsity.allocation=uniform", "optim.lr.dense_start=0.4"),
        ("data=cnceleb", "data.prepared_dir=/cn", "data.val_fraction=0", "target_sparsity=0"),
    ],
)
def test_a_run_has_the_settings_of_the_run_that_it_starts_from(origin, words):
    theirs = origin(*words)
    ours = composed(f"init_from={theirs}", "experiment=lmft")
    source = read_config(Path(theirs))
    assert taken(ours) == taken(source)
    assert ours.seed == 0
    assert ours.init_from == theirs


def taken(config: Config) -> dict:
    """Return what of the settings another run takes; the seed of its held-out speakers filled in."""
    settings = config.to_dict()
    return {name: settings[name] for name in TAKEN} | {"data": settings["data"] | {"val_seed": config.val_seed}}


def test_what_is_chosen_on_the_command_line_is_not_taken_over(origin):
    theirs = f"init_from={origin(*FOLDER, 'optim=linbreg', 'sparsity=quantile', 'target_sparsity=0.75')}"
    ours = composed(
        theirs, "data=voxceleb", "data.prepared_dir=/vox", "target_sparsity=0.5", "model=resnet34", "optim=sgd"
    )
    assert (ours.data.prepared_dir, ours.target_sparsity) == ("/vox", 0.5)
    assert ours.model.name == "resnet34"
    assert ours.optim.momentum == 0.9
    assert composed(theirs, "sparsity=fixed").target_sparsity == 0.75
    assert composed(theirs, "sparsity=dense").target_sparsity == 0


def test_single_values_change_those_of_the_run(origin):
    theirs = f"init_from={origin(*FOLDER, 'data.train_utterances=/corpus/train.txt')}"
    data = composed(theirs, "data.root=/other", "data.val_fraction=0.2").data
    assert (data.root, data.val_fraction, data.train_utterances) == ("/other", 0.2, "/corpus/train.txt")
    with pytest.raises(ValueError, match=r"unknown setting 'data.prepared_dir'; valid under data: corpus, "):
        composed(theirs, "data.prepared_dir=/vox")


def test_where_a_demo_lies_follows_its_cache(origin):
    data = composed(f"init_from={origin('data.cache_dir=/one')}", "data.cache_dir=/two").data
    assert (data.root, data.cache_dir) == ("/two/wav", "/two")


def test_an_experiment_that_chooses_data_and_model_keeps_them(origin):
    theirs = f"init_from={origin(*FOLDER, 'model=resnet34', 'target_sparsity=0.75')}"
    ours = composed(theirs, "experiment=wespeaker", "data.prepared_dir=/vox", "augment.noise_dir=/noise")
    assert (ours.data.corpus, ours.data.val_fraction) == ("voxceleb", 0)
    assert ours.model.name == "ecapa"
    assert ours.target_sparsity == 0.75


def test_a_dense_run_is_continued_dense_and_pruned_where_a_target_is_given(origin):
    theirs = f"init_from={origin(*FOLDER, 'sparsity=dense')}"
    assert composed(theirs).target_sparsity == 0
    assert composed(theirs, "target_sparsity=0.9").sparsity.penalty == "auto"


def test_another_seed_holds_out_the_same_speakers(origin):
    theirs = f"init_from={origin(*FOLDER, 'seed=3')}"
    ours = composed(theirs, "seed=5")
    assert (ours.seed, ours.val_seed) == (5, 3)


def test_features_stay_those_of_the_weights_unless_they_are_named_themselves(origin):
    theirs = f"init_from={origin(*FOLDER, 'model.features=wespeaker')}"
    assert composed(theirs).model.features == "wespeaker"
    # Another choice of model brings its settings, and not its features.
    ours = composed(theirs, "model=resnet34").model
    assert (ours.name, ours.features) == ("resnet34", "wespeaker")
    assert composed(theirs, "model.features=3dspeaker").model.features == "3dspeaker"


@pytest.mark.parametrize(
    ("weights", "model", "features"),
    [(speechbrain_ecapa, "ecapa", "speechbrain"), (wespeaker_resnet34, "resnet34", "wespeaker")],
)
def test_a_file_of_weights_brings_its_network_and_features(tmp_path, weights, model, features):
    torch.save(weights(), tmp_path / "weights.pt")
    theirs = f"init_from={tmp_path / 'weights.pt'}"
    assert (composed(theirs).model.name, composed(theirs).model.features) == (model, features)
    ours = composed("model=se_resnet", theirs).model
    assert (ours.name, ours.features) == ("se_resnet", features)
    assert composed(theirs, "model.features=sv_sparse").model.features == "sv_sparse"


def test_a_file_of_no_toolkit_brings_none(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    assert composed(f"init_from={tmp_path / 'weights.pt'}").model.features == "sv_sparse"


def test_a_model_of_the_users_own_is_taken_with_its_settings(origin):
    folder = origin(*FOLDER, "model=custom", "model._target_=mypkg.Network", "+model.width=3")
    assert composed(f"init_from={folder}").model == {"_target_": "mypkg.Network", "width": 3}
    words = (f"init_from={folder}", "model._target_=mypkg.Network", "model.width=5")
    assert composed(*words).model == {"_target_": "mypkg.Network", "width": 5}


@pytest.mark.parametrize("name", ["a b", "it's, [odd] {x}=1", "~"])
def test_a_run_may_have_any_name_and_be_named_with_a_slash_at_its_end(origin, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    origin(*FOLDER, name=name)
    escaped = name.replace("'", "\\'")
    for place in (f"{tmp_path}/{escaped}", f"{tmp_path}/{escaped}/", f"./{escaped}//", f"../{tmp_path.name}/{escaped}"):
        assert composed(f"init_from='{place}'").data.root == "/corpus/wav"


def test_each_job_of_a_sweep_has_the_settings_of_its_own_origin(origin):
    paths = [origin(*FOLDER, "model.channels=384", f"target_sparsity={t}", name=f"run {t}") for t in (0.5, 0.75)]
    paths.append(origin(*FOLDER, "model.channels=128", name="narrow"))
    paths.append(origin("model=resnet34", "data=voxceleb", "data.prepared_dir=/vox", name="vox"))
    words = ["-m", "init_from=" + ",".join(f"'{path}'" for path in paths), "experiment=lmft", "data.val_fraction=0"]
    register_init_sources(words)
    check_command_line(words)
    found = []
    for path in paths:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", [f"init_from='{path}'", *words[2:]], return_hydra_config=True)
        found.append((config.model.name, config.model.get("channels"), config.target_sparsity))
        assert config.data.corpus == ("voxceleb" if path.endswith("vox") else "folder")
    ecapas = [("ecapa", 384, 0.5), ("ecapa", 384, 0.75), ("ecapa", 128, 0.9)]
    assert found == [*ecapas, ("resnet34", None, 0.9)]


def test_a_begun_run_that_is_started_again_needs_no_more_of_what_it_started_from(origin, tmp_path):
    path = origin(*FOLDER, "model.channels=384", "target_sparsity=0.75")
    begun = tmp_path / "begun"
    words = (f"init_from={path}", f"run_dir={begun}", "experiment=lmft", "trainer.epochs=2", "model.channels=128")
    settings = composed(*words)
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "config.yaml").write_text(OmegaConf.to_yaml(settings.to_dict()))
    shutil.rmtree(path)
    with pytest.raises(ValueError, match=f"^init_from={path}: no such file or folder$"):
        composed(*words)  # without a checkpoint it begins anew
    (begun / "checkpoints" / "last.pt").touch()
    assert composed(*words) == settings
    assert composed(*words, "head.scale=31") == replace(settings, head=replace(settings.head, scale=31))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "cannot be read"),
        (b"left\n", "its settings are not those of this version"),
        (b"a: 1\n", "its settings are not those of this version"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_damaged_settings_of_a_run_are_refused_by_name(origin, content, message):
    folder = origin(*FOLDER)
    with open(f"{folder}/config.yaml", "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match=rf"^init_from={folder}: {folder}/config.yaml .*{message}"):
        composed(f"init_from={folder}")


def test_what_is_no_run_is_refused_before_anything_is_composed_or_made(train, tmp_path):
    done = train("experiment=lmft", "init_from=mistyped")
    assert done.status == 2
    assert f"error: init_from=mistyped: no such file or folder in {Path.cwd()}" in done.err
    done = train("-m", f"init_from=null,{tmp_path}")
    assert "init_from=null beside runs: give a command of its own" in done.err
    assert not list(tmp_path.iterdir())


def test_fine_tuning_needs_nothing_but_the_run(train, finished, tmp_path):
    done = train("experiment=lmft", *SHORT, f"init_from={finished}/", "seed=7", f"run_dir={tmp_path / 'after'}")
    assert done.status == 0, done.err
    before, after = read_config(finished), read_config(tmp_path / "after")
    assert taken(after) == taken(before)
    assert done.out.splitlines()[:2] == [
        f"corpus: folder, {before.data.root}",
        f"init_from: {finished}; as there: model, data, optim, sparsity, target_sparsity",
    ]
    held_out = Manifest(tmp_path / "after" / "manifest.parquet").speakers("validation")
    assert held_out == Manifest(finished / "manifest.parquet").speakers("validation") != []
    assert json.loads((tmp_path / "after" / "results.json").read_text())["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert train(f"resume_from={tmp_path / 'after'}").status == 0


def test_the_log_says_what_is_other_than_in_the_run(finished):
    ours = composed(f"init_from={finished}", "target_sparsity=0.5", "sparsity=quantile")
    line = describe_sources(ours)["init_from"]
    assert "as there: model, data, optim; other than there: sparsity.controller." in line
    assert line.endswith(" more")


def test_a_sweep_starts_each_run_from_its_own(train, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    settings = replace(read_config(other), target_sparsity=0.5)
    (other / "config.yaml").write_text(OmegaConf.to_yaml(settings.to_dict()))
    # After a step or two AdaBreg has moved all duals equally far, and equal ones cannot be told apart.
    done = train("-m", *SHORT, f"init_from={finished},{other}", "trainer.max_steps=6")
    assert done.status == 0, done.err
    found = {read_config(run).init_from: read_config(run) for run in (tmp_path / "runs").glob("2*")}
    assert {path: run.target_sparsity for path, run in found.items()} == {str(finished): 0.8, str(other): 0.5}
    assert {run.data.root for run in found.values()} == {settings.data.root}


def test_a_network_file_brings_its_runs_settings_wherever_it_lies(finished, tmp_path):
    before = read_config(finished)
    elsewhere = shutil.copy(finished / "checkpoints" / "model.pt", tmp_path / "copy.pt")
    for path in (finished / "checkpoints" / "model.pt", elsewhere):
        after = composed(f"init_from={path}")
        assert taken(after) == taken(before)
        assert describe_sources(after)["init_from"] == (
            f"{path}; as there: model, data, optim, sparsity, target_sparsity"
        )


def test_weights_of_another_toolkit_bring_no_data_and_the_log_says_so(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    ours = composed(f"init_from={tmp_path / 'weights.pt'}")
    assert ours.data.corpus == "demo"
    sources = describe_sources(ours)
    assert "data=demo is the default" in sources["corpus"]
    assert sources["init_from"].endswith("weights.pt, which does not say what it was trained on")


def test_a_run_that_is_known_only_when_settings_are_composed_needs_its_data(train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run_0")
    done = train(*SHORT, f"init_from='{tmp_path}/run_${{seed}}'")
    assert done.status == 2
    assert "without ${...}; give model= and data= here" in done.err
    data = read_config(finished).data
    words = ["data=folder", f"data.root={data.root}", f"data.trial_lists={data.trial_lists}", "trainer.max_steps=2"]
    done = train(*TINY, *words, f"init_from='{tmp_path}/run_${{seed}}'")
    assert done.status == 0, done.err


def test_the_printed_configuration_is_that_of_the_run(train, finished):
    done = train(f"init_from={finished}", "--cfg", "job", "--resolve")
    assert f"root: {read_config(finished).data.root}" in done.out
