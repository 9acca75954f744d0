"""The package: one file that gives back the network to the last bit, or says what is wrong with it."""

import json
import os
import random
import struct

import numpy as np
import pytest
import torch
import zstandard
from helpers import deployed
from safetensors.numpy import load_file, save_file
from torch import nn

from sv_sparse.export.operations import lower
from sv_sparse.export.package import write_package
from sv_sparse.io import checksum
from sv_sparse.runtime import sparse_codec
from sv_sparse.runtime.engine.executor import SparseEngine
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.program_codec import split_program
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.package_header import with_checksum

CARD = {"license": "CC BY 4.0", "trained_on": "tones", "evaluations": [{"name": "a", "eer": 0.1}]}


def written(path, model=deployed.ECAPA, *, density=0.1, backend=None, **options):
    network = deployed.trained(model, density)
    write_package(path, network, model, backend or deployed.backend(), CARD, features=deployed.FEATURES, **options)
    return network


@pytest.mark.parametrize("model", deployed.MODELS.values(), ids=deployed.MODELS)
def test_the_program_comes_back_to_the_last_bit(tmp_path, model):
    network = written(tmp_path / "m.safetensors", model)
    expected = split_program(lower(network, 80))
    parts = split_program(read_package(tmp_path / "m.safetensors").program)
    assert json.dumps(parts.about) == json.dumps(expected.about)
    assert np.array_equal(parts.steps, expected.steps)
    assert np.array_equal(parts.constants, expected.constants)
    assert parts.weights.keys() == expected.weights.keys()
    assert all(np.array_equal(weight, expected.weights[name]) for name, weight in parts.weights.items())


def test_all_that_decides_comes_along(tmp_path):
    written(tmp_path / "m.safetensors", backend=deployed.backend(cohort=True))
    package = read_package(tmp_path / "m.safetensors")
    expected = deployed.backend(cohort=True)
    assert np.array_equal(package.backend.mean, expected.mean)
    assert np.array_equal(package.backend.cohort, expected.cohort)
    assert package.backend.top_n == expected.top_n
    assert package.backend.calibration == expected.calibration
    assert package.card == CARD
    assert package.features == deployed.FEATURES | {"kind": "sv_sparse"}
    assert package.model == deployed.ECAPA
    assert len(package.fingerprint) == 64


def test_a_file_without_calibration_is_whole_too(tmp_path):
    backend = deployed.backend()
    written(tmp_path / "m.safetensors", backend=type(backend)(backend.mean))
    assert read_package(tmp_path / "m.safetensors").backend.calibration is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounded_values_make_a_smaller_file_and_leave_constants_alone(tmp_path, dtype):
    written(tmp_path / "full.safetensors")
    written(tmp_path / "m.safetensors", dtype=dtype)
    full, rounded = (read_package(tmp_path / name) for name in ("full.safetensors", "m.safetensors"))
    assert (full.dtype, rounded.dtype) == ("fp32", dtype)
    assert (tmp_path / "m.safetensors").stat().st_size < (tmp_path / "full.safetensors").stat().st_size
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for layer, original in zip(rounded.program.layers, full.program.layers, strict=True):
        expected = torch.from_numpy(original.weight).to(kind).float().numpy()
        assert np.array_equal(layer.weight, expected), layer.name
    for step, original in zip(rounded.program.steps, full.program.steps, strict=True):
        assert np.array_equal(step.constants, original.constants)


def test_a_sparse_network_is_packed(tmp_path):
    model = deployed.ECAPA | {"channels": 128, "mfa_channels": 128}
    network = written(tmp_path / "m.safetensors", model, density=0.01)
    dense = sum(value.numel() * 4 for value in network.state_dict().values())
    assert (tmp_path / "m.safetensors").stat().st_size < dense / 10


def test_a_network_without_a_program_is_not_written(tmp_path):
    network = nn.Sequential(nn.GELU(), nn.Flatten())
    with pytest.raises(ValueError, match="gelu: the sparse kernels have no such operation"):
        write_package(tmp_path / "m", network, {}, deployed.backend(), {}, features=deployed.FEATURES)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    network = deployed.trained(deployed.ECAPA)
    with torch.no_grad():
        network.mfa.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"mfa\.weight holds values that are not finite"):
        write_package(tmp_path / "m", network, deployed.ECAPA, deployed.backend(), {}, features=deployed.FEATURES)


def changed(path, change):
    """The file with its description and tensors changed."""
    about, tensors = described(path), load_file(path)
    change(about, tensors)
    save_file(tensors, path, metadata={"sv_sparse": with_checksum(json.dumps(about))})


def described(path):
    """What the file says of itself."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(json.loads(file.read(length))["__metadata__"]["sv_sparse"].partition(" ")[2])


def sealed(about, tensors, name="layer.mfa.weight"):
    """Let a tensor's check sum be that of its bytes, as it would be of a forgery."""
    parts = (tensors.get(part + name, np.zeros(0, np.uint8)).tobytes() for part in ("values:", "positions:"))
    about["tensors"][name][4] = checksum(*parts)


def layer(about, name):
    """Description of a layer in the header."""
    return next(fields for fields in about["program"]["layers"] if fields[0] == name)


def drop(about, tensors, name):
    """Leave a tensor out."""
    del about["tensors"][name]
    for part in ("values:", "positions:"):
        tensors.pop(part + name, None)


def lengthen(about, tensors):
    tensors["values:layer.mfa.weight"] = np.concatenate([tensors["values:layer.mfa.weight"], np.zeros(3, np.uint8)])[3:]
    sealed(about, tensors)


CHANGES = {
    "format 99": lambda about, tensors: about.update(format=99),
    "lacks": lambda about, tensors: tensors.pop("values:layer.mfa.weight"),
    "has more": lambda about, tensors: tensors.update(more=np.zeros(3, np.uint8)),
    "mfa.weight has no weight": lambda about, tensors: drop(about, tensors, "layer.mfa.weight"),
    "a step convolve does not fit its planes": lambda about, tensors: about["tensors"]["layer.mfa.weight"].__setitem__(
        1, [24, 32, 1, 2]
    ),
    "which is not allowed": lambda about, tensors: about["tensors"]["layer.mfa.weight"].__setitem__(2, 1 << 40),
    "at most 268435456": lambda about, tensors: about["tensors"].update(
        {str(i): ["gaps", [1 << 27], 0, "fp32", ""] for i in range(3)}
    ),
    "features must be one of 3dspeaker, ": lambda about, tensors: about["features"].update(kind="mfcc"),
    "features must be .*, got 3": lambda about, tensors: about["features"].update(kind=3),
    "fingerprint is abc": lambda about, tensors: about.update(fingerprint="abc"),
    "program has steps": lambda about, tensors: about["program"].update(steps=None),
    "program has the sizes": lambda about, tensors: about["program"].update(min_frames=0),
    "program lacks a part": lambda about, tensors: about["program"].pop("min_frames"),
    "a resolution is": lambda about, tensors: about["program"]["resolutions"].append([1, 0, -1, 5]),
    "planes, at most": lambda about, tensors: about["program"]["resolutions"].extend([[1, 0, 1, 1 << 20]] * 2),
    "the first resolution is not": lambda about, tensors: about["program"]["resolutions"].reverse(),
    "mfa.weight has ": lambda about, tensors: layer(about, "mfa.weight").__setitem__(2, [1, 1 << 20]),
    "its layers are not those": lambda about, tensors: about["program"]["layers"].append(about["program"]["layers"][0]),
    "a step (load|store) does not fit": lambda about, tensors: about["program"].update(embedding_dim=17),
    "mel_bins 10000": lambda about, tensors: about["features"].update(mel_bins=10_000),
    "sample_rate 16000.0": lambda about, tensors: about["features"].update(sample_rate=16000.0),
    "format True": lambda about, tensors: about.update(format=True),
    "sample_rate 8000": lambda about, tensors: about["features"].update(sample_rate=8000),
    "slope that is not a number": lambda about, tensors: about["backend"]["calibration"].update(slope="steep"),
    "calibration is": lambda about, tensors: about["backend"].update(calibration=[1]),
    "probability 1": lambda about, tensors: about["backend"]["calibration"].update(p_target=1),
    "mfa.weight (cannot|holds)": lengthen,
    "is not stored as bytes": lambda about, tensors: tensors.update(
        {"values:layer.mfa.weight": tensors["values:layer.mfa.weight"].astype(np.float32)}
    ),
    r"expected names and values": lambda about, tensors: about.update(tensors=[]),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_contradiction_is_named(tmp_path, problem):
    path = tmp_path / "m.safetensors"
    written(path)
    changed(path, CHANGES[problem])
    with pytest.raises(ValueError, match=rf"m\.safetensors is not a readable package: .*({problem})"):
        read_package(path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 4000, struct.pack("<Q", 20) + b"[" * 20])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable package"):
        read_package(tmp_path / "m.safetensors")


def test_a_description_nested_beyond_measure_is_refused(tmp_path):
    header = with_checksum("[" * 200_000)
    save_file({"a": np.zeros(1, np.uint8)}, tmp_path / "m", metadata={"sv_sparse": header})
    with pytest.raises(ValueError, match="not a readable package"):
        read_package(tmp_path / "m")


def fingerprint(path, network, model=deployed.ECAPA, card=CARD, **options):
    """Of a package with that network."""
    options = {"features": deployed.FEATURES, "backend": deployed.backend()} | options
    write_package(path, network, model, options.pop("backend"), card, **options)
    return read_package(path).fingerprint


def test_what_changes_no_embedding_changes_no_fingerprint(tmp_path, monkeypatch):
    path, network = tmp_path / "m", deployed.trained(deployed.ECAPA)
    expected = fingerprint(path, network)
    content = path.read_bytes()
    reordered = dict(reversed(deployed.ECAPA.items()))
    assert fingerprint(path, network, card={"other": 1}) == expected
    assert fingerprint(path, network, reordered, features=dict(reversed(deployed.FEATURES.items()))) == expected
    assert fingerprint(path, network, backend=deployed.backend(cohort=True)) == expected
    monkeypatch.setattr(sparse_codec, "ZSTD_LEVEL", 1)
    assert fingerprint(path, network) == expected
    assert path.read_bytes() != content
    monkeypatch.setattr(sparse_codec, "_gaps", lambda mask: os.urandom(100_000))  # too large: bitmasks
    assert fingerprint(path, network) == expected


def test_named_default_features_change_no_fingerprint(tmp_path):
    written(tmp_path / "before", deployed.ECAPA)
    written(tmp_path / "now", deployed.ECAPA | {"features": "sv_sparse"})
    before, now = read_package(tmp_path / "before"), read_package(tmp_path / "now")
    assert before.features == now.features == deployed.FEATURES | {"kind": "sv_sparse"}
    assert before.fingerprint == now.fingerprint


@torch.no_grad()
def test_a_weight_or_a_setting_changes_the_fingerprint(tmp_path):
    path, network = tmp_path / "m", deployed.trained(deployed.ECAPA)
    prints = [fingerprint(path, deployed.trained(deployed.ECAPA | {"features": "wespeaker"}))]
    prints += [fingerprint(path, network), fingerprint(path, network, deployed.ECAPA | {"dilations": [1, 2, 3]})]
    prints.append(fingerprint(path, network, dtype="bf16"))
    network.mfa.bias[0] += 1
    prints.append(fingerprint(path, network))
    weight = network.mfa.weight.view(-1)
    last = int(weight.nonzero()[-1])
    zero = int((weight[:last] == 0).nonzero()[-1])
    weight[zero + 1], weight[zero] = 0, weight[zero + 1].clone()  # the same values, one of them at another place
    prints.append(fingerprint(path, network))
    assert len(set(prints)) == 6


def test_an_older_format_is_refused_with_the_version_that_reads_it(tmp_path):
    path = tmp_path / "m.safetensors"
    written(path)
    about = described(path)
    older = "sv-sparse 0.1 reads formats 1 and 2, 0.2 reads 3, this version reads format 4: export the run again"
    save_file(load_file(path), path, metadata={"sv_sparse": with_checksum(json.dumps(about | {"format": 2}))})
    with pytest.raises(ValueError, match=f"it has format 2; {older}"):
        read_package(path)
    save_file(load_file(path), path, metadata={"sv_sparse": json.dumps(about)})
    with pytest.raises(ValueError, match=f"its header is damaged: it has no checksum, or is of format 1; {older}"):
        read_package(path)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    small = {"channels": 4, "mfa_channels": 4, "attention_channels": 2, "se_channels": 2, "res2net_scale": 2}
    model = deployed.ECAPA | small | {"kernel_sizes": [5, 3], "dilations": [1, 2]}
    written(path, model)
    content = path.read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    generator = random.Random(0)
    places = [*range(8), *(generator.randrange(8, length) for _ in range(250))]
    places += [generator.randrange(length, len(content)) for _ in range(150)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m\.safetensors is not a readable package: .*damaged"):
            read_package(path)


def test_what_is_damaged_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    written(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    start = len(content) - max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
    for name in ("values:layer.mfa.weight", "positions:layer.mfa.weight", "values:backend.mean"):
        damaged = bytearray(content)
        damaged[start + header[name]["data_offsets"][1] - 1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name.partition(':')[2]} is damaged: its bytes have changed"):
            read_package(path)
    place = content.index(b"CC BY 4.0")
    path.write_bytes(content[:place] + b"CD" + content[place + 2 :])
    with pytest.raises(ValueError, match="its header is damaged: it has changed"):
        read_package(path)


def test_a_folder_is_told_how_to_become_a_package(tmp_path):
    with pytest.raises(
        ValueError, match="it is a folder; sv-sparse export RUN --output model.safetensors makes one from a run"
    ):
        read_package(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.safetensors is not a readable package: .*No such file"):
        read_package(tmp_path / "nothing.safetensors")


def test_a_damaged_file_is_refused_or_read_whole(tmp_path):
    path = tmp_path / "m.safetensors"
    written(path)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 1, 4, 64])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        if generator.random() < 0.3:
            del damaged[generator.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            package = read_package(path)
        except ValueError as error:
            assert "not a readable package" in str(error)  # noqa: PT017
        else:
            NumpyEngine(package.program)(np.zeros((1, 80, 20), np.float32))


def test_a_forged_program_is_refused_or_stays_inside_its_planes(tmp_path):
    path = tmp_path / "m.safetensors"
    written(path, deployed.CAMPPLUS)
    about = described(path)
    tensors = load_file(path)
    count = about["program"]["steps"][0]
    steps = np.frombuffer(zstandard.decompress(tensors["values:program.steps"].tobytes()), np.int32)
    assert len(steps) == count
    generator = np.random.default_rng(0)
    num_read = 0
    for _ in range(400):
        forged = steps.copy()
        for place in generator.integers(0, count, generator.integers(1, 3)):
            forged[place] = generator.choice(
                [0, 1, -1, 7, 1 << 20, forged[place] + 1, forged[place] - 1, steps[place - 1]]
            )
        compressed = zstandard.compress(forged.tobytes())
        about["program"]["steps"] = [count, checksum(compressed)]
        tensors["values:program.steps"] = np.frombuffer(compressed, np.uint8)
        save_file(tensors, path, metadata={"sv_sparse": with_checksum(json.dumps(about))})
        try:
            program = read_package(path).program
            SparseEngine(program)(np.zeros((1, 80, max(program.min_frames, 40)), np.float32))
        except ValueError:
            continue
        num_read += 1
    assert num_read > 20
