"""What one decoder makes of files that libsndfile alone reads in part, not at all, or for ever.

``tests/test_odd_files.py`` holds more files of this sort; here are the laws behind them.
"""

import os
import struct

import numpy as np
import pytest
from helpers.odd_files import ID3_BEFORE, ID3_BEHIND, encoded, voice, wav_of_a_pipe, without_count, without_xing

from sv_sparse.data import layout
from sv_sparse.data.decoding import AudioFile, inspect

SOUND = voice(1, 3.0)
MP3 = encoded(SOUND, "MP3")


def samples(content: bytes) -> np.ndarray:
    with AudioFile(content) as file:
        return file.read()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("WAV", "FLOAT")),
        *(("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("AIFF", "DWVW_16"), ("CAF", "ALAC_16")),
    ],
)
def test_a_stretch_is_that_of_the_whole_wherever_it_lies(kind, subtype):
    silence = np.zeros(16000, np.float32)  # in which an MP3 encoder saves bits for what follows
    content = encoded(np.concatenate([voice(1, 6.0), silence, voice(2, 7.0)]), kind, subtype)
    whole, length = samples(content), inspect(content).samples
    assert len(whole) == length
    for start in (0, 1, 5000, length // 2, length - 20_000, length - 5000, length - 500):
        count = min(4000, length - start)
        with AudioFile(content) as file:
            part = file.read(start=start, count=count)
        np.testing.assert_allclose(part, whole[start : start + count], atol=1e-6, err_msg=str(start))


def test_a_stretch_beyond_the_end_is_an_error():
    with AudioFile(encoded(SOUND, "WAV")) as file, pytest.raises(ValueError, match="is broken off: 48,000 of 48,100"):
        file.read(start=47_000, count=1100)


def art(size: int) -> bytes:
    """An ID3 tag with a picture, in which some bytes look like the head of an MP3 frame."""
    length = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + length + np.random.default_rng(0).bytes(size)


@pytest.mark.parametrize("between", [b"", ID3_BEHIND, ID3_BEFORE, art(1_500_000), bytes(999), b"\xff\xfb" * 500])
def test_joined_mp3_files_are_read_one_after_the_other_whatever_is_between_them(between):
    one = samples(MP3)
    assert np.array_equal(samples(MP3 + between + MP3), np.concatenate([one, one]))


@pytest.mark.parametrize("tagged", [True, False])
def test_joined_mp3_files_of_different_rates_are_refused_not_cut(tagged):
    other = encoded(voice(2, 3.0, 22050), "MP3", rate=22050)
    with pytest.raises(ValueError, match="is joined from streams of 16000 and 22050 Hz"):
        samples(MP3 + (other if tagged else without_xing(other)))


def test_an_mp3_file_has_as_many_samples_as_can_be_decoded():
    content = MP3[:-1]
    length = inspect(content).samples
    assert 0 < length < inspect(MP3).samples
    assert len(samples(content)) == length
    with AudioFile(content) as file:
        assert len(file.read(start=length - 500, count=500)) == 500


def test_a_frame_with_a_check_sum_of_its_own_counts_the_others_too():
    place = MP3.index(b"Xing")
    protected = bytes([MP3[0], MP3[1] & 0xFE, *MP3[2:4], 1, 2]) + MP3[4 : place + 200]
    (count,) = struct.unpack(">I", MP3[place + 8 : place + 12])
    assert layout._parse_xing(protected[:64]) == layout._parse_xing(MP3[:64]) == (b"Xing", count)


def test_a_wav_file_without_samples_is_empty_whatever_chunks_follow_and_read_on_where_samples_follow():
    empty = wav_of_a_pipe(SOUND[:0], 0)
    for name in (b"LIST", b"iXML", b"FLLR"):
        followed = empty + name + struct.pack("<I", 4000) + bytes(4000)
        assert inspect(followed).problem == "has no samples", name
    assert inspect(wav_of_a_pipe(SOUND, 0)).samples == len(SOUND)


def test_a_tag_that_says_it_has_no_length_ends_the_search():
    footer = b"APETAGEX" + bytes(24)
    assert inspect(b"fLaC" + bytes(40) + footer).problem
    flac = without_count(encoded(SOUND, "FLAC"))
    assert inspect(flac + footer).problem or inspect(flac + footer).samples == len(SOUND)


def test_a_file_of_very_many_streams_is_refused():
    piece = encoded(voice(1, 0.1), "MP3")
    assert inspect(piece * 300).problem == "is joined from 300 streams, at most 256 are read"
    page = encoded(voice(1, 0.1), "OGG")
    assert inspect(page * 300).problem == "is joined from 300 streams, at most 256 are read"


@pytest.mark.parametrize(
    "content",
    [
        MP3[:300] + b"\xff" * 3_000_000,
        (b"OggS" + bytes(23) + b"x") * 100_000,
        (MP3[:4] + b"x") * 500_000,
        b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(1000),
    ],
    ids=["ones", "pages", "frames", "tag"],
)
def test_what_looks_like_audio_all_the_time_is_refused_in_few_reads(content, monkeypatch):
    reads = []
    real = layout.MemoryContent.read
    monkeypatch.setattr(layout.MemoryContent, "read", lambda *words: reads.append(words) or real(*words))
    assert inspect(content).problem
    assert len(reads) < 50


@pytest.mark.parametrize(("name", "output"), [("a.m4a", "a.flac"), ("a.flac", "a.converted.flac")])
def test_the_remedy_for_a_foreign_file_writes_another_file(tmp_path, name, output):
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    assert inspect(path).problem.endswith(f"convert it: ffmpeg -i {path} {tmp_path / output}")


@pytest.mark.parametrize("cut", ["OGG", "NIST", "AIFF", "AU", "RF64", "W64"])
def test_half_a_file_is_refused_where_its_format_tells(cut):
    content = encoded(voice(1, 6.0), cut)
    assert inspect(content[: len(content) // 2]).problem.startswith("is broken off: ")


def test_a_disk_that_fails_is_named_and_not_taken_for_the_end_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    path.write_bytes(ID3_BEFORE + without_count(encoded(voice(1, 20.0), "FLAC")) + ID3_BEHIND)
    real = layout.read_at

    def fail(descriptor: int, count: int, start: int) -> bytes:
        if start > 100_000:
            raise OSError(5, "Input/output error")
        return real(descriptor, count, start)

    assert inspect(path).samples == 320_000
    with AudioFile(path) as file:
        monkeypatch.setattr(layout, "read_at", fail)
        with pytest.raises(OSError, match="Input/output error"):
            file.read()


def test_what_was_found_out_of_a_file_is_not_searched_for_again_until_it_changes(tmp_path, monkeypatch):
    searched = []
    real = layout._find_mp3_parts
    monkeypatch.setattr(layout, "_find_mp3_parts", lambda *words: searched.append(words) or real(*words))
    path = tmp_path / "a.mp3"
    for content in (MP3, MP3 + MP3):
        path.write_bytes(content)
        lengths = {inspect(path).samples for _ in range(3)}
        assert lengths == {len(samples(content))}
    assert len([words for words in searched if isinstance(words[0], layout.FileContent)]) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs a list of open files")
def test_every_file_is_closed_again(tmp_path):
    (tmp_path / "good.wav").write_bytes(encoded(SOUND, "WAV"))
    (tmp_path / "bad.wav").write_bytes(b"no recording")
    (tmp_path / "folder.wav").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for name in ("good.wav", "bad.wav", "folder.wav", "absent.wav"):
        inspect(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before
