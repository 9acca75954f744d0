"""Files that are converted, broken, or there more than once: each utterance comes from the right one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import trees

from sv_sparse.data.corpora import convert
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb
from sv_sparse.data.decoding import inspect
from sv_sparse.data.manifest import Manifest

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="converting m4a needs ffmpeg, which is absent")
KEY = trees.utterances("vox2_dev")[0]


@pytest.fixture
def root(tmp_path) -> Path:
    trees.write_subset(tmp_path / "root", "vox2_dev", ".wav")
    return tmp_path / "root"


@pytest.fixture
def converted(monkeypatch) -> list[str]:
    """Names what is converted from now on."""
    names: list[str] = []
    real = convert._convert
    monkeypatch.setattr(
        convert, "_convert", lambda source, *task, **options: names.append(source) or real(source, *task, **options)
    )
    return names


def prepare(out: Path, *roots: Path, to_flac: bool = True) -> Path:
    prepare_voxceleb(roots, out, allow_partial=True, to_flac=to_flac)
    return out


def made(out: Path, key: str = KEY) -> np.ndarray:
    return soundfile.read(out / "flac" / f"{key}.flac", dtype="int16")[0]


def problems(out: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in (out / "problems.tsv").read_text().splitlines()[1:])


def test_a_source_that_an_older_file_replaces_is_converted_anew(root, tmp_path, converted):
    out = prepare(tmp_path / "out", root)
    first = made(out)
    source = root / f"{KEY}.wav"
    trees.write(source, "older", 0.5)
    os.utime(source, (1, 1))
    prepare(out, root)
    assert len(converted) == 13
    assert not np.array_equal(made(out), first)
    assert np.array_equal(made(out), soundfile.read(source, dtype="int16")[0])
    prepare(out, root)
    assert len(converted) == 13


def test_the_same_utterance_of_another_root_is_converted_anew(root, tmp_path, converted):
    out = prepare(tmp_path / "out", root)
    other = trees.write(tmp_path / "other" / f"{KEY}.wav", "other", 0.5)
    shutil.copystat(root / f"{KEY}.wav", other)
    (root / f"{KEY}.wav").unlink()
    prepare(out, root, tmp_path / "other")
    assert converted[12:] == [str(other)]
    assert np.array_equal(made(out), soundfile.read(other, dtype="int16")[0])


def test_another_root_beside_does_not_make_anything_convert_again(root, tmp_path, converted):
    out = prepare(root / "out", root)
    trees.write_subset(tmp_path / "odd %\tname", "vox1_test", ".wav")
    prepare(out, root, tmp_path / "odd %\tname")
    prepare(out, root, tmp_path / "odd %\tname")
    assert len(converted) == len(set(converted)) == 20


def test_a_conversion_that_was_removed_is_made_again(root, tmp_path, converted):
    out = prepare(tmp_path / "out", root)
    (out / "flac" / f"{KEY}.flac").unlink()
    prepare(out, root)
    assert converted[12:] == [str(root / f"{KEY}.wav")]
    assert len(Manifest(out / "manifest.parquet")) == 12


class Killed(BaseException):
    """Stands for a kill at a chosen place."""


@pytest.mark.parametrize("line", ["whole", "broken off"])
def test_what_was_converted_before_a_kill_is_not_converted_again(root, tmp_path, converted, monkeypatch, line):
    monkeypatch.setattr(convert.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(convert, "_CHUNK_SIZE", 1)
    real = os.replace

    def kill(one, other):
        if len(converted) >= 6:
            raise Killed
        real(one, other)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(convert.os, "replace", kill)
        patch.setattr(convert.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            prepare(out, root)
    assert list((out / "flac" / ".parts").iterdir())
    before = len(converted)
    done = len(list((out / "flac").glob("id*/**/*.flac")))
    assert done >= 5
    if line == "broken off":
        with open(out / "flac" / "made_from.tsv", "a") as file:
            file.write(f"{KEY}.flac\t123")
    prepare(out, root)
    assert len(converted) - before == 12 - done
    assert sorted(path.name for path in (out / "flac").iterdir()) == ["id00012", "id00015", "id09272", "made_from.tsv"]
    prepare(out, root)
    assert len(converted) - before == 12 - done


def test_a_damaged_table_of_conversions_is_refused_by_name(root, tmp_path):
    out = prepare(tmp_path / "out", root)
    (out / "flac" / "made_from.tsv").write_text("a\tb\tc\td\te\tf\n")
    with pytest.raises(ValueError, match=r"made_from.tsv: expected lines of target, size, .*; remove it to convert"):
        prepare(out, root)


def test_a_line_that_another_was_written_into_is_left_out(root, tmp_path):
    out = prepare(tmp_path / "out", root)
    table = out / "flac" / "made_from.tsv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([lines[0][:10], *lines[1:]]))
    prepare(out, root)
    assert len(table.read_text().splitlines()) == len(lines) + 1  # the first two are converted anew


@needs_ffmpeg
@pytest.mark.parametrize("ending", [".wav", ".m4a"])
def test_of_two_channels_the_first_is_converted(root, tmp_path, ending):
    left, right = (trees.noise(name, 1.0) for name in ("left", "right"))
    source = root / f"{KEY}.wav"
    soundfile.write(source, np.stack([left, 0.1 * right], axis=1), trees.RATE)
    if ending == ".m4a":
        command = ["ffmpeg", "-v", "error", "-i", source, "-b:a", "256k", source.with_suffix(".m4a")]
        subprocess.run(command, check=True)
        source.unlink()
    samples = made(prepare(tmp_path / "out", root))[: len(left)] / 32768
    assert np.corrcoef(samples, left)[0, 1] > 0.98
    assert abs(np.corrcoef(samples, right)[0, 1]) < 0.05


def test_converted_recordings_of_another_rate_or_with_several_channels_are_named_at_every_run(root, tmp_path):
    slow, several = (root / f"{key}.wav" for key in trees.utterances("vox2_dev")[:2])
    soundfile.write(slow, trees.noise("slow", 0.5), 8000)
    soundfile.write(several, np.stack([trees.noise("left", 0.5), np.zeros(8000)], axis=1), 16000)
    for _ in range(2):
        assert problems(prepare(tmp_path / "out", root)) == {
            str(slow.relative_to(tmp_path)): "8000 Hz; resampled when converted",
            str(several.relative_to(tmp_path)): "2 channels; the first is converted",
        }


@pytest.mark.parametrize("flac", [False, True])
def test_a_broken_file_gives_way_to_another_of_its_utterance(root, tmp_path, flac):
    preferred = root / f"{KEY}.flac"
    soundfile.write(preferred, [], 16000)
    for _ in range(2):
        out = prepare(tmp_path / "out", root, to_flac=flac)
        manifest = Manifest(out / "manifest.parquet")
        (part,) = manifest.segments(manifest.rows([f"{KEY}.wav"])[0])
        assert part.samples == 8000
        other = f"out/flac/{KEY}.flac" if flac else f"root/{KEY}.wav"
        assert Path(part.path) == tmp_path / other
        assert problems(out) == {f"root/{KEY}.flac": f"left out: is empty; root/{KEY}.wav takes its place"}


def test_what_cannot_be_converted_is_left_out_though_it_has_a_header(root, tmp_path):
    soundfile.write(root / f"{KEY}.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    out = prepare(tmp_path / "out", root)
    assert len(Manifest(out / "manifest.parquet")) == 11
    (problem,) = problems(out).values()
    assert problem.startswith("left out: cannot be converted (")
    assert problem.endswith("holds samples that are not finite, or beyond 2 ** 31)")


@needs_ffmpeg
def test_a_pipe_called_like_a_compressed_recording_is_named_and_waits_for_nobody(root, tmp_path):
    (root / f"{KEY}.wav").unlink()
    os.mkfifo(root / f"{KEY}.m4a")
    out = prepare(tmp_path / "out", root)
    assert problems(out) == {f"root/{KEY}.m4a": "left out: cannot be converted (is not a regular file)"}


def test_of_files_that_are_all_broken_each_is_named(root, tmp_path):
    (root / f"{KEY}.flac").write_bytes(b"nothing")
    (root / f"{KEY}.wav").write_bytes(b"nothing")
    trees.write(root / "more" / f"{KEY}.wav", "short", 0.1)
    out = prepare(tmp_path / "out", root, to_flac=False)
    assert len(Manifest(out / "manifest.parquet")) == 11
    unread = "left out: cannot be read as a recording (Format not recognised.)"
    assert problems(out) == {
        f"root/{KEY}.flac": f"{unread}; root/{KEY}.wav takes its place",
        f"root/{KEY}.wav": f"{unread}; root/more/{KEY}.wav takes its place",
        f"root/more/{KEY}.wav": "left out: is too short: 0.10 seconds, at least 0.2 are needed",
    }


def flac_that_says(path: Path, samples: int) -> None:
    content = bytearray(path.read_bytes())
    place = slice(18, 26)  # rate, channels, width, and in the last 36 bits the samples
    content[place] = (int.from_bytes(content[place], "big") >> 36 << 36 | samples).to_bytes(8, "big")
    path.write_bytes(content)


def wav_that_says(path: Path, samples: int) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (2 * samples).to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("ending", "samples", "words"),
    [
        (".flac", 2**36 - 1, "is broken off: 8,000 of 68,719,476,735 samples are there"),
        (".flac", 16_000, "is broken off: 8,000 of 16,000 samples are there"),
        (".wav", 2**29, "is broken off: 8,000 of 536,870,912 samples are there"),
        (".wav", 8_001, "is broken off: 8,000 of 8,001 samples are there"),
    ],
)
@pytest.mark.parametrize("flac", [False, True])
def test_a_header_that_promises_more_than_the_file_holds_is_named(root, tmp_path, ending, samples, words, flac):
    (root / f"{KEY}.wav").unlink()
    path = trees.write(root / f"{KEY}{ending}", KEY)
    (flac_that_says if ending == ".flac" else wav_that_says)(path, samples)
    out = prepare(tmp_path / "out", root, to_flac=flac)
    assert len(Manifest(out / "manifest.parquet")) == 11
    (problem,) = problems(out).values()
    assert words in problem
    assert problem.startswith("left out: ")


@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_a_recording_that_was_cut_is_not_taken_for_a_shorter_one(tmp_path, ending):
    path = trees.write(tmp_path / f"long{ending}", "long", 3.0)
    whole = path.read_bytes()
    assert inspect(path).samples == 48_000
    path.write_bytes(whole[: len(whole) // 2])
    assert inspect(path).samples == 0
    assert inspect(path).problem.startswith(("is broken off: ", "cannot be read as a recording (Error : flac decoder"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM"])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_files_of_any_kind_hold_what_they_say(tmp_path, subtype, channels):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (10_001, channels))
    kinds = {"WAV": ".wav", "WAVEX": ".wav", "RF64": ".wav"} | ({"FLAC": ".flac"} if "PCM" in subtype[:3] else {})
    for form, ending in kinds.items():
        if soundfile.check_format(form, subtype):
            soundfile.write(tmp_path / f"a{ending}", sound, 16000, format=form, subtype=subtype)
            expected = soundfile.info(tmp_path / f"a{ending}").frames
            assert inspect(tmp_path / f"a{ending}").samples == expected >= 10_001


def test_a_long_silence_in_flac_is_whole_if_anything_else_is_in_it(tmp_path):
    samples = np.zeros(1_000_000)
    samples[700_000] = 0.5
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    assert inspect(tmp_path / "a.flac").samples == 1_000_000
    soundfile.write(tmp_path / "a.flac", 0 * samples, 16000)
    assert inspect(tmp_path / "a.flac").samples == 0
    assert inspect(tmp_path / "a.flac").problem == "holds nothing but silence"


def test_preparing_a_corpus_does_not_load_torch():
    words = "import sys, sv_sparse.commands.main, sv_sparse.commands.prepare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert not {"torch", "scipy", "sklearn", "matplotlib", "webdataset"} & set(done.stdout.split())
