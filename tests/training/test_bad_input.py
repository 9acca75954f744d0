"""Bad input gives one clear error, exit status 2, and leaves no half-made run behind."""

import pytest
import torch
from helpers.tiny import TINY, write_tones, write_trial_list

from sv_sparse import checkpoint


@pytest.fixture
def refused(train, tmp_path):
    """Run train.py, expect a refusal, return its one line."""

    def run(*arguments: str) -> str:
        done = train(*TINY, *arguments)
        assert done.status == 2, done.err
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.err
        assert "Traceback" not in done.err
        assert not list((tmp_path / "runs").glob("*"))
        return lines[0]

    return run


@pytest.fixture
def folder(tmp_path):
    """A corpus of its own, to be damaged."""
    keys = write_tones(tmp_path / "wav", [f"spk{number}" for number in range(6)])
    write_trial_list(tmp_path / "trials.txt", [key for key in keys if key[3] in "45"])
    return tmp_path


def own(folder) -> list[str]:
    return ["data=folder", f"data.root={folder / 'wav'}", f"data.trial_lists={folder / 'trials.txt'}"]


def test_a_missing_root(refused, tmp_path, tones):
    message = refused("data=folder", f"data.root={tmp_path}/none", f"data.trial_lists={tones.trials}")
    assert f"data.root={tmp_path}/none: expected a folder of <speaker>/<session>/<utterance>" in message


def test_an_empty_folder(refused, tmp_path, tones):
    (tmp_path / "empty").mkdir()
    message = refused("data=folder", f"data.root={tmp_path}/empty", f"data.trial_lists={tones.trials}")
    assert "found an empty folder" in message


def test_a_broken_flac_in_the_trials_where_none_may_be_left_out(refused, folder):
    (folder / "wav" / "spk4" / "s0" / "00001.flac").write_bytes(b"fLaC" + bytes(100))
    message = refused(*own(folder), "data.max_unreadable_fraction=0")
    assert "data.max_unreadable_fraction=0.0: 1 of 12 data.trial_lists utterances cannot be used" in message
    assert "spk4/s0/00001.flac" in message


def test_too_many_broken_flacs_for_training(refused, folder):
    for path in sorted((folder / "wav").glob("spk[12]/*/*.flac"))[:11]:
        path.write_bytes(b"no FLAC")
    message = refused(*own(folder))
    assert "data.max_unreadable_fraction=0.01: 11 of 24 training utterances cannot be used" in message
    assert "spk1/s0/00001.flac" in message


def test_a_trial_that_names_a_missing_file(refused, folder):
    (folder / "wav" / "spk5" / "s1" / "00002.flac").unlink()
    message = refused(*own(folder))
    assert "data.trial_lists=" in message
    assert "spk5/s1/00002.flac" in message


def test_a_trial_list_that_is_none(refused, folder):
    (folder / "trials.txt").write_text("this is no trial list\n")
    assert "trials.txt, line 1: expected 'label enrollment test'" in refused(*own(folder))


def test_two_trial_lists_of_one_name(refused, folder):
    (folder / "other").mkdir()
    (folder / "other" / "trials.txt").write_text((folder / "trials.txt").read_text())
    lists = f"data.trial_lists=[{folder}/trials.txt,{folder}/other/trials.txt]"
    assert "expected one list or several of different names" in refused(*own(folder)[:2], lists)


def test_a_path_that_the_command_line_cannot_take_unquoted(refused, folder):
    assert "goes in quotes, twice" in refused("data=folder", f"data.root={folder}/a=b")


def test_an_empty_training_list(refused, folder):
    (folder / "train.txt").write_text("\n")
    assert "train.txt: the list is empty" in refused(*own(folder), f"data.train_utterances={folder}/train.txt")


def test_more_in_a_batch_than_there_are_utterances(refused, folder):
    assert "trainer.batch_size=999: expected from 1 to" in refused(*own(folder), "trainer.batch_size=999")


def test_a_value_that_the_network_refuses(refused, folder):
    assert "res2net_scale" in refused(*own(folder), "model.channels=18")


def test_a_value_that_the_optimizer_refuses(refused, folder):
    assert "error: optim.lr must be above 0, one number or {sparse_start: " in refused(*own(folder), "optim.lr=-1")


def test_a_lambda_that_could_never_grow(refused, folder):
    assert "lambda_ of a regularized group must start above 0" in refused(*own(folder), "optim.lambda_init=0")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("target_sparsity=1.5", "error: target_sparsity must be a number, at least 0 and below 1, got 1.5"),
        ("optim=adam", "error: optim=adam: expected one of adabreg, linbreg, proxsgd"),
        (
            "model=ecappa",
            "error: model=ecappa: expected one of campplus, custom, ecapa, ecapa_256, ecapa_512, ecapa_speechbrain, ",
        ),
        (
            "trainer.epoch=3",
            "error: unknown setting 'trainer.epoch'; valid under trainer: epochs, max_steps, batch_size",
        ),
        ("head.margin=abc", "error: head.margin must be a number, got 'abc'"),
        ("target_sparsity=0.5,90", "error: target_sparsity must be a number, at least 0 and below 1, got 90"),
        ("resume_from=", "error: resume_from must be a text that is not empty, got ''"),
        ("data=folder", "error: data.root, data.trial_lists must be given, for instance data.root=..."),
    ],
)
def test_a_setting_that_is_not_allowed(refused, argument, message):
    assert message in refused(argument)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test asks for in vain")
def test_a_device_that_is_not_there(refused, folder):
    assert "trainer.device=cuda: no CUDA device is available" in refused(*own(folder), "trainer.device=cuda")


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_step(train, folder, tmp_path):
    done = train(*TINY, *own(folder), "optim.lr=1e30", "trainer.max_grad_norm=null")
    assert done.status == 2
    assert "the loss or its gradient is not finite; no checkpoint was written since" in done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert "Traceback" in (run / "train.log").read_text()
    step = int(done.err.split("error: step ")[1].split(":")[0])
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == step - 1
    state = checkpoint.load(run / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)
    assert all(value.isfinite().all() for value in state["model"].values())
