"""Networks by name, and the features that belong to each."""

import sys

import pytest
import torch
from helpers.deployed import MODELS

from sv_sparse.models.registry import build_model, features_of


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("features", ["3dspeaker", "wespeaker", "speechbrain", "sv_sparse"])
def test_a_network_knows_its_features(model, features):
    network = build_model(model | {"features": features}, 80)
    assert network.features == features
    # They are no part of its state: files of weights stay as they were.
    assert network.state_dict().keys() == build_model(model, 80).state_dict().keys()


def test_settings_from_before_the_choice_mean_ours():
    settings = dict(MODELS["ecapa"])
    assert features_of(settings) == build_model(settings, 80).features == "sv_sparse"


@pytest.mark.parametrize("features", ["mfcc", None, 3, ["wespeaker"], ""])
def test_other_features_are_refused(features):
    with pytest.raises(ValueError, match="features must be one of 3dspeaker, wespeaker, speechbrain, sv_sparse, got"):
        build_model(MODELS["ecapa"] | {"features": features}, 80)


def test_a_class_of_the_users_own_does_not_see_the_setting():
    settings = {"_target_": "helpers.own_tdnn.TDNN", "channels": 4, "features": "wespeaker"}
    network = build_model(settings, 80, trusted=["helpers.own_tdnn.TDNN"])
    assert network.features == "wespeaker"
    assert settings["features"] == "wespeaker"


def test_a_class_with_something_else_of_that_name_is_refused(tmp_path, monkeypatch):
    source = """
import torch


class Net(torch.nn.Module):
    embedding_dim = 4

    def __init__(self, mel_bins):
        super().__init__()
        self.features = torch.nn.Linear(mel_bins, 4)
"""
    (tmp_path / "net_with_features.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="net_with_features.Net: rename its attribute features"):
        build_model({"_target_": "net_with_features.Net"}, 80, trusted=["net_with_features.Net"])
    monkeypatch.delitem(sys.modules, "net_with_features")


def test_the_name_survives_a_copy_and_a_move():
    network = build_model(MODELS["resnet"] | {"features": "speechbrain"}, 80)
    assert torch.nn.Module.to(network, torch.float64).features == "speechbrain"
