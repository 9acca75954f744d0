"""From a trained run to a file for use, by the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sv_sparse.commands.main import main
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.operations import lower
from sv_sparse.runtime.decision import LIMITS_OF_USE, SYNTHETIC_WARNING
from sv_sparse.runtime.engine.program_codec import split_program
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.verifier import Verifier


def export(run: Path, to: Path, *options: str) -> Path:
    main(["export", str(run), "--output", str(to), *options])
    return to


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["export", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_scores_of_the_file_are_those_that_the_run_was_judged_by(finished, tones, tmp_path):
    verifier = Verifier.from_pretrained(export(finished, tmp_path / "m.safetensors"))
    lines = (finished / "scores" / "trials.txt").read_text().splitlines()
    for line in lines[::20]:
        enrollment, test, score, _ = line.split()
        found = verifier.verify(tones.root / enrollment, tones.root / test)
        assert found.score == pytest.approx(float(score), abs=1e-5)


def test_its_weights_are_those_that_were_delivered(finished, tmp_path):
    network, backend, config = load_network(finished / "checkpoints" / "model.pt")
    package = read_package(export(finished / "checkpoints" / "model.pt", tmp_path / "m.safetensors"))
    assert package.model == config.model_settings
    assert np.array_equal(package.backend.mean, backend.mean)
    expected = split_program(lower(network, 80)).weights
    weights = split_program(package.program).weights
    assert all(np.array_equal(weights[name], weight) for name, weight in expected.items())


def test_its_card_says_what_it_was_trained_on_and_how_it_was_judged(finished, tones, tmp_path, capsys):
    package = read_package(export(finished, tmp_path / "m.safetensors", "--license", "CC BY 4.0"))
    results = json.loads((finished / "results.json").read_text())
    card = package.card
    assert card["license"] == "CC BY 4.0"
    assert card["trained_on"] == "recordings in wav"
    assert card["metrics"]["sparsity_network"] == results["sparsity_network"]
    assert card["training"]["speakers"] == results["training"]["speakers"]
    assert card["synthetic_voices_only"] is False
    assert card["limits_of_use"] == LIMITS_OF_USE
    (judged,) = card["evaluations"]
    assert (judged["name"], judged["eer"]) == ("trials", results["eer"])
    assert str(tones.root.parent) not in json.dumps(card)
    assert "times smaller" in capsys.readouterr().out


def test_a_network_of_the_demo_corpus_says_in_its_card_and_with_every_decision_that_its_voices_are_synthetic(
    finished, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    network = run / "checkpoints" / "model.pt"
    state = torch.load(network, weights_only=True)
    state["config"]["data"] = {"synthesize": {"seed": 0}}
    torch.save(state, network)
    for words in ((), ("--trained-on", "my own voices")):  # words of whoever exports do not hide it
        verifier = Verifier.from_pretrained(export(run, tmp_path / "m.safetensors", *words))
        assert verifier.card["synthetic_voices_only"] is True
        assert verifier.basis["warning"] == SYNTHETIC_WARNING
    entries = onnx.load(export(run, tmp_path / "m.onnx")).metadata_props
    card = json.loads({entry.key: entry.value for entry in entries}["card"])
    assert (card["synthetic_voices_only"], card["trained_on"]) == (True, "the demo corpus: synthetic voices")


def test_values_may_be_rounded(finished, tmp_path):
    package = read_package(export(finished, tmp_path / "m.safetensors", "--dtype", "bf16"))
    assert package.dtype == "bf16"


def test_an_onnx_file_says_what_it_is(finished, tmp_path):
    metadata = {entry.key: entry.value for entry in onnx.load(export(finished, tmp_path / "m.onnx")).metadata_props}
    assert metadata["frontend"] == "included"
    assert json.loads(metadata["card"])["trained_on"] == "recordings in wav"
    outside = onnx.load(export(finished, tmp_path / "o.onnx", "--frontend", "none"))
    assert outside.graph.input[0].name == "filterbank"


def test_an_onnx_file_may_have_eight_bits(finished, tmp_path):
    for frontend in ("included", "none"):
        model = onnx.load(export(finished, tmp_path / "m.onnx", "--int8", "--frontend", frontend))
        assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--output", "m.bin"], "--output m.bin: expected a name that ends in"),
        (["--output", "m.onnx", "--dtype", "bf16"], "--dtype is not for a .onnx"),
        (["--output", "m.safetensors", "--int8"], "--int8 is not for a .safetensors"),
        (["--output", "no/such/folder/m.safetensors"], "no/such/folder"),
    ],
)
def test_what_cannot_be_done_is_named(finished, capsys, options, problem):
    assert problem in refused(capsys, str(finished), *options)


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert "no checkpoint at" in refused(capsys, str(tmp_path / "nothing"), "--output", "m.onnx")


def test_without_the_recordings_of_training_eight_bits_are_refused(finished, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.pt").write_bytes((finished / "checkpoints" / "model.pt").read_bytes())
    assert "has no manifest.parquet" in refused(capsys, str(tmp_path), "--output", str(tmp_path / "m.onnx"), "--int8")
