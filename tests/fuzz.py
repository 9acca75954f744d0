"""Read damaged files by the thousand, as a stranger's would be: python tests/fuzz.py audio|package --cases 10000.

Every case is a function of the seed and its number. It may be read, or refused by a ValueError; whatever else happens
is a finding: another error, a crash, more than a few seconds, too much memory, a library's complaint.
"""

import argparse
import copy
import functools
import io
import json
import multiprocessing
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import zstandard
from safetensors.numpy import load, save

from sv_sparse.export.package import write_package
from sv_sparse.io import checksum
from sv_sparse.models.registry import build_model
from sv_sparse.runtime.audio import read_audio as decode
from sv_sparse.runtime.engine.runtime import Runtime
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.package_header import with_checksum
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration

SECONDS, MEGABYTES = 10.0, 512  # that a case may take
_LONGEST = 10.0  # seconds of a recording
_KINDS = (
    *(("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM")),
    *(("WAV", "GSM610"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    *(("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "ALAC_16"), ("W64", "PCM_16")),
)
_EXTREMES = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x01\x00\x00\x00",
    b"\x00\x00\xc0\x7f",
)
_MODELS = (
    {
        "_target_": "sv_sparse.models.ecapa_tdnn.ECAPA",
        **{"channels": 16, "mfa_channels": 24, "attention_channels": 8, "se_channels": 8, "res2net_scale": 4},
        **{"kernel_sizes": [5, 3], "dilations": [1, 2], "embedding_dim": 16, "layout": "speechbrain"},
    },
    {"_target_": "sv_sparse.models.resnet.ResNet34", "base_channels": 2, "embedding_dim": 16},
    {"_target_": "sv_sparse.models.se_resnet.SEResNet", "channels": [2, 2, 4, 4], "embedding_dim": 16},
)
_FOREIGN: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**16,
    2**31,
    2**63,
    10**40,
    0.5,
    -1e308,
    "",
    "dense",
    [],
    [1],
    {},
)

Generator = np.random.Generator


def mutated(content: bytes, generator: Generator) -> bytes:
    """A file with one to four faults."""
    for _ in range(generator.integers(1, 5)):
        place, fault = int(generator.integers(len(content) + 1)), generator.integers(8)
        header, some = int(generator.integers(min(128, len(content) + 1))), int(generator.integers(1, 600))
        if fault == 0:
            content = content[:place]
        elif fault == 1:  # single bits
            array = np.frombuffer(content, np.uint8).copy()
            for where in generator.integers(max(1, len(array)), size=min(len(array), 12)):
                array[where] ^= 1 << generator.integers(8)
            content = array.tobytes()
        elif fault == 2:  # a size, a rate, a count
            extreme = _EXTREMES[generator.integers(len(_EXTREMES))]
            content = content[:header] + extreme + content[header + 4 :]
        elif fault == 3:  # a byte of the header
            content = content[:header] + generator.bytes(1) + content[header + 1 :]
        elif fault == 4:
            content = content[:place] + generator.bytes(some) + content[place:]
        elif fault == 5:
            content = content[:place] + content[place + some :]
        elif fault == 6:
            content = content[:place] + content[max(0, place - some) :]
        else:
            content = content[:place] + bytes(some) + content[place + some :]
    return content


def audio(generator: Generator) -> bytes:
    """A recording of some kind, before its faults."""
    kind, subtype = _KINDS[generator.integers(len(_KINDS))]
    rate = int(generator.choice([8000, 16000, 48000]))
    channels = 1 if subtype == "GSM610" else int(generator.integers(1, 3))
    samples = (0.1 * generator.normal(size=(int(generator.integers(1, 4000)), channels))).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    content = file.getvalue()
    oddity = generator.integers(8)  # tags before and behind, files joined, padding; half of all have none
    before = b"ID3\x03\0\0\0\0\0\x40" + bytes(64) if oddity in {0, 1} else b""
    behind = (b"TAG" + bytes(125), content, bytes(300))[oddity - 1] if 1 <= oddity <= 3 else b""
    return before + content + behind


def read_audio(content: bytes, path: Path) -> None:
    """Decode a recording, from memory or from a file; what comes must be a waveform."""
    if len(content) % 2:
        path.write_bytes(content)
    waveform = decode(path if len(content) % 2 else content, 16000, max_seconds=_LONGEST)
    assert waveform.dtype == np.float32, waveform.dtype
    assert waveform.ndim == 1, waveform.shape
    assert len(waveform) <= (_LONGEST + 1) * 16000, len(waveform)
    assert np.isfinite(waveform).all(), "not finite"


@functools.cache
def _packages() -> list[bytes]:
    """Small packages of each network, sparse and dense."""
    features, found = {"sample_rate": 16000, "mel_bins": 80}, []
    calibration = Calibration(8.0, -2.5, {"duration": 0.1}, 0.1, 1000, 100, 10, {0.05: 0.5, 0.01: 2.0})
    backend = Backend(np.ones(16, np.float32), np.eye(16, dtype=np.float32), 4, calibration)
    torch.manual_seed(0)
    for model in _MODELS:
        network = build_model(model, 80).eval()
        for param in network.parameters():
            param.data.mul_(torch.rand(param.shape) < 0.05)
        with tempfile.TemporaryDirectory() as folder:
            write_package(Path(folder) / "m", network, model, backend, {"license": "none"}, features=features)
            found.append((Path(folder) / "m").read_bytes())
    return found


def package(generator: Generator) -> bytes:
    """A package, as it is, or with something in its description or tensors changed, and check sums that fit."""
    content = _packages()[generator.integers(len(_MODELS))]
    choice = generator.integers(4)
    if choice == 0:
        return content
    if choice == 1:
        return _forged(content, generator)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["sv_sparse"].partition(" ")[2])
    data = bytearray(content[8 + length :])
    if generator.integers(2):
        _damage(header, about["tensors"], data, generator)
    else:
        for _ in range(generator.integers(1, 4)):
            _change(about, generator)
    header["__metadata__"]["sv_sparse"] = with_checksum(json.dumps(about))
    if generator.integers(4) == 0:
        _change(header, generator)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _forged(content: bytes, generator: Generator) -> bytes:
    """Put something foreign in the place of some integers of the program."""
    (length,) = struct.unpack("<Q", content[:8])
    about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["sv_sparse"].partition(" ")[2])
    tensors = load(content)
    steps = np.frombuffer(zstandard.decompress(tensors["values:program.steps"].tobytes()), np.int32).copy()
    for place in generator.integers(0, len(steps), generator.integers(1, 4)):
        steps[place] = generator.choice([0, 1, -1, 7, 1 << 20, 2**31 - 1, steps[place] + 1, steps[place - 1]])
    stored = zstandard.compress(steps.tobytes())
    about["program"]["steps"][1] = checksum(stored)
    tensors["values:program.steps"] = np.frombuffer(stored, np.uint8)
    return save(tensors, metadata={"sv_sparse": with_checksum(json.dumps(about))})


def _damage(header: dict[str, Any], tensors: dict[str, Any], data: bytearray, generator: Generator) -> None:
    """Change bytes of one tensor, and its check sum with them: what a check sum keeps from being read is read."""
    name = list(tensors)[generator.integers(len(tensors))]
    parts = [header.get(kind + name, {"data_offsets": [0, 0]})["data_offsets"] for kind in ("values:", "positions:")]
    for start, end in parts:
        for place in generator.integers(start, max(start + 1, end), size=min(end - start, 3)):
            data[place] ^= int(generator.integers(256))
    tensors[name][4] = checksum(*(bytes(data[start:end]) for start, end in parts))


def _change(whole: Any, generator: Generator) -> None:
    """Put something foreign in the place of some part of plain data."""
    while True:
        keys = list(whole) if isinstance(whole, dict) else range(len(whole))
        key = keys[generator.integers(len(keys))]
        inner = whole[key]
        if not isinstance(inner, (dict, list)) or not inner or generator.integers(4) == 0:
            whole[key] = copy.deepcopy(_FOREIGN[generator.integers(len(_FOREIGN))])
            return
        whole = inner


def read_model(content: bytes, path: Path) -> None:
    """Read a package; one that can be read can be used, whatever it computes."""
    path.write_bytes(content)
    runtime = Runtime.load(read_package(path), threads=1)
    assert runtime(torch.zeros(1, 80, 20)).shape[0] == 1


# What is made, how it is read, and whether its faults are those of bytes alone.
TARGETS: dict[str, tuple[Callable[[Generator], bytes], Callable[[bytes, Path], None]]] = {
    "audio": (audio, read_audio),
    "package": (package, read_model),
}


def case(target: str, seed: int, number: int) -> bytes:
    """The file of a case; one in fifty is nothing but noise."""
    generator = np.random.default_rng([seed, number])
    if generator.integers(50) == 0:
        return generator.bytes(generator.integers(2000))
    content = TARGETS[target][0](generator)
    return content if target == "package" and generator.integers(2) else mutated(content, generator)


def _work(target: str, seed: int, cases: range, current: "Synchronized[int]", folder: Path) -> None:
    """Read cases in a process that may die of it; ends with status 1 at the first finding."""
    sys.stderr.flush()
    os.dup2(os.open(folder / "complaints", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (MEGABYTES << 20),) * 2)
    for number in cases:
        current.value = number
        os.ftruncate(2, 0)
        content = case(target, seed, number)
        with suppress(ValueError):
            TARGETS[target][1](content, folder / "case")
        if "Traceback" in (folder / "complaints").read_text(errors="replace"):
            sys.exit(1)


def fuzz(target: str, seed: int, cases: range) -> list[tuple[int, str]]:
    """Numbers of cases with findings, and what was found."""
    findings: list[tuple[int, str]] = []
    current: Synchronized[int] = multiprocessing.Value("q", cases.start)  # type: ignore[assignment]
    torch.set_num_threads(1)  # of which a fork takes none along
    with tempfile.TemporaryDirectory() as name:
        with suppress(ValueError):  # once here, so that no worker pays for what all of them need
            TARGETS[target][1](case(target, seed, cases.start), Path(name) / "case")
        start = cases.start
        while start < cases.stop:
            folder = Path(name)
            worker = multiprocessing.get_context("fork").Process(
                target=_work, args=(target, seed, range(start, cases.stop), current, folder)
            )
            worker.start()
            last_case, since = -1, time.monotonic()
            while worker.is_alive():
                worker.join(0.5)
                if current.value != last_case:
                    last_case, since = current.value, time.monotonic()
                elif time.monotonic() - since > SECONDS:
                    worker.kill()
                    worker.join()
                    findings.append((last_case, f"took more than {SECONDS:g} seconds"))
            if worker.exitcode == 0:
                break
            if worker.exitcode is not None and (not findings or findings[-1][0] != current.value):
                said = (folder / "complaints").read_text(errors="replace").strip().splitlines()
                findings.append((current.value, f"status {worker.exitcode}: {said[-1] if said else 'nothing said'}"))
            start = current.value + 1
    return findings


def main() -> None:
    """Read the command line, and end with status 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS, help="what is read")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=int, metavar="NUMBER", help="write the file of one case to stdout")
    args = parser.parse_args()
    if args.write is not None:
        sys.stdout.buffer.write(case(args.target, args.seed, args.write))
        return
    start_time = time.monotonic()
    findings = fuzz(args.target, args.seed, range(args.cases))
    for number, what in findings:
        print(f"case {number}: {what}")
    print(f"{args.cases} cases, {len(findings)} findings, {time.monotonic() - start_time:.0f} seconds")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
