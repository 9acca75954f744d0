"""Laws of decoding: whatever a file is, it becomes a waveform or a ValueError that names it, in bounded memory."""

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from helpers.tiny import RATE, ROOT, tone
from hypothesis import given
from hypothesis import strategies as st

from sv_sparse.data.audio import read_utterance, single_file
from sv_sparse.data.decoding import Resampler
from sv_sparse.runtime.audio import iter_audio, read_audio, to_float

KINDS = [
    *[("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16")],
    *[("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("W64", "PCM_16"), ("CAF", "ALAC_16")],
]


def written(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def read(content: bytes | Path | str, seconds: float = 60.0) -> np.ndarray:
    return read_audio(content, RATE, max_seconds=seconds)


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_every_kind_of_recording_is_read_from_memory_and_from_a_file_alike(tmp_path, kind, subtype):
    content = written(tone(1, 0, 1.0), kind=kind, subtype=subtype)
    path = tmp_path / "recording.raw"  # an ending that would mean there is no header
    path.write_bytes(content)
    found = read(content)
    assert found.dtype == np.float32
    assert np.array_equal(found, read(path))
    assert len(found) == pytest.approx(RATE, abs=1200)  # MP3 and Opus begin and end in whole frames
    assert np.abs(found).max() == pytest.approx(np.abs(tone(1, 0, 1.0)).max(), rel=0.3)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_samples_are_those_that_training_and_judging_hear(tmp_path, kind):
    path = tmp_path / "two.file"
    path.write_bytes(written(np.stack([tone(1, 0, 0.7), tone(2, 0, 0.7)], axis=1), kind=kind))
    assert np.array_equal(read(path), read_utterance(single_file(path)).numpy())


@pytest.mark.parametrize("rate", [4001, 8000, 44100, 48000, 96000, 384000])
def test_other_rates_are_resampled_the_same_in_pieces_as_at_once(rate):
    samples = tone(3, 0, 20.0)  # some at a time, also at the highest rate
    expected = soxr.resample(samples, rate, RATE)
    assert np.array_equal(read(written(samples, rate, subtype="FLOAT"), 90.0), expected)


@given(st.lists(st.integers(0, 3000), max_size=8), st.sampled_from([8000, 16000, 44100]))
def test_where_a_waveform_is_cut_changes_nothing(cuts, rate):
    samples, whole, parts = tone(4, 0, 0.4), Resampler(rate, RATE), Resampler(rate, RATE)
    expected = np.concatenate([whole(samples), whole.flush()])
    found = [parts(piece) for piece in np.split(samples, sorted(cuts))]
    assert np.array_equal(np.concatenate([*found, parts.flush()]), expected)


def changed(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


SOUND = tone(0, 0, 0.5)
REFUSED = {
    "nothing": (b"", "is empty"),
    "text": (b"no recording " * 50, "cannot be read as a recording"),
    "zeros": (bytes(1000), "cannot be read as a recording"),
    "no samples": (written(SOUND[:0]), "has no samples"),
    "half a flac": (written(SOUND, kind="FLAC")[:5000], "cannot be read as a recording"),
    "half an mp3": (written(SOUND, kind="MP3", subtype="MPEG_LAYER_III")[:20], "cannot be read as a recording"),
    "not a number": (written(np.append(SOUND, np.nan), subtype="FLOAT"), "not finite"),
    "infinite": (written(np.append(SOUND, -np.inf), subtype="DOUBLE"), "not finite"),
    "too loud": (written(np.append(SOUND, 1e20), subtype="FLOAT"), "beyond"),
    "too slow": (written(SOUND, 3999), "has 3999 Hz, expected 4,000 to 384,000"),
    "too fast": (written(SOUND, 384001), "has 384001 Hz"),
    "absurd rate": (changed(written(SOUND), 24, b"\xff\xff\xff\x7f"), "has 2147483647 Hz"),
    "too many channels": (written(np.zeros((100, 65))), "has 65 channels, at most 64"),
    "absurd channels": (changed(written(SOUND), 22, b"\xff\xff"), "cannot be read as a recording"),
    "flac that promises more": (
        changed(written(SOUND, kind="FLAC"), 22, (SOUND.size * 1000).to_bytes(4)),
        "is broken off: 8,000 of 8,000,000 samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recording_is_refused_by_name(tmp_path, name):
    content, words = REFUSED[name]
    path = tmp_path / "what.wav"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(ValueError, match=words) as refusal:
            read(source)
        assert str(refusal.value).startswith("the recording: " if source is content else f"{path}: ")


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xf0\xff\xff\x7f"])
def test_a_wav_file_of_a_pipe_whose_sizes_are_not_known_is_read_to_its_end(size):
    content = changed(changed(written(SOUND), 40, size), 4, size)
    assert np.array_equal(read(content), read(written(SOUND)))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        tmp_path: "is not a regular file",
        tmp_path / "pipe": "is not a regular file",
        tmp_path / "absent.wav": "No such file",
        "/dev/zero": "is not a regular file",
        "a\0b": "embedded null",
    }.items():
        with pytest.raises(ValueError, match=words):
            read(path)


def test_long_recordings_are_read_in_little_memory_and_refused_when_the_limit_is_passed(tmp_path):
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8000, 2, subtype="PCM_16") as file:
        for _ in range(30):
            file.write(np.zeros((8000 * 60, 2), np.int16))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        assert sum(map(len, iter_audio(path, RATE))) == 30 * 60 * RATE
        with pytest.raises(ValueError, match="hour.flac: is longer than 5 seconds"):
            read(path, 5.0)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_waveforms_of_every_type_are_the_same_samples():
    exact = np.array([0.5, -0.25, 0.0, -1.0])
    sixteen = np.array([16384, -8192, 0, -32768], np.int16)
    for given_ in (exact, exact.astype(np.float32), exact.astype(np.float16), exact[::1], sixteen, list(exact)):
        assert np.array_equal(to_float(given_), exact.astype(np.float32))
    for tensor in (torch.from_numpy(exact), torch.from_numpy(sixteen), torch.from_numpy(exact).requires_grad_()):
        assert np.array_equal(to_float(tensor), exact.astype(np.float32))


@pytest.mark.parametrize("wrong", [np.zeros((2, 9)), np.zeros(9, int), np.zeros(9, np.uint8), "text", 3.0, [None]])
def test_what_is_no_waveform_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a waveform"):
        to_float(wrong)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e300])
def test_samples_that_are_no_sound_are_refused(wrong):
    with pytest.raises(ValueError, match="not finite, or beyond"):
        to_float(np.array([0.1, wrong]))


HARM = """
import os, sys, time
sys.path.insert(0, "tests")
import fuzz, numpy

def read(content, path):
    number = [fuzz.case("audio", 0, number) for number in range(10)].index(content)
    if number == 1: raise KeyError("no")
    if number == 3: os.abort()
    if number == 5: numpy.ones(1 << 30)
    if number == 7: time.sleep(60)
    if number == 8: raise ValueError("a refusal")

fuzz.SECONDS, fuzz.TARGETS["audio"] = 2.0, (fuzz.audio, read)
fuzz.main()
"""


def fuzzed(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)


def test_of_hundreds_of_damaged_files_none_does_harm():
    done = fuzzed("tests/fuzz.py", "audio", "--cases", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases, 0 findings" in done.stdout


def test_the_harm_that_a_file_does_is_noticed():
    done = fuzzed("-c", HARM, "audio", "--cases", "10")
    assert done.returncode == 1
    error, crash, memory, hang, last = done.stdout.splitlines()
    assert error.startswith("case 1: ")
    assert "KeyError" in error
    assert crash.startswith("case 3: status -6")
    assert memory.startswith("case 5: ")
    assert "MemoryError" in memory
    assert hang == "case 7: took more than 2 seconds"
    assert last.startswith("10 cases, 4 findings")
