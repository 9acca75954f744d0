"""A run computes the features of its network from the first crop to the exported files."""

import json

import numpy as np
import onnx
import onnxruntime
import torch
from helpers.tiny import TINY, tone

from sv_sparse.commands.main import main
from sv_sparse.config.schema import read_config
from sv_sparse.evaluation.load import load_network
from sv_sparse.models.features import build_features
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.verifier import Verifier

KIND = "speechbrain"


def test_a_run_is_trained_evaluated_and_exported_with_its_features(train, tones, tmp_path, capsys):
    run = tmp_path / "run"
    done = train(*TINY, *tones.settings(), f"model.features={KIND}", "trainer.epochs=1", f"run_dir={run}")
    assert done.status == 0, done.err
    assert read_config(run).model.features == KIND
    network = load_network(run)[0]
    assert network.features == KIND
    waveform = torch.from_numpy(tone(0, 0, 1.0)).unsqueeze(0)
    with torch.no_grad():
        expected = network(build_features(KIND)(waveform))[0].numpy()
        with_ours = network(build_features("sv_sparse")(waveform))[0].numpy()
    assert np.abs(with_ours - expected).max() > 0.01
    # What was computed at the end of the run is computed again.
    before = json.loads((run / "results.json").read_text())["evaluations"]
    main(["evaluate", str(run), "--output-dir", str(tmp_path / "scores"), "--device", "cpu"])
    rate = next(iter(before.values()))["eer"]
    assert f"EER {100 * rate:.2f} %" in capsys.readouterr().out
    main(["export", str(run), "--output", str(tmp_path / "m.safetensors")])
    package = read_package(tmp_path / "m.safetensors")
    assert package.features["kind"] == package.model["features"] == KIND
    embedding = Verifier.from_pretrained(tmp_path / "m.safetensors").embed(waveform[0], 16000)
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-4)
    main(["export", str(run), "--output", str(tmp_path / "m.onnx")])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run(["embedding"], {"waveform": waveform.numpy()})
    np.testing.assert_allclose(from_onnx[0], expected, rtol=0, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["features"] == KIND


def test_features_that_do_not_exist_are_refused_before_data_are_read(train, tones):
    done = train(*TINY, *tones.settings(), "model.features=mfcc")
    assert done.status == 2
    assert "model.features must be one of 3dspeaker, wespeaker, speechbrain, sv_sparse, got 'mfcc'" in done.err
