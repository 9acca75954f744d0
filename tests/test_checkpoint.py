"""Laws of the files that hold a run."""

import contextlib
import random

import pytest
import torch

from sv_sparse import checkpoint
from sv_sparse.evaluation.load import load_network

STATE = {
    "config": {"seed": 0},
    "model": {"w": torch.arange(3.0)},
    "backend": {"mean": torch.zeros(2)},
    "metrics": {"eer": 0.1},
}


def test_what_is_saved_is_loaded_again_as_tensors_and_plain_data(tmp_path):
    checkpoint.save(tmp_path / "model.pt", STATE)
    state = checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["metrics"] == {"eer": 0.1}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({name: STATE[name] for name in ("config", "model", "backend")}, r"lacks \['metrics'\]"),
        (STATE | {"extra": 1}, r"has unknown \['extra'\]"),
    ],
)
def test_other_keys_than_expected_are_named(tmp_path, state, message):
    checkpoint.save(tmp_path / "model.pt", state)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_a_single_bit_that_changed_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "model.pt"
    generator = random.Random(0)
    weights = torch.randn(1000)
    unnoticed = 0
    checkpoint.save(path, STATE | {"model": {"w": weights}})
    content = path.read_bytes()
    for _ in range(300):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):  # it may be padding, or a date
            state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
            assert torch.equal(state["model"]["w"], weights)
            assert state["config"] == STATE["config"]
            unnoticed += 1
    assert unnoticed < 100


def test_another_format_is_refused(tmp_path):
    torch.save(STATE | {"format": 99}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads 5; sv-sparse 0.1 reads 4"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_weights_of_another_toolkit_are_refused_with_the_way_to_use_them(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is no network of sv-sparse; .* sv-sparse train init_from=.*model.pt target"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_a_pickled_object_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "model": checkpoint.Path("x")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_a_training_checkpoint_of_version_0_2_has_no_teacher(tmp_path):
    checkpoint.save(tmp_path / "last.pt", dict.fromkeys(checkpoint.TRAINING_KEYS - {"format", "teacher"}, 0))
    assert checkpoint.load(tmp_path / "last.pt", checkpoint.TRAINING_KEYS)["teacher"] is None


def test_a_checksum_of_weights_is_that_of_their_names_and_values():
    weights = {"w": torch.randn(3, 4), "count": torch.tensor(3), "half": torch.randn(2).bfloat16()}
    digest = checkpoint.weights_digest(weights)
    assert checkpoint.weights_digest({name: value.clone() for name, value in weights.items()}) == digest
    for other in (
        {"v" if name == "w" else name: value for name, value in weights.items()},
        weights | {"w": -weights["w"]},
    ):
        assert checkpoint.weights_digest(other) != digest


def test_a_training_checkpoint_is_not_taken_for_a_network(tmp_path):
    checkpoint.save(tmp_path / "last.pt", dict.fromkeys(checkpoint.TRAINING_KEYS - {"format"}, 0))
    with pytest.raises(ValueError, match=r"is a checkpoint to resume from, .* those are model\.pt and best\.pt"):
        checkpoint.load(tmp_path / "last.pt", checkpoint.NETWORK_KEYS)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a list, expected a checkpoint"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.makedirs", "name": "evil"},
        {"name": "ecapa", "channels": {"_target_": "os.makedirs", "name": "evil"}},
    ],
)
def test_a_network_file_runs_no_code_but_ours(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    config = {
        "model": model,
        "data": {"root": "wav", "trial_lists": "trials.txt"},
        "optim": {"name": "adabreg"},
        "sparsity": {"controller": {"name": "feedback"}},
    }
    checkpoint.save(tmp_path / "model.pt", STATE | {"config": config})
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_network(tmp_path / "model.pt")
    assert not (tmp_path / "evil").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*nothing\.pt"):
        checkpoint.load(tmp_path / "nothing.pt", checkpoint.NETWORK_KEYS)
