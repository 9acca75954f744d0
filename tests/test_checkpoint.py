"""Laws of the files that hold a run."""

import pytest
import torch

from sv_sparse import checkpoint

STATE = {"config": {"seed": 0}, "model": {"w": torch.arange(3.0)}, "mean": torch.zeros(2), "figures": {"eer": 0.1}}


def test_what_is_saved_is_loaded_again_as_tensors_and_plain_data(tmp_path):
    checkpoint.save(tmp_path / "model.pt", STATE)
    state = checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["figures"] == {"eer": 0.1}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({name: STATE[name] for name in ("config", "model", "mean")}, r"lacks \['figures'\]"),
        (STATE | {"extra": 1}, r"has unknown \['extra'\]"),
    ],
)
def test_other_keys_than_expected_are_named(tmp_path, state, message):
    checkpoint.save(tmp_path / "model.pt", state)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_another_format_is_refused(tmp_path):
    torch.save(STATE | {"format": 99}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="has checkpoint format 99, this version reads 3"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_a_pickled_object_is_refused(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "model": checkpoint.Path("x")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        checkpoint.load(tmp_path / "model.pt", checkpoint.NETWORK_KEYS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*nothing\.pt"):
        checkpoint.load(tmp_path / "nothing.pt", checkpoint.NETWORK_KEYS)
