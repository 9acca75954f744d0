"""Runs that start from another toolkit's weights."""

import json

import pytest
import torch
from helpers.published import speechbrain_ecapa
from helpers.tiny import TINY

from sv_sparse.config.schema import read_config
from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.pretrained.name_maps import THREED_SPEAKER_CAMPPLUS, names_in_toolkit
from sv_sparse.training.logging import read_rows


@pytest.fixture(scope="module")
def speechbrain_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("speechbrain") / "embedding_model.ckpt"
    torch.save(speechbrain_ecapa(), path)
    return path


def test_a_pretrained_network_is_brought_from_dense_to_its_target(train, tones, tmp_path, speechbrain_file):
    words = [*TINY, *tones.settings(), "model.layout=speechbrain", f"init_from={speechbrain_file}"]
    done = train(*words, "target_sparsity=0.5", f"run_dir={tmp_path / 'run'}", "trainer.epochs=4")
    assert done.status == 0, done.err
    assert "SpeechBrain's ECAPA-TDNN" in done.out
    assert "the head has 0 of" in done.out
    assert "trained on the features" not in done.out
    assert read_config(tmp_path / "run").model.features == "speechbrain"
    assert f"{speechbrain_file}: training speakers unknown; they may overlap with the evaluation speakers" in done.out
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert rows[0]["sparsity/regularized"] < 0.2
    assert max(row["lr"] for row in rows) == pytest.approx(0.001)  # of pretrained weights
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_other_features_than_those_of_the_weights_are_computed_where_they_are_asked_for(
    train, tones, tmp_path, speechbrain_file
):
    words = [*TINY, *tones.settings(), "model.layout=speechbrain", f"init_from={speechbrain_file}"]
    done = train(*words, "model.features=wespeaker", f"run_dir={tmp_path / 'run'}", "trainer.epochs=1")
    assert done.status == 0, done.err
    assert read_config(tmp_path / "run").model.features == "wespeaker"
    assert (
        f"init_from={speechbrain_file}: its network was trained on the features speechbrain, this run computes "
        f"wespeaker; model.features=speechbrain computes the same"
    ) in done.out


def test_another_network_than_the_files_is_refused_with_what_the_file_holds(train, tones, speechbrain_file):
    words = ["model=ecapa", "model.layout=wespeaker", f"init_from={speechbrain_file}"]
    done = train(*TINY, *tones.settings(), *words)
    assert done.status == 2
    assert f"init_from={speechbrain_file}: its network has model.layout=speechbrain; choose the same model" in done.err


def test_masks_prune_pretrained_weights_at_the_same_rate(train, tones, tmp_path, speechbrain_file):
    words = [*TINY, *tones.settings(), "model.layout=speechbrain", f"init_from={speechbrain_file}"]
    done = train(*words, "sparsity=gradual_magnitude", "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    assert "peak lr: sparse weights 0.001, other parameters 0.003" in done.out
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert max(row["lr"] for row in rows) == pytest.approx(0.001)


def test_weights_of_an_unknown_network_are_refused(train, tones, tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    done = train(*TINY, *tones.settings(), f"init_from={tmp_path / 'other.pt'}")
    assert done.status == 2
    assert f"error: init_from={tmp_path / 'other.pt'}: " in done.err


CAMPPLUS = [
    "model=campplus",
    *("model.front_channels=4", "model.channels=8", "model.growth_rate=4", "model.bottleneck_channels=8"),
    *("model.block_layers=[2,1,2]", "model.embedding_dim=16"),
    *(word for word in TINY if not word.startswith("model.")),
]


@pytest.fixture(scope="module")
def campplus_file(tmp_path_factory):
    """CAM++ of tiny widths, untrained, with the names of 3D-Speaker."""
    torch.manual_seed(0)
    network = CAMPlusPlus(80, 4, 8, 4, 8, (2, 1, 2), 16)
    names = names_in_toolkit(THREED_SPEAKER_CAMPPLUS, network.state_dict())
    state = {}
    for name, value in network.state_dict().items():
        # One-dimensional convolutions, where the front end's have two dimensions.
        state[names[name]] = value.squeeze(2) if names[name].startswith("xvector.") and value.ndim == 4 else value
    linear = names["embedding.weight"]
    state[linear] = state[linear].unsqueeze(2)
    path = tmp_path_factory.mktemp("3dspeaker") / "campplus.pt"
    torch.save(state, path)
    return path


def test_campplus_trains_from_scratch_and_from_published_weights(train, tones, tmp_path, campplus_file):
    done = train(*CAMPPLUS, *tones.settings(), "target_sparsity=0.9", f"run_dir={tmp_path / 'scratch'}")
    assert done.status == 0, done.err
    assert (tmp_path / "scratch" / "report.html").is_file()
    results = json.loads((tmp_path / "scratch" / "results.json").read_text())
    assert results["sparsity"] == pytest.approx(0.9, abs=1e-3)
    words = [
        f"init_from={campplus_file}",
        "target_sparsity=0.5",
        f"run_dir={tmp_path / 'after'}",
        "trainer.max_steps=2",
    ]
    done = train(*CAMPPLUS, *tones.settings(), *words)
    assert done.status == 0, done.err
    assert "3D-Speaker's CAM++, dense, features 3dspeaker; training speakers unknown" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ["model=resnet50", "model.base_channels=2"],
        ["model=xvector", "model.channels=8", "model.statistics_channels=16"],
    ],
)
def test_other_networks_train_too(train, tones, tmp_path, words):
    short = [word for word in TINY if not word.startswith("model.")]
    done = train(*short, *tones.settings(), *words, f"run_dir={tmp_path / 'run'}", "target_sparsity=0.95")
    assert done.status == 0, done.err
    assert read_config(tmp_path / "run").model.features == "wespeaker"


def test_a_state_dict_of_the_runs_network_is_taken_in_any_wrapper(train, tones, tmp_path):
    words = [*TINY, *tones.settings(), "trainer.max_steps=2"]
    done = train(*words, f"run_dir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    state = torch.load(tmp_path / "run" / "checkpoints" / "model.pt", weights_only=True)["model"]
    path = tmp_path / "own.ckpt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 2}, path)
    done = train(*words, f"init_from={path}", f"run_dir={tmp_path / 'after'}")
    assert done.status == 0, done.err
    assert "the weights: unwrapped: state_dict, module." in done.out
    assert f"{path}: the network of model=ecapa, dense, features sv_sparse; training speakers unknown" in done.out
    done = train(*words, "model.embedding_dim=12", f"init_from={path}", f"run_dir={tmp_path / 'other'}")
    assert done.status == 2
    assert "- the network of model=ecapa: wrong shape embedding.bias (expected [12], got [16])" in done.err
