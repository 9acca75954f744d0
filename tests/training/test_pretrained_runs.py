"""Runs that start from another toolkit's weights."""

import json

import pytest
import torch
from helpers.tiny import TINY

from sv_sparse.config.schema import read_config
from sv_sparse.data.torchaudio_guard import torchaudio  # noqa: F401  # lets speechbrain import it
from sv_sparse.training.logging import read_rows


@pytest.fixture(scope="module")
def speechbrain_file(tmp_path_factory):
    """SpeechBrain's ECAPA-TDNN of tiny widths, untrained, as its checkpointer saves it."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415  # after torchaudio

    torch.manual_seed(0)
    widths = {"channels": [16, 16, 16, 16, 24], "attention_channels": 8, "se_channels": 8, "res2net_scale": 4}
    network = ECAPA_TDNN(80, lin_neurons=16, **widths)
    path = tmp_path_factory.mktemp("speechbrain") / "embedding_model.ckpt"
    torch.save(network.state_dict(), path)
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
    assert max(row["lr"] for row in rows) == pytest.approx(0.003)  # of a dense start
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
    done = train(*TINY, *tones.settings(), f"init_from={speechbrain_file}")
    assert done.status == 2
    assert f"init_from={speechbrain_file}: its network has model.layout=speechbrain; choose the same model" in done.err


def test_weights_of_an_unknown_network_are_refused(train, tones, tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    done = train(*TINY, *tones.settings(), f"init_from={tmp_path / 'other.pt'}")
    assert done.status == 2
    assert f"error: init_from={tmp_path / 'other.pt'}: " in done.err
